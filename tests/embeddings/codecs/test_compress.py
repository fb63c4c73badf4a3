"""Grids and tables become codes and come back; a killed run goes on."""

from __future__ import annotations

import os
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
    while len(list((killed / "done").rglob("c/*"))) < 3:
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
