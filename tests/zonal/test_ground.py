"""Areas of cells against geodesic polygons of pyproj."""

import numpy as np
import pytest
from affine import Affine
from pyproj import Geod, Transformer

from bocage.geo import Grid
from bocage.zonal.ground import Ground

GRIDS = [
    Grid(crs="EPSG:32643", transform=Affine(10, 0, 180_000, 0, -10, 7_000_000),
         shape_yx=(300, 500)),
    Grid(crs="EPSG:3857", transform=Affine(40, 0, 1_000_000, 0, -40, 9_000_000),
         shape_yx=(300, 300)),
    Grid(crs="EPSG:4326", transform=Affine(0.01, 0, 20, 0, -0.01, 70), shape_yx=(300, 300)),
    Grid(crs="EPSG:3035", transform=Affine(100, 0, 4_300_000, 0, -100, 3_000_000),
         shape_yx=(300, 300)),
]  # fmt: skip


def geodesic_ha(grid, row, col, n=40):
    """Area of one cell, whose sides are followed in n pieces."""
    s = np.linspace(0, 1, n)
    x = np.concatenate([col + s, np.full(n, col + 1), col + 1 - s, np.full(n, col)])
    y = np.concatenate([np.full(n, row), row + s, np.full(n, row + 1), row + 1 - s])
    x, y = grid.transform @ (x, y)
    to_degrees = Transformer.from_crs(grid.crs, 4326, always_xy=True)
    lon, lat = to_degrees.transform(x, y)
    return abs(Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0]) / 1e4


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.crs)
def test_cells_have_their_geodesic_area(grid):
    h, w = grid.shape_yx
    found = Ground(grid).of_tile(slice(0, h), slice(0, w)).reshape(h, w)
    for row, col in [(0, 0), (h - 1, w - 1), (137, 41), (64, 128), (200, w - 3)]:
        assert found[row, col] == pytest.approx(geodesic_ha(grid, row, col), rel=2e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.crs)
def test_a_cell_has_the_same_area_in_every_tile(grid):
    ground = Ground(grid)
    whole = ground.of_tile(slice(0, 300), slice(0, 300)).reshape(300, 300)
    for rows, cols in [(slice(5, 130), slice(63, 65)), (slice(128, 129), slice(0, 300))]:
        part = ground.of_tile(rows, cols).reshape(rows.stop - rows.start, -1)
        np.testing.assert_allclose(part, whole[rows, cols], rtol=1e-13)


def test_a_map_of_the_earth_has_the_area_of_the_earth():
    grid = Grid(crs="EPSG:4326", transform=Affine(1, 0, -180, 0, -1, 90), shape_yx=(180, 360))
    found = Ground(grid).of_tile(slice(0, 180), slice(0, 360)).sum()
    assert found / 100 == pytest.approx(510_065_621.7, rel=1e-9)  # km2 of the WGS 84 ellipsoid
