"""Two years of small embeddings with a change in a known place, and the real pair of images."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from bocage.embeddings import EmbeddingGrid, create_store, write_shard

ROOT = Path(__file__).parents[2]
CHANGED = (slice(60, 95), slice(40, 85))
"""Rows and columns that differ between the two years."""


@pytest.fixture(scope="session")
def taizhou():
    folder = Path(os.environ.get("BOCAGE_DATA", ROOT.parent / "shared" / "data"))
    folder = folder / "landsat_change_taizhou" / "Taizhou"
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder}; set BOCAGE_DATA")
    return folder


@pytest.fixture(scope="session")
def years():
    """Embeddings [D, h, w] of two years: noise, a shift of everything, and one changed area."""
    rng = np.random.default_rng(0)
    dims, shape = 12, (147, 133)
    rows, cols = np.mgrid[: shape[0], : shape[1]]
    fields = rng.normal(0, 1, (dims, 9, 9))
    before = fields[:, rows // 17, cols // 15] + rng.normal(0, 0.1, (dims, *shape))
    after = before + rng.normal(0, 0.1, (dims, *shape)) + 0.2
    after[:, CHANGED[0], CHANGED[1]] += rng.normal(0, 1.5, (dims, 1, 1))
    before[:, 3:9, 100:120] = np.nan
    after[:, 100:110, 5:20] = np.nan
    return before.astype(np.float32), after.astype(np.float32)


def write_store(path, arrays, year_list, **changes):
    """A float32 store with one array [D, h, w] per year."""
    options = {
        "crs": "EPSG:32643",
        "transform": Affine(40, 0, 700_000, 0, -40, 3_200_000),
        "codec": "float32",
        "model": "olmoearth-v1.2-nano",
        "patch_size": 4,
        "shard_cells": 64,
        "attrs": {"weights_id": "random:0"},
    } | changes
    first = arrays[0]
    grid = EmbeddingGrid(shape_yx=first.shape[1:], dims=len(first), years=year_list, **options)
    create_store(path, grid)
    side = grid.shard_cells
    for year, x in zip(year_list, arrays, strict=True):
        for i, j in np.ndindex(*grid.shards_yx):
            part = x[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
            write_shard(path, grid, year, i, j, part)
    return path


@pytest.fixture
def stores(tmp_path, years):
    return [
        write_store(tmp_path / f"{year}.zarr", [x], (year,))
        for year, x in zip((2024, 2025), years, strict=True)
    ]


def write_bands(path, x, *, transform=None, crs="EPSG:32643", names=None, nodata=None):
    """A float32 GeoTIFF of bands [C, h, w]."""
    with rasterio.open(
        path, "w", driver="GTiff", count=len(x), height=x.shape[1], width=x.shape[2],
        dtype=x.dtype, crs=crs, nodata=nodata,
        transform=transform or Affine(10, 0, 700_000, 0, -10, 3_200_000),
    ) as file:  # fmt: skip
        file.write(x)
        for i, name in enumerate(names or [f"B{i}" for i in range(len(x))], start=1):
            file.set_band_description(i, name)
    return path
