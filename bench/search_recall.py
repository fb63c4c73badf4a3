"""Two-stage recall@10 on real embeddings, self excluded, against float32 cosine.

    python bench/search_recall.py [--npz EMBEDDINGS.npz ...]

Without --npz: the Clay vectors of BOCAGE_DATA. For each first stage: bytes read per row and their
share of float32, recall@10 of the codes alone, and after signed-power int8 of 100, 200, 500 rows.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from bocage.embeddings.codecs import make_codec
from bocage.scoring.scores import true_neighbors
from bocage.search.hamming import nearest_codes

DATA = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
CANDIDATES = (100, 200, 500)
FIRST_STAGES = (
    *("binary", "binary_mean", "binary_itq", "binary_levels", "binary_levels2"),
    *("rabitq", "rabitq2", "rabitq4"),
)
BBOX_AND_DATE_BYTES = 20


def clay() -> np.ndarray:
    import pyarrow.parquet as pq

    table = pq.read_table(next((DATA / "embeddings_samples").glob("clay_*.gpq")))
    return np.stack(table["embeddings"].to_numpy())


def ranked(codec, unit: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The k nearest other rows by codes [Q, k]."""
    codes = codec.encode(unit)
    if codec.distance == "hamming":
        rows = nearest_codes(codes[queries], codes, k + 1)[1]
    else:
        rows = codec.index_of(codes).search(unit[queries], k + 1)[1]
    kept = []
    for query, found in zip(queries, rows, strict=True):
        others = found[found != query]
        kept.append(others[:k])
    return np.stack(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npz", action="append", default=[])
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--codes", default=None, help="only these, comma separated")
    options = parser.parse_args()
    sets = {"clay v0 (real weights)": clay()}
    for path in options.npz:
        sets[path] = np.load(path)["x"]
    for name, x in sets.items():
        rng = np.random.default_rng(0)
        valid = np.flatnonzero(np.isfinite(x).all(axis=1))
        x = x[np.sort(rng.choice(valid, min(options.rows, len(valid)), replace=False))]  # noqa: PLW2901
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        dims = x.shape[1]
        queries = np.sort(rng.choice(len(x), min(options.queries, len(x)), replace=False))
        truth = true_neighbors(unit, queries, 10)
        center = unit.mean(axis=0)
        rerank = make_codec("signed_power_gain").fit(unit[:50_000] - center)
        stored = center + rerank.decode(rerank.encode(unit - center))
        stored /= np.linalg.norm(stored, axis=1, keepdims=True)
        cosine = (stored * unit).sum(axis=1)
        raw = make_codec("signed_power").fit(x[:100])
        back = raw.decode(raw.encode(x))
        direct = (back * x).sum(axis=1) / np.linalg.norm(back, axis=1) / np.linalg.norm(x, axis=1)
        print(f"\n{name}: {len(x)} x {dims}; cosine after the round trip, least and mean: signed "
              f"power {direct.min():.6f} {direct.mean():.6f}, centered with gain "
              f"{cosine.min():.6f} {cosine.mean():.6f}")  # fmt: skip
        size = dims // 8
        pq_size = max(d for d in range(1, size + 1) if dims % d == 0)
        pq = (f"pq{pq_size}", f"opq{pq_size}", f"pq{min(2 * pq_size, dims)}")
        for code in (*FIRST_STAGES, *pq):
            if options.codes and code not in options.codes.split(","):
                continue
            if code.startswith("opq") and len(x) < 2 * dims:
                continue
            codec = make_codec(code).fit(unit[rng.permutation(len(unit))[:20_000]])
            n = min(max(CANDIDATES), len(x) - 1)
            found = ranked(codec, unit, queries, n)
            alone = np.mean([np.isin(t, f[:10]).mean() for t, f in zip(truth, found, strict=True)])
            cells = []
            for c in CANDIDATES:
                recalls = []
                for q, t, f in zip(queries, truth, found, strict=True):
                    some = f[: min(c, n)]
                    best = some[np.argsort(-(stored[some] @ unit[q]), kind="stable")[:10]]
                    recalls.append(np.isin(t, best).mean())
                cells.append(f"{np.mean(recalls):.3f}")
            read = codec.code_bytes + BBOX_AND_DATE_BYTES
            share = f"1/{4 * dims / codec.code_bytes:.0f}, with bounds 1/{4 * dims / read:.0f}"
            print(
                f"  {code:12s} {codec.code_bytes:4d} B ({share}): alone {alone:.3f}, two-stage "
                f"with {'/'.join(map(str, CANDIDATES))}: {' '.join(cells)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
