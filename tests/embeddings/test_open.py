"""open_embeddings on our own stores: lazily, over HTTP, and when something is wrong with them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from affine import Affine

from bocage.embeddings import EmbeddingGrid, create_store, open_embeddings, write_shard
from bocage.errors import SourceError, StoreError

from .maps import decode, smooth_map, write_map


@pytest.mark.parametrize("name", ["missing.zarr", "missing.tif", "text.tif", "empty.zarr"])
def test_what_is_not_there_or_is_not_a_raster_is_one_sentence(tmp_path, name):
    (tmp_path / "text.tif").write_text("no raster")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises((SourceError, StoreError)) as caught:
        open_embeddings(tmp_path / name)
    assert name in str(caught.value)


def test_a_truncated_geotiff_is_an_error_and_not_nodata(map_cog, tmp_path):
    data = map_cog.read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"cut\.tif"):
        open_embeddings(tmp_path / "cut.tif").load()


def test_selecting_a_pixel_reads_one_chunk_and_plans_in_an_instant(tmp_path):
    x = smooth_map(8, (256, 256))
    path = write_map(tmp_path / "e.zarr", x, shard_cells=256)
    e = open_embeddings(path)
    np.testing.assert_allclose(e[0, :, 130, 7].values, x[:, 130, 7], atol=0.005)
    np.testing.assert_array_equal(e.isel(y=slice(3, 50, 7))[0].values, e.values[0, :, 3:50:7])
    np.testing.assert_array_equal(e[0, [1, 5]].values, e.values[0, [1, 5]])
    np.testing.assert_array_equal(e[..., ::-1].values, e.values[..., ::-1])


def test_a_whole_zone_of_the_public_archive_opens_and_gives_a_pixel_at_once(tmp_path):
    """Its real size, 9 years of 856,064 x 69,632 cells: select first, then read one chunk."""
    grid = EmbeddingGrid(
        crs="EPSG:32630",
        transform=Affine(10, 0, 167_130, 0, -10, 6_765_170),
        shape_yx=(856_064, 69_632),
        dims=8,
        years=tuple(range(2017, 2026)),
    )
    path = create_store(tmp_path / "zone.zarr", grid)
    x = np.full((8, 2048, 2048), np.nan, np.float32)
    x[:, 100:140, 20:60] = smooth_map(8, (40, 40))
    write_shard(path, grid, 2025, 100, 10, x)
    start = time.perf_counter()
    e = open_embeddings(path)
    assert e.shape == (9, 8, 856_064, 69_632)
    area = e.sel(time=2025).isel(y=slice(204_900, 204_940), x=slice(20_500, 20_540))
    np.testing.assert_allclose(area.values, x[:, 100:140, 20:60], atol=0.01)
    pixel = e.sel(time=2025, y=float(e.y[204_905]), x=float(e.x[20_503]))
    np.testing.assert_allclose(pixel.values, x[:, 105, 23], atol=0.01)
    np.testing.assert_array_equal(area[:, ::-2, [3, 1]].values, area.values[:, ::-2, [3, 1]])
    np.testing.assert_allclose(
        area.chunk(x=16).mean("x"), np.nanmean(area.values, axis=2), atol=1e-6
    )
    assert time.perf_counter() - start < 10


def test_xarray_alone_reads_our_store(map_store):
    """Others open it without us: dimensions, coordinates and codes are where xarray looks."""
    dataset = xr.open_zarr(map_store, group="utm18", chunks=None)
    assert dataset.embeddings.dims == ("time", "band", "y", "x")
    assert dataset.embeddings.dtype == np.int8
    np.testing.assert_allclose(
        decode(dataset.embeddings.values), open_embeddings(map_store), atol=1e-6
    )
    np.testing.assert_array_equal(dataset.y, open_embeddings(map_store).y)


@pytest.fixture
def serve():
    processes = []

    def start(folder):
        program = Path(__file__).with_name("range_server.py")
        process = subprocess.Popen(
            [sys.executable, program, folder], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return f"http://127.0.0.1:{int(process.stdout.readline())}"

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_store_and_cog_over_http(map_store, map_cog, serve):
    pytest.importorskip("obstore")
    here = open_embeddings(map_store)
    there = open_embeddings(f"{serve(map_store.parent)}/{map_store.name}")
    np.testing.assert_array_equal(there[0, :, 100:140, 50], here[0, :, 100:140, 50])
    remote = open_embeddings(f"{serve(map_cog.parent)}/{map_cog.name}")
    np.testing.assert_array_equal(remote[0, :, 100:140, 50], here[0, :, 100:140, 50])
    with pytest.raises(SourceError, match="nothing"):
        open_embeddings(f"{serve(map_store.parent)}/nothing.zarr")


def test_a_damaged_shard_is_an_error_and_not_nodata(tmp_path):
    """Cut off, and rotten in the middle: zstd alone would decode some rot to other numbers."""
    path = write_map(tmp_path / "e.zarr", smooth_map(3, (64, 64)))
    shard = path / "utm18/embeddings/c/0/0/0/0"
    data = shard.read_bytes()
    for spoil in (slice(len(data) // 2, None), slice(1000, 1400), slice(5000, 5001)):
        bad = bytearray(data)
        bad[spoil] = b"" if spoil.stop is None else bytes(spoil.stop - spoil.start)
        shard.write_bytes(bad)
        with pytest.raises(SourceError, match="unreadable"):
            open_embeddings(path).load()
