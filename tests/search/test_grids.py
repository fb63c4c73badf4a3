"""Several grids in one index: every vector at its place, found as a search of all finds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from typer.testing import CliRunner

from bocage import open_embeddings
from bocage.cli import app
from bocage.embeddings import EmbeddingGrid, create_store, export_cog, write_shard
from bocage.errors import BocageWarning, InputError
from bocage.search import SearchOptions, index, search
from tests.embeddings.test_public_archives import olmoearth

DIMS = 32
SIDE = 45


def write_grid(path: Path, x, *, crs: str, left: float, years: tuple[int, ...], **changes) -> Path:
    """A float32 store of cells of 40 m with values [years, D, h, w]."""
    options = {"codec": "float32", "model": "m", "patch_size": 4, "attrs": {"weights_id": "w"}}
    grid = EmbeddingGrid(
        crs=crs, transform=Affine(40, 0, left, 0, -40, 5_000_000), shape_yx=x.shape[2:],
        dims=x.shape[1], years=years, shard_cells=64, **(options | changes),
    )  # fmt: skip
    create_store(path, grid)
    for i, year in enumerate(years):
        write_shard(path, grid, year, 0, 0, x[i])
    return path


@pytest.fixture(scope="module")
def grids(tmp_path_factory):
    """Two zones, two years, a COG, an overlap: paths, and values [years, D, h, w] of each."""
    folder = tmp_path_factory.mktemp("grids")
    rng = np.random.default_rng(0)
    basis = rng.normal(0, 1, (6, DIMS))

    def values(n_years: int):
        rows, cols = np.mgrid[:SIDE, :SIDE] / 9
        waves = rng.normal(0, 1, (n_years, 6, 2)) @ np.stack([rows, cols]).reshape(2, -1)
        x = np.einsum("ykn,kd->ydn", np.sin(waves), basis).reshape(n_years, DIMS, SIDE, SIDE)
        x = (x + rng.normal(0, 0.2, x.shape) + 0.5).astype(np.float32)
        x[:, :, 5:9, 30:40] = np.nan
        return x

    of_zone, before, after = values(2), values(1), values(1)
    west = write_grid(
        folder / "west.zarr", of_zone, crs="EPSG:32632", left=733_000, years=(2023, 2024)
    )
    east = write_grid(folder / "east.zarr", before, crs="EPSG:32633", left=268_000, years=(2023,))
    late = write_grid(folder / "late.zarr", after, crs="EPSG:32633", left=268_400, years=(2025,))
    cog = export_cog(late, folder / "late.tif", codec="float32")
    paths = [str(west), str(east), str(cog or folder / "late.tif")]
    return dict(zip(paths, [of_zone, before, after], strict=True))


def rows_of(table) -> list[tuple[str, int, int]]:
    return list(
        zip(*(table[n].to_pylist() for n in ("source", "grid_row", "grid_col")), strict=True)
    )


def test_every_cell_of_every_grid_is_one_row_at_its_place(grids, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely
    from pyproj import Transformer

    result = index(list(grids), tmp_path / "i")
    assert result.info is not None and result.info.model == "m"
    assert result.info.dates == ("2023-01-01", "2025-01-01")
    table = pa.concat_tables(pq.read_table(f) for f in sorted((tmp_path / "i/shards").iterdir()))
    years = 1970 + table["date"].cast("int32").to_numpy() // 365
    found = {(*row, int(year)) for row, year in zip(rows_of(table), years, strict=True)}
    starts = dict(zip(grids, ((2023, 2024), (2023,), (2025,)), strict=True))
    expected = {
        (name, int(row), int(col), year)
        for name, x in grids.items()
        for i, year in enumerate(starts[name])
        for row, col in np.argwhere(np.isfinite(x[i, 0]))
    }
    assert found == expected and len(table) == len(expected) == result.n_rows
    centers = shapely.centroid(shapely.from_wkb(table["geometry"].to_numpy()))
    lonlat = shapely.get_coordinates(centers)
    source = np.array(table["source"].to_pylist())
    for (name, left), zone in zip(
        zip(grids, (733_000, 268_000, 268_400), strict=True), (32632, 32633, 32633), strict=True
    ):
        mine = source == name
        to_utm = Transformer.from_crs("OGC:CRS84", f"EPSG:{zone}", always_xy=True)
        x, y = to_utm.transform(*lonlat[mine].T)
        row, col = (table[n].to_numpy()[mine] for n in ("grid_row", "grid_col"))
        np.testing.assert_allclose(x, left + 40 * (col + 0.5), atol=0.1)
        np.testing.assert_allclose(y, 5_000_000 - 40 * (row + 0.5), atol=0.1)


@pytest.mark.parametrize("code", ["auto", "binary_mean"])
def test_a_search_finds_what_comparing_all_vectors_finds(grids, tmp_path: Path, code: str) -> None:
    from bocage.search import IndexOptions

    index(list(grids), tmp_path / "i", options=IndexOptions(code=code))
    ids, vectors = [], []
    for name, x in grids.items():
        for values in x:
            at = np.argwhere(np.isfinite(values[0]))
            ids += [(name, int(r), int(c)) for r, c in at]
            vectors.append(values[:, at[:, 0], at[:, 1]].T)
    every = np.concatenate(vectors).astype(np.float64)
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    sources, n_found = set(), 0
    for query in every[:: len(every) // 20][:20]:
        exact = every @ query
        best = np.argsort(-exact)[:10]
        hits = search(tmp_path / "i", query, options=SearchOptions(k=10))
        np.testing.assert_allclose(hits.score, exact[best], atol=4e-3)
        wanted = {ids[i] for i in best}
        n_found += len(wanted & set(rows_of(hits.attributes)))
        sources |= {ids[i][0] for i in best}
    assert n_found / 200 >= 0.9  # 8-bit vectors swap near neighbors
    assert sources == set(grids)
    only = search(
        tmp_path / "i", query, where={"source": list(grids)[1]}, options=SearchOptions(k=5)
    )
    assert {row[0] for row in rows_of(only.attributes)} == {list(grids)[1]}
    late = search(tmp_path / "i", query, dates=2025, options=SearchOptions(k=5))
    assert {row[0] for row in rows_of(late.attributes)} == {list(grids)[2]}


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_all_zones_of_a_public_archive_are_indexed(tmp_path: Path) -> None:
    path = olmoearth(tmp_path / "archive.zarr")
    result = index(path, tmp_path / "i")
    assert result.n_rows == 2 * (32 * 32 - 1)  # the northern half and the first year are empty
    query = open_embeddings(path, zone=11).values[1, :, 40, 4]
    hits = search(tmp_path / "i", query, dates=2025, options=SearchOptions(k=1))
    assert rows_of(hits.attributes) == [(f"{path} (utm11)", 40, 4)]
    assert hits.lonlat[0, 0] == pytest.approx(-117 - 1.79, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "other"}, r"model m in .*a\.zarr and other in .*b\.zarr"),
        ({"attrs": {"weights_id": "v"}}, "weights w in .* and v in"),
        ({"patch_size": 8}, "patch size 4 in .* and 8 in"),
        ({"dims": 16}, "32 dims in .* and 16 in"),
    ],
)
def test_grids_of_two_models_are_refused(tmp_path: Path, changes, match) -> None:
    x = np.random.default_rng(0).normal(0, 1, (1, DIMS, 20, 20)).astype(np.float32)
    a = write_grid(tmp_path / "a.zarr", x, crs="EPSG:32632", left=5e5, years=(2024,))
    y = x[:, : changes.pop("dims", DIMS)]
    b = write_grid(tmp_path / "b.zarr", y, crs="EPSG:32632", left=6e5, years=(2024,), **changes)
    with pytest.raises(InputError, match=match):
        index([a, b], tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_a_grid_given_twice_a_table_among_grids_and_two_codecs(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (1, DIMS, 20, 20)).astype(np.float32)
    a = write_grid(tmp_path / "a.zarr", x, crs="EPSG:32632", left=5e5, years=(2024,))
    with pytest.raises(InputError, match=r"a\.zarr twice"):
        index([a, a], tmp_path / "i")
    with pytest.raises(InputError, match=r"the table .*t\.parquet among grids"):
        index([a, tmp_path / "t.parquet"], tmp_path / "i")
    b = write_grid(
        tmp_path / "b.zarr", x, crs="EPSG:32632", left=6e5, years=(2024,), codec="signed_power"
    )
    with pytest.warns(BocageWarning, match="stored as float32 and as signed_power"):
        assert index([a, b], tmp_path / "i").n_rows == 800


def test_the_command_line_says_which_grid_and_year_a_row_is_of(grids, tmp_path: Path) -> None:
    out = str(tmp_path / "i")
    run = CliRunner().invoke(app, ["index", *grids, "--out", out])
    assert run.exit_code == 0, run.output
    found = CliRunner().invoke(app, ["search", out, "--like", "0/17", "--top", "3"])
    assert found.exit_code == 0, found.output
    lines = found.output.splitlines()
    assert len(lines) == 3
    for line in lines:
        *_, date, source = line.split()
        assert source in grids and date in {"2023-01-01", "2024-01-01", "2025-01-01"}
