"""A small scene on disk whose near infrared says what lies where, and labels on it."""

import json

import numpy as np
import rasterio
from affine import Affine
from pyproj import Transformer

from bocage.sensors import SENTINEL2_L2A

CRS = "EPSG:32632"
SHAPE_YX = (200, 232)
WEST, NORTH = 500_000, 5_000_000
TRANSFORM = Affine(10, 0, WEST, 0, -10, NORTH)
HOLE = (slice(96, 128), slice(64, 96))
"""Without data."""


def truth():
    """Class of each pixel: fields of 8 px, 0 or 1."""
    fields = np.random.default_rng(3).integers(0, 2, (SHAPE_YX[0] // 8, SHAPE_YX[1] // 8))
    return fields.repeat(8, 0).repeat(8, 1)


def write_scene(folder):
    """A folder with one GeoTIFF of 12 bands."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    x = rng.uniform(100, 1500, (12, *SHAPE_YX))
    x[3] += 3000 * truth()
    x[:, HOLE[0], HOLE[1]] = 0
    with rasterio.open(
        folder / "S2_20240701.tif", "w", driver="GTiff", count=12, height=SHAPE_YX[0],
        width=SHAPE_YX[1], dtype="uint16", crs=CRS, transform=TRANSFORM, nodata=0,
    ) as file:  # fmt: skip
        file.write(x.astype(np.uint16))
        for i, band in enumerate(SENTINEL2_L2A.band_names, start=1):
            file.set_band_description(i, band)
    return folder


def write_bare(path, scene):
    """The scene as one file that says nothing: reflectance, bands the other way round."""
    with rasterio.open(scene / "S2_20240701.tif") as file:
        x, profile = file.read().astype(np.float32), file.profile
    x[x == 0] = np.nan
    profile.update(dtype="float32", nodata=np.nan)
    with rasterio.open(path, "w", **profile) as file:
        file.write(x[::-1] / 10000)
    return path


BARE = (
    "--sensor", "sentinel2_l2a", "--bands", ",".join(SENTINEL2_L2A.band_names[::-1]),
    "--scale", 10000, "--date", "2024-07-01",
)  # fmt: skip
"""Options that say it."""


def write_mask(path, values=None):
    """A raster of labels: 10 and 20, 255 where nobody knows."""
    if values is None:
        values = np.where(truth() == 1, 20, 10).astype(np.uint8)
        values[:, 200:] = 255
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=values.shape[0], width=values.shape[1],
        dtype=values.dtype, crs=CRS, transform=TRANSFORM, nodata=255,
    ) as file:  # fmt: skip
        file.write(values, 1)
    return path


def cells(n=60, seed=0):
    """Pixels with data, row and column [n]."""
    rng = np.random.default_rng(seed)
    row, col = rng.integers(0, SHAPE_YX[0], 4 * n), rng.integers(0, SHAPE_YX[1], 4 * n)
    hole = (row >= 90) & (row < 134) & (col >= 58) & (col < 102)
    _, first = np.unique(row * 1000 + col, return_index=True)
    first = np.sort(first)  # as drawn, from everywhere
    keep = first[~hole[first]][:n]
    return row[keep], col[keep]


def write_points(path, row, col, properties):
    """GeoJSON points, in degrees, at the middle of pixels."""
    to_degrees = Transformer.from_crs(CRS, "EPSG:4326", always_xy=True)
    x, y = TRANSFORM @ (np.asarray(col) + 0.5, np.asarray(row) + 0.5)
    lon, lat = to_degrees.transform(x, y)
    features = [
        {
            "type": "Feature",
            "properties": {name: values[i] for name, values in properties.items()},
            "geometry": {"type": "Point", "coordinates": [lon[i], lat[i]]},
        }
        for i in range(len(lon))
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path
