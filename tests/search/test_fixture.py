"""The checked-in indexes: read as docs/search-format.md says, with nothing of this package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pq = pytest.importorskip("pyarrow.parquet")

FIXTURE = Path(__file__).parent / "fixture"


@pytest.fixture(scope="module", params=["corpus.index", "bits.index"])
def folder(request: pytest.FixtureRequest) -> Path:
    return FIXTURE / request.param


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict:
    return json.loads((FIXTURE / "expected.json").read_text())[folder.name]


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, np.ndarray]:
    """Every row by the documented offsets alone: names, codes, bounds, days, vectors."""
    info = json.loads((folder / "index.json").read_text())
    width, dims = info["code"]["code"]["width"], info["rerank_dims"]
    out: dict[str, list] = {"row": [], "code": [], "bbox": [], "date": [], "vector": []}
    for group in pq.read_table(folder / "manifest.parquet").to_pylist():
        n = group["n_rows"]
        data = (folder / group["file"]).read_bytes()

        def column(name: str, bytes_each: int, dtype: str, *, data=data, group=group):
            start = group[f"{name}_offset"]
            return np.frombuffer(data[start : start + group["n_rows"] * bytes_each], dtype)

        shard = int(Path(group["file"]).stem)
        out["row"] += [f"{shard}/{group['first_row'] + i}" for i in range(n)]
        out["code"].append(column("code", width, "u1").reshape(n, width))
        box = [column(name, 4, "<f4") for name in ("xmin", "ymin", "xmax", "ymax")]
        out["bbox"].append(np.stack(box, axis=1).astype(float))
        out["date"].append(column("date", 4, "<i4"))
        q = column("rerank", dims, "i1").reshape(n, dims).astype(float)
        out["vector"].append(np.array(info["offset"]) + np.array(info["scale"]) * q)
    table = {k: np.array(v) if k == "row" else np.concatenate(v) for k, v in out.items()}
    table["vector"] /= np.linalg.norm(table["vector"], axis=1, keepdims=True)
    return table


def test_the_fixture_is_small() -> None:
    size = sum(p.stat().st_size for p in FIXTURE.rglob("*") if p.is_file())
    assert size < 200_000


def test_single_values_are_where_the_contract_says(rows, expected) -> None:
    at = len(rows["row"]) // (6 if len(rows["row"]) == 600 else 4)  # first of the second group
    assert rows["code"][at].tobytes().hex() == expected["code_hex"]
    assert rows["bbox"][at].tolist() == expected["bbox"]
    assert rows["date"][at] == expected["date_days"]
    np.testing.assert_allclose(rows["vector"][at], expected["vector"], atol=1e-6)


def similarity_of_codes(folder: Path, rows: dict[str, np.ndarray]) -> np.ndarray:
    """Of every row to every other as exemplar [n, n]."""
    if folder.name == "bits.index":
        bits = np.unpackbits(rows["code"], axis=1)
        return 1 - 2 * (bits[:, None, :] != bits[None]).sum(axis=2) / bits.shape[1]
    learned = np.load(folder / "codec" / "codec.npz")
    centers = learned["centers"]
    parts = [centers[byte][rows["code"][:, byte]] for byte in range(len(centers))]
    decoded = learned["mean"] + np.concatenate(parts, axis=1) @ learned["basis"].T
    away = rows["vector"][None] - decoded[:, None]
    return 1 - (away**2).sum(axis=2) / 2


@pytest.mark.parametrize("case", range(4))
def test_searches_follow_from_the_contract(folder, rows, expected, case: int) -> None:
    want = expected["searches"][case]
    find = {name: i for i, name in enumerate(rows["row"])}
    good = [find[r] for r in want["positives"]]
    bad = [find[r] for r in want.get("negatives", [])]
    inside = np.ones(len(rows["row"]), bool)
    inside[good + bad] = False
    if "area" in want:
        west, south, east, north = want["area"]
        lon = (rows["bbox"][:, 0] + rows["bbox"][:, 2]) / 2
        lat = (rows["bbox"][:, 1] + rows["bbox"][:, 3]) / 2
        inside &= (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
    if "dates" in want:
        first, last = np.array(want["dates"], "datetime64[D]").astype(int)
        inside &= (rows["date"] >= first) & (rows["date"] <= last) & (rows["date"] != 0)

    def ranked(similar: np.ndarray, candidates: np.ndarray) -> tuple[list[str], np.ndarray]:
        score = similar[:, good].mean(axis=1) - (similar[:, bad].mean(axis=1) if bad else 0)
        order = candidates[np.argsort(-score[candidates], kind="stable")]
        return rows["row"][order].tolist(), score[order]

    codes = similarity_of_codes(folder, rows)
    names, score = ranked(codes, np.flatnonzero(inside))
    assert names[:10] == want["row_by_codes"]
    np.testing.assert_allclose(score[:10], want["score_by_codes"], atol=1e-5)
    kept = np.sort([find[name] for name in names[:200]])
    names, score = ranked(rows["vector"] @ rows["vector"].T, kept)
    assert names[:10] == want["row"]
    np.testing.assert_allclose(score[:10], want["score"], atol=1e-5)


def test_the_script_makes_the_same_values(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(FIXTURE))
    import make_fixture

    make_fixture.make(tmp_path)
    # Other versions of pyarrow may write other bytes; the answers stay.
    assert json.loads((tmp_path / "expected.json").read_text()) == json.loads(
        (FIXTURE / "expected.json").read_text()
    )
    assert (tmp_path / "corpus.index" / "index.json").is_file()
