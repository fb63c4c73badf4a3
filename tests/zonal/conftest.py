"""Maps and zones whose answers are known without the code under test."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

ROOT = Path(__file__).parents[2]
TRANSFORM = Affine(10, 0, 700_000, 0, -10, 3_200_000)
CRS = "EPSG:32643"


@pytest.fixture(scope="session")
def data():
    folder = Path(os.environ.get("BOCAGE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found in {folder}; set BOCAGE_DATA")
    return folder


def square(left, top, width, height):
    """A rectangle given in cells of TRANSFORM from the upper left corner, in the map's CRS."""
    west, north = TRANSFORM @ (left, top)
    east, south = TRANSFORM @ (left + width, top + height)
    return shapely.box(west, south, east, north)


def frame(shapes, crs=CRS, **columns):
    import geopandas

    columns = columns or {"id": [f"z{i}" for i in range(len(shapes))]}
    return geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)


def write_raster(path, x, *, nodata=None, transform=TRANSFORM, crs=CRS, tags=None, **options):
    """A GeoTIFF of bands [C, h, w]."""
    scales = options.pop("scales", None)
    colors = options.pop("colors", None)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(x), height=x.shape[1], width=x.shape[2],
        dtype=x.dtype, crs=crs, transform=transform, nodata=nodata, **options,
    ) as file:  # fmt: skip
        file.write(x)
        file.update_tags(**(tags or {}))
        if scales:
            file.scales = scales
        if colors:
            file.write_colormap(1, colors)
    return path


def exact_shares(shape, shape_yx, transform=TRANSFORM):
    """Share of every cell [h, w] under a shape, by intersecting it with each cell's square."""
    rows, cols = np.mgrid[: shape_yx[0], : shape_yx[1]]
    x0, y0 = transform @ (cols, rows)
    x1, y1 = transform @ (cols + 1, rows + 1)
    cells = shapely.box(x0, y1, x1, y0)
    return shapely.area(shapely.intersection(cells, shape)) / (x1 - x0) / (y0 - y1)


def blobs(n, shape_yx, seed=0):
    """Polygons with holes and parts over the map and beyond its borders, in the map's CRS."""
    rng = np.random.default_rng(seed)
    shapes = []
    for i in range(n):
        angle = np.sort(rng.random(rng.integers(3, 30))) * 2 * np.pi
        radius = rng.uniform(0.3, 1, len(angle)) * rng.choice([0.4, 4, 25])
        center = rng.uniform(-5, np.array(shape_yx[::-1]) + 5)
        ring = center + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        shape = shapely.make_valid(shapely.Polygon(np.stack(TRANSFORM @ tuple(ring.T), axis=1)))
        if i % 3 == 0:
            shape = shape.difference(square(center[0] - 0.7, center[1] - 0.9, 2.3, 1.1))
        if i % 4 == 0:
            shape = shape.union(square(*(center + 6), 2.5, 0.4))
        shapes.append(shape)
    return shapes
