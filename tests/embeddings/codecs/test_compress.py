"""Grids and tables become codes and come back; a killed run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from bocage.embeddings import EmbeddingGrid, create_store, open_embeddings, write_shard
from bocage.embeddings.codecs import load_codec, make_codec
from bocage.embeddings.codecs.compress import compress, open_compressed
from bocage.errors import InputError, SourceError, StoreError


def make_grid(path: Path, shape: tuple[int, int] = (600, 300), dims: int = 16) -> np.ndarray:
    grid = EmbeddingGrid(
        crs="EPSG:32632",
        transform=Affine(40, 0, 500_000, 0, -40, 5_000_000),
        shape_yx=shape,
        dims=dims,
        years=(2023, 2024),
        codec="float32",
        shard_cells=256,
        model="test-model",
        patch_size=4,
    )
    rng = np.random.default_rng(0)
    x = (
        rng.normal(0, 1, (2, dims, *shape)).astype(np.float32)
        * np.linspace(2, 0.1, dims)[:, None, None]
    )
    x += np.sin(np.arange(shape[0]) / 40)[:, None].astype(np.float32)
    x[0, :, 100:140, 20:90] = np.nan
    x[1, :, 256:512, :] = np.nan  # a whole block row without data
    create_store(path, grid)
    for i, year in enumerate(grid.years):
        for row in range(grid.shards_yx[0]):
            for col in range(grid.shards_yx[1]):
                h, w = grid.shard_shape(row, col)
                part = x[i, :, row * 256 : row * 256 + h, col * 256 : col * 256 + w]
                write_shard(path, grid, year, row, col, part)
    return x


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("grid") / "emb.zarr"
    return path, make_grid(path)


@pytest.mark.parametrize("name", ["int8", "pca8-int8", "binary_mean", "lloyd4", "float16"])
def test_a_grid_comes_back_as_its_codec_decodes_it(name: str, store, tmp_path: Path) -> None:
    source, x = store
    result = compress(source, tmp_path / "out.zarr", codec=name)
    stored = open_compressed(tmp_path / "out.zarr")
    assert stored.shape == x.shape
    assert stored.codec.fitted_on["model"] == "test-model"
    assert result.n_vectors == int(np.isfinite(x[:, 0]).sum())
    for year in (0, 1):
        decoded = stored.read(year, slice(0, 600), slice(0, 300))
        np.testing.assert_array_equal(np.isnan(decoded), np.isnan(x[year]))
        flat, valid = x[year].reshape(16, -1).T, np.isfinite(x[year, 0]).ravel()
        expected = stored.codec.decode(stored.codec.encode(flat[valid]))
        np.testing.assert_allclose(decoded.reshape(16, -1).T[valid], expected, atol=1e-5)
    if name == "pca8-int8":
        assert result.n_bytes < result.float_bytes / 7


def test_xarray_opens_the_codes_with_their_grid(store, tmp_path: Path) -> None:
    import xarray as xr

    source, _ = store
    compress(source, tmp_path / "out.zarr", codec="int8")
    codes = xr.open_zarr(tmp_path / "out.zarr", consolidated=False, mask_and_scale=False)
    original = open_embeddings(source)
    np.testing.assert_array_equal(codes["x"], original["x"])
    np.testing.assert_array_equal(codes["y"], original["y"])
    assert codes["codes"].dtype == np.int8
    assert codes["spatial_ref"].attrs["crs_wkt"] == original["spatial_ref"].attrs["crs_wkt"]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(store, tmp_path: Path) -> None:
    source, _ = store
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    compress(source, whole, codec="pca8-int8")
    script = (
        "import sys, time\n"
        "from bocage.embeddings.codecs import compress as c\n"
        "write = c._write_block\n"
        "def slow(*a):\n    time.sleep(0.2)\n    return write(*a)\n"
        "c._write_block = slow\n"
        "c.compress(sys.argv[1], sys.argv[2], codec='pca8-int8')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(source), str(killed)])
    deadline = time.monotonic() + 60
    # By number: what Zarr is still writing has another name.
    while (
        len(list((killed / "done").glob("c/[0-9]")) + list((killed / "done").glob("c/1[01]"))) < 3
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    result = compress(source, killed, codec="pca8-int8")
    assert 3 <= result.n_skipped < 12
    for file in sorted(p for p in (whole / "codes").rglob("*") if p.is_file()):
        assert (killed / os.path.relpath(file, whole)).read_bytes() == file.read_bytes()
    with pytest.raises(StoreError, match="unfinished result of the same command"):
        compress(source, killed, codec="int8")


def test_codes_of_what_a_grid_held_before_are_not_taken_for_its_own(tmp_path: Path) -> None:
    source, out = tmp_path / "emb.zarr", tmp_path / "codes"
    make_grid(source, (60, 50))
    first = compress(source, out, codec="int8")
    assert compress(source, out, codec="int8").n_vectors == 0 < first.n_vectors
    shutil.rmtree(source)
    make_grid(source, (60, 50))
    with pytest.raises(StoreError, match="before it was written anew"):
        compress(source, out, codec="int8")


def test_codecs_of_another_model_or_dimension_are_refused(store, tmp_path: Path) -> None:
    source, _ = store
    rng = np.random.default_rng(0)
    other = make_codec("int8").fit(rng.normal(size=(50, 16)).astype(np.float32), model="clay")
    with pytest.raises(InputError, match="vectors of clay"):
        compress(source, tmp_path / "a.zarr", codec=other)
    wide = make_codec("int8").fit(rng.normal(size=(50, 32)).astype(np.float32))
    with pytest.raises(InputError, match="32 dimensions"):
        compress(source, tmp_path / "b.zarr", codec=wide)
    with pytest.raises(StoreError, match="bocage-codes"):
        open_compressed(source)
    with pytest.raises(StoreError, match="not a Zarr group"):
        open_compressed(tmp_path / "nothing.zarr")


def test_a_table_keeps_its_other_columns_and_its_place(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    import pyarrow.parquet as pq
    import shapely

    x = np.random.default_rng(0).normal(size=(400, 32)).astype(np.float32)
    frame = geopandas.GeoDataFrame(
        {"name": [f"chip {i}" for i in range(400)], "embedding": list(x)},
        geometry=shapely.points(np.arange(400) / 100, np.zeros(400)),
        crs="EPSG:4326",
    )
    source = tmp_path / "chips.parquet"
    frame.to_parquet(source)
    result = compress(source, tmp_path / "small.parquet", codec="int8")
    assert result.n_vectors == 400
    small = geopandas.read_parquet(tmp_path / "small.parquet")
    assert small["name"].tolist() == frame["name"].tolist()
    assert small.geometry.geom_equals(frame.geometry).all()
    codec = load_codec(tmp_path / "small.parquet.codec")
    codes = np.frombuffer(b"".join(small["code"]), np.int8).reshape(400, 32)
    np.testing.assert_array_equal(codes, codec.encode(x))
    assert b"emb" in pq.read_metadata(tmp_path / "small.parquet").metadata
    with pytest.raises(InputError, match="column 'vectors'"):
        compress(source, tmp_path / "c.parquet", embedding_column="vectors")
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="not readable Parquet"):
        compress(tmp_path / "bad.parquet", tmp_path / "c.parquet")
    assert not list(tmp_path.glob(".*partial"))


def write_table(path: Path, n_rows: int = 60_000, dims: int = 16, group_rows: int = 7000) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(3)
    x = pa.FixedSizeListArray.from_arrays(
        pa.array(rng.normal(size=n_rows * dims).astype(np.float32)), dims
    )
    names = [f"chip {i}" for i in range(n_rows)]
    pq.write_table(pa.table({"name": names, "embedding": x}), path, row_group_size=group_rows)


def bytes_beside(out: Path) -> dict[str, bytes]:
    """The table and its codec, by what follows the table's name."""
    files = [out, *sorted(Path(f"{out}.codec").iterdir())]
    return {str(f)[len(str(out)) :]: f.read_bytes() for f in files}


