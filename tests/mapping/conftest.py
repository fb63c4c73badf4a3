"""Small real files and models of closed form, so that a map can be known in advance."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from bocage import open_stack
from bocage.sensors import SENTINEL2_L2A


class PatchMean:
    """Each cell is the mean of its own pixels; windows cannot matter."""

    name = "patch-mean"
    weights_id = "none"
    precision = "fp32"

    def dims(self, output="auto"):
        return 12

    def tokens_per_cell(self, sensor):
        return 1

    def value_scale(self, output="auto"):
        return 1.0

    def window_encoder(self, *, patch_size, output="auto", location_query_patch_size=None):
        def encode(values, timestamps):
            x = values["sentinel2_l2a"].mean(axis=1) / 10000  # [B, C, H, W]
            b, c, h, w = x.shape
            cells = x.reshape(b, c, h // patch_size, patch_size, w // patch_size, patch_size)
            return cells.mean(axis=(3, 5)).transpose(0, 2, 3, 1).astype(np.float32)

        return encode


class WindowMean(PatchMean):
    """Each cell also knows the mean of its whole window, as global attention does."""

    name = "window-mean"

    def window_encoder(self, *, patch_size, output="auto", location_query_patch_size=None):
        local = super().window_encoder(patch_size=patch_size)

        def encode(values, timestamps):
            x = local(values, timestamps)
            return x + np.nan_to_num(np.nanmean(x, axis=(1, 2), keepdims=True))

        return encode


def write_scene(folder, shape_yx, *, seed=0, missing=None, crs="EPSG:32632"):
    """A 12-band Sentinel-2 GeoTIFF of smooth noise; ``missing`` is a pair of slices of nodata."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(300, 4000, (12, shape_yx[0] // 8 + 2, shape_yx[1] // 8 + 2))
    x = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, : shape_yx[0], : shape_yx[1]]
    x = (x + rng.uniform(0, 200, x.shape)).astype(np.uint16)
    if missing is not None:
        x[(slice(None), *missing)] = 0
    path = folder / "S2_20240701.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=12,
        height=shape_yx[0],
        width=shape_yx[1],
        dtype="uint16",
        crs=crs,
        transform=Affine(10, 0, 500000, 0, -10, 5000000),
        nodata=0,
    ) as sink:
        sink.write(x)
        for i, band in enumerate(SENTINEL2_L2A.band_names):
            sink.set_band_description(i + 1, band)
    return path, x.astype(np.float32)


@pytest.fixture
def scene(tmp_path):
    path, x = write_scene(tmp_path, (203, 147))
    return open_stack(path), x
