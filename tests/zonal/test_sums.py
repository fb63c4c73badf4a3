"""How a map is walked: which tiles are read, how often, and how many at a time."""

import threading
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from bocage import zonal_statistics
from bocage.errors import SourceError
from bocage.zonal import ZonalConfig
from bocage.zonal.opening import open_layers
from bocage.zonal.sums import add_up, plan_walk, tile_side
from bocage.zonal.zones import read_zones
from tests.change.conftest import write_store
from tests.zonal.conftest import TRANSFORM, blobs, frame, square, write_raster


@pytest.fixture
def store(tmp_path):
    x = np.random.default_rng(0).normal(0, 1, (6, 90, 90)).astype(np.float32)
    return write_store(tmp_path / "s.zarr", [x, x + 1], (2020, 2021), transform=TRANSFORM)


def test_only_tiles_under_zones_are_read(store):
    layers = open_layers(store)
    zones = read_zones(frame([square(5, 5, 20, 3), square(71, 71, 5, 5)]))
    config = ZonalConfig(tile_cells=10)
    walk = plan_walk(layers, zones.on_cells(layers.grid), config)
    assert [(r.start, c.start) for r, c in walk.tiles] == [(0, 0), (0, 10), (0, 20), (70, 70)]
    assert walk.n_reads == 4 * 2
    config = ZonalConfig(tile_cells=10, stats="mean,median")
    assert plan_walk(layers, zones.on_cells(layers.grid), config).n_reads == 4 * 2 * 5


def test_tiles_shrink_with_dimensions_and_years_that_are_joined(store):
    layers = open_layers(store)
    assert tile_side(layers, ZonalConfig()) == 1024
    wide = type(layers)(**{**vars(layers), "features": ("a",) * 128})
    assert tile_side(wide, ZonalConfig()) == 256
    assert tile_side(wide, ZonalConfig(deltas=True)) == 256
    years = type(layers)(**{**vars(wide), "years": tuple(range(2016, 2026))})
    assert tile_side(years, ZonalConfig(deltas=True)) == 64


@pytest.mark.parametrize(("n_ahead", "most"), [(0, 1), (3, 3)])
def test_so_many_tiles_are_read_at_a_time(store, n_ahead, most):
    lock, active, seen = threading.Lock(), [], []
    layers = open_layers(store)

    def read(year, rows, cols):
        with lock:
            active.append(rows)
            seen.append(len(active))
        time.sleep(0.03)
        with lock:
            active.remove(rows)
        return layers.read(year, rows, cols)

    slow = replace(layers, read=read, n_ahead=n_ahead)
    zones = read_zones(frame(blobs(12, (90, 90))))
    config = ZonalConfig(tile_cells=30, stats="mean")
    walk = plan_walk(slow, zones.on_cells(layers.grid), config)
    found, on_map = add_up(walk, config, lambda _: None)
    assert max(seen) == most
    expected, same = add_up(replace(walk, layers=layers), config, lambda _: None)
    np.testing.assert_array_equal(on_map, same)
    for year, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(year.stats["mean"], other.stats["mean"])


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.parametrize("deltas", [False, True])
def test_a_remote_store_is_read_ahead_with_the_same_result(store, deltas):
    zones = frame(blobs(12, (90, 90)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(store.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        uri = f"http://127.0.0.1:{server.server_port}/s.zarr"
        assert open_layers(uri).n_ahead > open_layers(store).n_ahead == 0
        options = {"tile_cells": 30, "deltas": deltas, "stats": "mean,std"}
        remote = zonal_statistics(uri, zones, **options).table
    finally:
        server.shutdown()
    assert remote.equals(zonal_statistics(store, zones, **options).table)


def test_a_damaged_map_is_an_error_and_not_nodata(tmp_path):
    x = np.random.default_rng(0).normal(0, 1, (1, 600, 600)).astype(np.float32)
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "zstd"}
    path = write_raster(tmp_path / "v.tif", x, **options)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"v.tif, unreadable at rows"):
        zonal_statistics(path, frame([square(0, 0, 600, 600)]), out=tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()
