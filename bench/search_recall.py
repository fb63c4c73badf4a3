"""Two-stage recall@10 on real embeddings, self excluded, against float32 cosine.

    python bench/search_recall.py [--npz EMBEDDINGS.npz ...] [--codes binary_mean,...]

Without --npz: the Clay vectors of BOCAGE_DATA; `codecs_embeddings.py` makes others. First what int8
leaves of the cosine. Then for each first stage: bytes of a code and their share of float32,
recall@10 of the codes alone, and after the int8 of the second stage of the best 50, 100, 200 and
500 rows. Then an index is built with the defaults and searched, by vectors and by rows, and the
bytes that its first stage reads are counted.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from bocage.embeddings.codecs import make_codec
from bocage.scoring.scores import true_neighbors
from bocage.search import ArraySource, IndexOptions, SearchOptions, index, open_index, search
from bocage.search.area import make_area
from bocage.search.learned import default_code

DATA = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
CANDIDATES = (50, 100, 200, 500)
FIRST_STAGES = (
    *("binary", "binary_mean", "binary_itq", "binary_levels", "binary_levels2"),
    *("rabitq", "rabitq2", "rabitq4"),
)


def clay() -> np.ndarray:
    import pyarrow.parquet as pq

    table = pq.read_table(next((DATA / "embeddings_samples").glob("clay_*.gpq")))
    return np.stack(table["embeddings"].to_numpy()).astype(np.float32)


def ranked(codec, unit: np.ndarray, queries: np.ndarray, k: int, *, by_vector: bool) -> np.ndarray:
    """The k nearest other rows by codes [Q, k]; with `by_vector` the query is not quantized."""
    q = codec.encode(unit)
    decoded = codec.decode(q) if by_vector else None
    found = []
    for query in queries:
        if decoded is None:
            apart = codec.distances(unit[query : query + 1], q)[0]
        else:
            apart = np.square(decoded).sum(axis=1) - 2 * (decoded @ unit[query])
        apart[query] = np.inf
        nearest = np.argpartition(apart, k - 1)[:k]
        found.append(nearest[np.lexsort((nearest, apart[nearest]))])
    return np.stack(found)


def mean_recall(truth: np.ndarray, found) -> float:
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))


def compare(unit: np.ndarray, queries: np.ndarray, truth: np.ndarray, chosen: list[str]) -> None:
    """A line for each codec of the first stage."""
    dims = unit.shape[1]
    rng = np.random.default_rng(0)
    sample = unit[rng.permutation(len(unit))[:50_000]]
    rerank = make_codec("int8").fit(sample)
    stored = rerank.decode(rerank.encode(unit))
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    size = max(d for d in range(1, dims // 8 + 1) if dims % d == 0)
    products = [
        f"{kind}{n}" for n in (size // 2, size, 2 * size) for kind in ("balanced_pq", "pq", "opq")
    ]
    for name in [*FIRST_STAGES, *products]:
        if chosen and name not in chosen:
            continue
        if name.startswith("opq") and len(unit) < 2 * dims:
            continue
        codec = make_codec(name).fit(sample)
        n = min(max(CANDIDATES), len(unit) - 1)
        for by_vector in (False, True) if name.startswith("binary") else (False,):
            found = ranked(codec, unit, queries, n, by_vector=by_vector)
            cells = []
            for c in CANDIDATES:
                best = []
                for query, f in zip(queries, found, strict=True):
                    some = f[: min(c, n)]
                    cosine = stored[some] @ unit[query]
                    best.append(some[np.argsort(-cosine, kind="stable")[:10]])
                cells.append(f"{mean_recall(truth, best):.3f}")
            label = name + (", query not quantized" if by_vector else "")
            alone = mean_recall(truth, found[:, :10])
            print(f"| {label} | {codec.code_bytes} | 1/{4 * dims / codec.code_bytes:.0f} | "
                  f"{alone:.3f} | {' | '.join(cells)} |", flush=True)  # fmt: skip


def round_trip(x: np.ndarray, unit: np.ndarray) -> None:
    """Least and mean cosine after both rules of int8."""
    scale = np.float32(2.0 ** max(0, np.ceil(np.log2(np.abs(x).max()))))  # as maps are stored
    power, linear = make_codec("signed_power").fit(x[:10]), make_codec("int8").fit(unit)
    for rule, codec, y in (
        (f"signed power after division by {scale:g}", power, x / scale),
        ("int8 of the second stage", linear, unit),
    ):
        back = codec.decode(codec.encode(y))
        lengths = np.linalg.norm(back, axis=1) * np.linalg.norm(y, axis=1)
        cosine = np.einsum("nd,nd->n", back, y) / lengths
        print(f"{rule}: cosine least {cosine.min():.6f}, mean {cosine.mean():.6f}")


def by_default(x: np.ndarray, unit: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> None:
    """Recall and bytes of an index made with nothing but defaults."""
    import pyarrow as pa

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        columns = pa.table({"number": np.arange(len(x))})
        # Places at random: the order of the rows then helps no query.
        source = ArraySource(x, rng.uniform(0, 10, (len(x), 2)), columns=columns)
        index(source, Path(folder) / "i", options=IndexOptions())
        opened = open_index(Path(folder) / "i")
        before = opened.storage.n_bytes
        names, number = [], []
        for group in range(opened.n_groups):
            rows = opened.read_inside(group, make_area(None), None)
            names += opened.row_ids(rows.group, rows.row)
        read = opened.storage.n_bytes - before
        for group in range(opened.n_groups):
            number += opened.read_columns(group, ["number"])["number"].to_pylist()
        name_of = dict(zip(number, names, strict=True))
        found: dict[str, list] = {"vector": [], "row": []}
        for query in queries:
            hits = search(opened, x[query], options=SearchOptions(k=11))
            mine = np.asarray(hits.attributes["number"])
            found["vector"].append(mine[mine != query][:10])
            hits = search(opened, name_of[query], options=SearchOptions(k=10))
            found["row"].append(np.asarray(hits.attributes["number"]))
    print(f"default ({opened.info.code['codec']}, {max(200, 10 * 11)} candidates): recall "
          f"{mean_recall(truth, found['vector']):.3f} by vector, "
          f"{mean_recall(truth, found['row']):.3f} by row; the first stage of a query of the whole "
          f"world reads {read} of {unit.nbytes} bytes, 1/{unit.nbytes / read:.1f}")  # fmt: skip
    assert opened.info.code["codec"] == default_code(len(x), x.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npz", action="append", default=[])
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--codes", default="", help="only these, comma separated; none: defaults")
    options = parser.parse_args()
    sets = {path: np.load(path)["x"] for path in options.npz} or {"clay v0": clay()}
    for name, x in sets.items():
        rng = np.random.default_rng(0)
        valid = np.flatnonzero(np.isfinite(x).all(axis=1))
        x = x[np.sort(rng.choice(valid, min(options.rows, len(valid)), replace=False))]  # noqa: PLW2901
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        queries = np.sort(rng.choice(len(x), min(options.queries, len(x)), replace=False))
        truth = true_neighbors(unit, queries, 10)
        print(f"\n{name}: {len(x)} x {x.shape[1]}, {len(queries)} queries")
        round_trip(x, unit)
        if options.codes != "none":
            compare(unit, queries, truth, [c for c in options.codes.split(",") if c])
        by_default(x, unit, queries, truth)


if __name__ == "__main__":
    main()
