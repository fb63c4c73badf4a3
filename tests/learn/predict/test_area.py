"""Areas of cells against the ellipsoid, in projections that stretch and in degrees."""

import numpy as np
import pytest
from affine import Affine
from pyproj import Geod, Transformer
from shapely.geometry import Polygon

from bocage.geo import Grid
from bocage.learn.predict.area import AreaTable, CellAreas
from bocage.learn.predict.legend import Legend

GEOD = Geod(ellps="WGS84")
GRIDS = {
    "UTM, at the edge of a zone": Grid(
        crs="EPSG:32632", transform=Affine(10, 0, 166_000, 0, -10, 5_000_000), shape_yx=(400, 300)
    ),
    "Web Mercator at 60 degrees": Grid(
        crs="EPSG:3857", transform=Affine(20, 0, 1e6, 0, -20, 8.4e6), shape_yx=(300, 300)
    ),
    "degrees, a continent": Grid(
        crs="EPSG:4326", transform=Affine(0.1, 0, 10, 0, -0.1, 50), shape_yx=(400, 300)
    ),
    "southern UTM": Grid(
        crs="EPSG:32718", transform=Affine(40, 0, 500_000, 0, -40, 8_700_000), shape_yx=(99, 99)
    ),
}


def on_the_ellipsoid(grid, row, col):
    """km2 of one cell, with points along its sides."""
    t = grid.transform
    ring = [t @ (col + x, row + y) for x, y in [(0, 0), (1, 0), (1, 1), (0, 1)]]
    to_degrees = Transformer.from_crs(grid.crs, 4326, always_xy=True)
    dense = np.concatenate(
        [
            np.linspace(a, b, 20, endpoint=False)
            for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)
        ]
    )
    lon, lat = to_degrees.transform(dense[:, 0], dense[:, 1])
    return abs(GEOD.geometry_area_perimeter(Polygon(zip(lon, lat, strict=True)))[0]) / 1e6


@pytest.mark.parametrize("name", GRIDS)
def test_cells_have_their_area_on_the_ellipsoid(name):
    grid = GRIDS[name]
    areas = CellAreas(grid)
    found = areas.of_rows(slice(0, grid.shape_yx[0]), slice(0, grid.shape_yx[1]))
    middle = grid.shape_yx[1] // 2
    for row in (0, 50, grid.shape_yx[0] - 1):
        want = on_the_ellipsoid(grid, row, middle)
        assert found[row] == pytest.approx(want, rel=2e-5)


def test_web_mercator_at_60_degrees_is_four_times_too_large():
    grid = GRIDS["Web Mercator at 60 degrees"]
    found = CellAreas(grid).of_rows(slice(0, 300), slice(0, 300))
    assert 3.9 < 20 * 20 / 1e6 / found.mean() < 4.2


def test_a_table_adds_up_over_tiles_and_does_not_count_nodata():
    grid = GRIDS["UTM, at the edge of a zone"]
    legend = Legend.of([{"value": 1, "name": "a"}, {"value": 4, "name": "b"}])
    codes = np.random.default_rng(0).choice([1, 4, 255], (400, 300), p=[0.5, 0.3, 0.2])
    whole, parts = (AreaTable(legend=legend, areas=CellAreas(grid)) for _ in range(2))
    whole.add(slice(0, 400), slice(0, 300), codes)
    for r in (0, 200):
        for c in (0, 150):
            rows, cols = slice(r, r + 200), slice(c, c + 150)
            parts.add(rows, cols, codes[rows, cols])
    for a, b, value in zip(whole.rows(), parts.rows(), (1, 4), strict=True):
        assert a["cells"] == b["cells"] == (codes == value).sum()
        assert a["km2"] == pytest.approx(b["km2"], rel=1e-5)