@pytest.mark.parametrize("name", ["pca8-int8", "binary_mean"])
def test_a_killed_table_goes_on_and_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    source, whole, killed = (tmp_path / f"{n}.parquet" for n in ("source", "whole", "killed"))
    write_table(source)
    assert compress(source, whole, codec=name).n_vectors == 60_000
    script = (
        "import sys, time\n"
        "from bocage.embeddings.codecs import compress_table as c\n"
        "write = c.write_file\n"
        "def slow(file, data):\n    write(file, data)\n    time.sleep(0.3)\n"
        "c.write_file = slow\n"
        "from bocage.embeddings.codecs.compress import compress\n"
        "compress(sys.argv[1], sys.argv[2], codec=sys.argv[3])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(source), str(killed), name])
    parts = tmp_path / ".killed.parquet.parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("0*.parquet"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9
    assert not killed.exists()
    with pytest.raises(StoreError, match="another codec"):
        compress(source, killed, codec="int8")
    with pytest.raises(StoreError, match="another seed"):
        compress(source, killed, codec=name, seed=1)
    damaged = min(parts.glob("0*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    result = compress(source, killed, codec=name)
    assert 1 <= result.n_skipped <= 3
    assert 0 < result.n_vectors < 60_000
    assert bytes_beside(killed) == bytes_beside(whole)
    assert pq.read_table(killed)["name"].to_pylist() == pq.read_table(source)["name"].to_pylist()
    assert not list(tmp_path.glob(".*"))


def test_a_finished_table_is_left_alone_and_never_overwritten(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source, out = tmp_path / "source.parquet", tmp_path / "out.parquet"
    write_table(source, n_rows=500)
    first = compress(source, out, codec="int8")
    before = out.stat().st_mtime_ns
    again = compress(source, out, codec="int8")
    assert (again.n_vectors, again.n_bytes) == (0, first.n_bytes)
    assert again.float_bytes == first.float_bytes
    assert out.stat().st_mtime_ns == before
    with pytest.raises(StoreError, match="another codec"):
        compress(source, out, codec="int4")
    write_table(source, n_rows=501)
    with pytest.raises(StoreError, match="another source"):
        compress(source, out, codec="int8")
    with pytest.raises(StoreError, match="no result of compress"):
        compress(source, source, codec="int8")


def test_a_table_at_fault_leaves_nothing_behind(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [[1.0, 2.0]] * 70_000 + [[1.0, 2.0, 3.0]]
    source = tmp_path / "ragged.parquet"
    pq.write_table(pa.table({"embedding": rows}), source, row_group_size=60_000)
    with pytest.raises(InputError, match="dimensions"):
        compress(source, tmp_path / "out.parquet", codec="float16")
    assert [f.name for f in tmp_path.iterdir()] == ["ragged.parquet"]
