"""Grids and real tables as sources of an index."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from bocage.embeddings import EmbeddingGrid, create_store, write_shard
from bocage.errors import InputError, SourceError
from bocage.search import IndexOptions, SearchOptions, index, open_index, search

DATA = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> tuple[Path, np.ndarray, EmbeddingGrid]:
    path = tmp_path_factory.mktemp("grid") / "emb.zarr"
    grid = EmbeddingGrid(
        crs="EPSG:32632",
        transform=Affine(40, 0, 500_000, 0, -40, 5_000_000),
        shape_yx=(300, 280),
        dims=16,
        years=(2023, 2024),
        codec="float32",
        shard_cells=256,
        model="test-model",
        patch_size=4,
    )
    x = np.random.default_rng(0).normal(0.3, 1, (2, 16, 300, 280)).astype(np.float32)
    x[0, :, :, 100:130] = np.nan
    x[1, :, :256, :256] = np.nan
    create_store(path, grid)
    for i, year in enumerate(grid.years):
        for row in range(2):
            for col in range(2):
                h, w = grid.shard_shape(row, col)
                part = x[i, :, row * 256 : row * 256 + h, col * 256 : col * 256 + w]
                write_shard(path, grid, year, row, col, part)
    return path, x, grid


def test_every_cell_with_data_is_a_row_at_its_place(store, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely
    from pyproj import Transformer

    path, x, _ = store
    result = index(path, tmp_path / "i", options=IndexOptions(rows_per_shard=20_000))
    valid = np.isfinite(x[:, 0])
    assert result.n_rows == valid.sum()
    assert result.info is not None
    assert result.info.model == "test-model"
    assert result.info.dates == ("2023-01-01", "2024-01-01")
    files = sorted((tmp_path / "i" / "shards").iterdir())
    table = pa.concat_tables([pq.read_table(f) for f in files])
    row, col = np.asarray(table["grid_row"]), np.asarray(table["grid_col"])
    year = np.asarray(table["date"].cast("int32")) > 19_500
    assert (np.bincount(year * 84_000 + row * 280 + col, minlength=168_000) == valid.ravel()).all()
    # Outlines in lon/lat, moved back to UTM, are the cells.
    shapes = shapely.from_wkb(table["geometry"][:500].to_numpy())
    to_utm = Transformer.from_crs("OGC:CRS84", "EPSG:32632", always_xy=True)
    moved = shapely.transform(shapes, lambda xy: np.stack(to_utm.transform(*xy.T), axis=1))
    left, top = 500_000 + 40 * col[:500], 5_000_000 - 40 * row[:500]
    expected = shapely.box(left, top - 40, left + 40, top)
    assert shapely.area(shapely.intersection(moved, expected)).min() > 1599.9


def test_places_of_a_grid_are_found_by_lon_lat_and_year(store, tmp_path: Path) -> None:
    from pyproj import Transformer

    path, _, _ = store
    index(path, tmp_path / "i")
    x, y = 500_000 + 40 * 200.5, 5_000_000 - 40 * 280.5
    lonlat = Transformer.from_crs("EPSG:32632", "OGC:CRS84", always_xy=True).transform(x, y)
    options = SearchOptions(k=3, include_exemplars=True)
    hits = search(tmp_path / "i", lonlat, dates=2024, options=options)
    assert hits.dates == ["2024-01-01"] * 3
    both = search(tmp_path / "i", lonlat, options=options)
    assert (both.attributes["grid_row"][0].as_py(), both.attributes["grid_col"][0].as_py()) == (
        280,
        200,
    )
    empty = Transformer.from_crs("EPSG:32632", "OGC:CRS84", always_xy=True)
    with pytest.raises(InputError, match="km away"):
        search(tmp_path / "i", empty.transform(490_000, 5_000_000))


def test_sources_that_are_none_say_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        index(tmp_path / "nothing.zarr", tmp_path / "i")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(SourceError, match="not a readable Parquet"):
        index(tmp_path / "bad.parquet", tmp_path / "i")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"embedding": [[1.0, 2.0]]}), tmp_path / "plain.parquet")
    with pytest.raises(InputError, match="footer key geo"):
        index(tmp_path / "plain.parquet", tmp_path / "i")
    assert not (tmp_path / "i").exists()


@pytest.mark.skipif(not DATA.exists(), reason=f"no real data in {DATA} (set BOCAGE_DATA)")
def test_real_clay_vectors_two_stages_keep_recall_and_direction(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from bocage.embeddings.codecs import signed_power

    path = next((DATA / "embeddings_samples").glob("clay_*.gpq"))
    x = np.stack(pq.read_table(path)["embeddings"].to_numpy())
    back = signed_power.decode(signed_power.encode(x))
    cosine = (x * back).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(back, axis=1)
    assert cosine.min() >= 0.9999

    result = index(path, tmp_path / "i", date_column="date")
    assert result.n_rows == len(x) == 417
    opened = open_index(tmp_path / "i")
    # The first stage reads at most a sixteenth of the float bytes.
    assert 16 * opened.code_bytes <= 4 * x.shape[1]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    numbers = np.concatenate(
        [np.asarray(opened.read_columns(g, ["index"])["index"]) for g in range(opened.n_groups)]
    )
    name = dict(
        zip(
            numbers.tolist(),
            opened.row_ids(
                np.repeat(np.arange(opened.n_groups), opened.manifest["n_rows"]),
                np.concatenate([np.arange(n) for n in opened.manifest["n_rows"]]),
            ),
            strict=True,
        )
    )
    recalls = []
    for i in range(0, 417, 6):
        near = unit @ unit[i]
        near[i] = -2  # self is no neighbor
        hits = search(opened, name[i], options=SearchOptions(k=10, n_candidates=100))
        found = np.asarray(hits.attributes["index"])
        recalls.append(np.isin(np.argsort(-near)[:10], found).mean())
    assert np.mean(recalls) >= 0.95
