import pytest
from affine import Affine
from rasterio.warp import transform

from bocage.errors import InputError
from bocage.geo import Grid, major_tom_name, northern_grid, utm_zone


def test_southern_grid_keeps_its_pixels_and_gets_negative_northing():
    # Nairobi lies south of the equator: EPSG:32737.
    south = Grid(
        crs="EPSG:32737", transform=Affine(10, 0, 250000, 0, -10, 9857000), shape_yx=(5, 7)
    )
    north = northern_grid(south)
    assert north.crs == "EPSG:32637"
    assert north.bbox == (250000, 9857000 - 50 - 1e7, 250070, 9857000 - 1e7)
    # The two CRS name the same ground: compared through PROJ.
    lon_s, lat_s = transform(south.crs, "EPSG:4326", [south.x[0]], [south.y[0]])
    lon_n, lat_n = transform(north.crs, "EPSG:4326", [north.x[0]], [north.y[0]])
    assert lon_n[0] == pytest.approx(lon_s[0], abs=1e-9)
    assert lat_n[0] == pytest.approx(lat_s[0], abs=1e-9)


@pytest.mark.parametrize(
    "crs", ["EPSG:4326", "EPSG:3035", "EPSG:32600", "EPSG:32661", "EPSG:32799"]
)
def test_what_is_not_a_utm_zone_is_refused(crs):
    with pytest.raises(InputError, match="crs='utm'"):
        utm_zone(crs)


def test_rotated_or_flipped_grids_are_refused():
    with pytest.raises(InputError, match="north-up"):
        Grid(crs="EPSG:32618", transform=Affine(10, 0, 0, 0, 10, 0), shape_yx=(1, 1))


def test_coarsened_grid_covers_the_fine_one():
    fine = Grid(crs="EPSG:32618", transform=Affine(10, 0, 600, 0, -10, 900), shape_yx=(17, 8))
    coarse = fine.coarsen(8)
    assert coarse.shape_yx == (3, 1)
    assert coarse.transform == Affine(80, 0, 600, 0, -80, 900)
    assert coarse.x[0] == 640 and coarse.y[0] == 860


@pytest.mark.parametrize(
    ("lat", "lon", "spacing", "name"),
    [
        # Computed with ESA's own grid code, as published with the specification of the grid.
        (47.6, -122.3, 10, "529U_920L"),
        (-1.29, 36.82, 10, "15D_409R"),
        (52.2, 0.12, 10, "581U_0R"),
        (-33.87, 151.2, 10, "378D_1396R"),
    ],
)
def test_major_tom_names_agree_with_esa(lat, lon, spacing, name):
    assert major_tom_name(lat, lon, spacing) == name


def test_latitude_and_longitude_swapped_is_refused():
    with pytest.raises(InputError, match="latitude, longitude"):
        major_tom_name(151.2, -33.87)
