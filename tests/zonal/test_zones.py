"""What a file of zones may leave open, and what it may not."""

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import Geod

from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.geo import Grid
from bocage.zonal.zones import read_zones
from tests.zonal.conftest import CRS, TRANSFORM, frame, square

GRID = Grid(crs=CRS, transform=TRANSFORM, shape_yx=(50, 60))


def test_every_format_gives_the_same_zones(tmp_path):
    shapes = frame([square(0, 0, 3, 3), square(9, 9, 2, 5)])
    for name in ("z.parquet", "z.gpkg", "z.geojson", "z.shp"):
        path = tmp_path / name
        if name == "z.parquet":
            shapes.to_parquet(path, write_covering_bbox=True)
        else:
            shapes.to_file(path)
        zones = read_zones(path)
        assert zones.ids == ["z0", "z1"]
        assert set(zones.frame.columns) == {"id", "geometry"}
        found = zones.on_cells(GRID)
        np.testing.assert_allclose(shapely.area(found), [9, 10], rtol=1e-4)  # GeoJSON: 7 digits


def test_another_crs_lands_on_the_same_cells():
    shape = square(10, 10, 20, 30)
    # A long side of a box in degrees is no straight line in UTM, and the other way round.
    far = frame([shape.segmentize(5)]).to_crs(4326)
    found = read_zones(far).on_cells(GRID)[0]
    assert found.symmetric_difference(shapely.box(10, 10, 30, 40)).area < 1e-4


def test_a_box_in_degrees_follows_its_parallels():
    """Corners alone would put the middle of a side of 3 degrees 900 m off in UTM."""
    from affine import Affine

    grid = Grid(crs="EPSG:32632", transform=Affine(100, 0, 300_000, 0, -100, 6_700_000),
                shape_yx=(2500, 4000))  # fmt: skip
    box = shapely.box(7.5, 59, 10.5, 60)
    found = read_zones(frame([box], 4326)).on_cells(grid)[0]
    truth = shapely.transform(
        geopandas.GeoSeries([box.segmentize(1e-4)], crs=4326).to_crs(32632)[0],
        lambda xy: np.stack((~grid.transform) @ tuple(xy.T), axis=1),
    )
    assert found.symmetric_difference(truth).area / truth.area < 1e-6


def test_a_zone_of_the_whole_earth_has_finite_coordinates():
    found = read_zones(frame([shapely.box(-180, -90, 180, 90)], 4326)).on_cells(GRID)[0]
    assert found.covers(shapely.box(0, 0, 60, 50))
    assert np.isfinite(found.bounds).all()


def test_areas_are_those_of_new_york(data, tmp_path):
    import zipfile

    with zipfile.ZipFile(data / "vectors" / "nybb_16a.zip") as file:
        file.extractall(tmp_path)
    zones = read_zones(tmp_path / "nybb_16a" / "nybb.shp", id_column="BoroName")
    # The city's own areas, in square feet of a projection that is true within 1 in 10,000 here.
    square_feet = np.asarray(zones.frame["Shape_Area"])
    np.testing.assert_allclose(zones.hectares(), square_feet * 0.3048006096**2 / 1e4, rtol=2e-4)


def test_holes_count_out_whichever_way_they_run():
    outer = [(7, 45), (7.1, 45), (7.1, 45.1), (7, 45.1)]
    hole = [(7.02, 45.02), (7.04, 45.02), (7.04, 45.04), (7.02, 45.04)]
    one, other = shapely.Polygon(outer, [hole]), shapely.Polygon(outer, [hole[::-1]])
    alone = shapely.Polygon(hole)
    whole, a, b, cut = read_zones(
        frame([shapely.Polygon(outer), one, other, alone], 4326)
    ).hectares()
    assert a == b == pytest.approx(whole - cut)


def test_a_bow_tie_is_repaired_and_named():
    bow = shapely.Polygon([TRANSFORM @ p for p in [(0, 0), (4, 4), (4, 0), (0, 4)]])
    with pytest.warns(BocageWarning, match=r"1 invalid polygons were repaired \(z1\)"):
        zones = read_zones(frame([square(0, 0, 2, 2), bow]))
    assert shapely.area(zones.on_cells(GRID))[1] == pytest.approx(8)


def test_zones_without_shape_or_area_stay():
    empty = shapely.Polygon()
    sliver = shapely.Polygon([TRANSFORM @ p for p in [(0, 0), (4, 4), (0, 0)]])
    zones = read_zones(frame([None, empty, square(0, 0, 1, 1), sliver]))
    assert [s is None for s in zones.on_cells(GRID)] == [True, True, False, True]
    assert zones.hectares()[[0, 1, 3]].tolist() == [0, 0, 0]


def test_rows_are_numbered_where_nothing_names_them():
    assert read_zones(frame([square(0, 0, 1, 1)] * 2, zone=["a", "a"])).id_column == "zone_row"
    assert read_zones(frame([square(0, 0, 1, 1)] * 2, name=["a", "a"])).ids == ["0", "1"]
    assert read_zones(frame([square(0, 0, 1, 1)] * 2, ID=[7, 8])).ids == ["7", "8"]


@pytest.mark.parametrize(
    ("zones", "options", "words"),
    [
        (frame([square(0, 0, 1, 1)] * 3, id=["a", "b", "a"]), {}, "occur more than once .a.;"),
        (frame([square(0, 0, 1, 1)] * 2, id=[1, "1"]), {}, "occur more than once .1.;"),
        (frame([square(0, 0, 1, 1)] * 2, id=["a", None]), {}, "1 of 2 values of 'id' missing"),
        (frame([square(0, 0, 1, 1)]), {"id_column": "gid"}, "without the column 'gid'.*id"),
        (frame([shapely.Point(1, 1)]), {}, "no polygons .Point: z0"),
        (frame([square(0, 0, 1, 1)], crs=None), {}, "without a CRS"),
        (frame([square(0, 0, 1, 1)], crs=4326), {}, "says EPSG:4326 and has coordinates from 7"),
        (frame([]), {}, "without a single zone"),
        (frame([shapely.Polygon([(0, 0), (np.inf, 0), (0, 1)])]), {}, "not finite .z0"),
    ],
)
def test_open_questions_are_refused(zones, options, words):
    with pytest.raises(InputError, match=words):
        read_zones(zones, **options)


def test_files_that_are_none(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        read_zones(tmp_path / "no.gpkg")
    (tmp_path / "half.parquet").write_bytes(b"PAR1nothing")
    with pytest.raises(SourceError, match=r"half.parquet"):
        read_zones(tmp_path / "half.parquet")
    (tmp_path / "table.csv").write_text("id,name\n1,a\n")
    with pytest.raises(InputError, match="table without shapes"):
        read_zones(tmp_path / "table.csv")


def test_the_area_of_the_earth_and_of_a_collection():
    line = shapely.LineString([(0, 0), (9, 9)])
    with pytest.warns(BocageWarning, match=r"repaired \(z1\)"):
        zones = read_zones(
            frame(
                [
                    shapely.box(-180, -90, 180, 90),
                    shapely.GeometryCollection([line, shapely.box(0, 0, 1, 1)]),
                ],
                4326,
            )
        )
    assert zones.hectares()[0] / 100 == pytest.approx(510_065_621.7, rel=1e-9)
    fine = shapely.box(0, 0, 1, 1).segmentize(1e-3)  # geodesics, along the parallel
    geodesic = abs(Geod(ellps="WGS84").geometry_area_perimeter(fine)[0]) / 1e4
    assert zones.hectares()[1] == pytest.approx(geodesic, rel=1e-8)


def test_one_column_of_shapes_counts():
    zones = frame([square(0, 0, 1, 1)])
    zones["center"] = zones.centroid
    with pytest.warns(BocageWarning, match="other shapes in center, which are left out"):
        assert set(read_zones(zones).frame.columns) == {"id", "geometry"}
    doubled = geopandas.pd.concat([frame([square(0, 0, 1, 1)]), zones[["id"]]], axis=1)
    with pytest.raises(InputError, match="several columns id"):
        read_zones(doubled)


def test_a_series_of_shapes_will_do_and_a_list_has_no_crs():
    shapes = [square(0, 0, 1, 1), square(1, 1, 1, 1)]
    assert read_zones(geopandas.GeoSeries(shapes, crs=CRS)).ids == ["0", "1"]
    with pytest.raises(ConfigError, match="GeoDataFrame with its CRS"):
        read_zones(shapes)


def test_a_crs_that_is_nowhere():
    local = 'LOCAL_CS["yard",UNIT["metre",1]]'
    with pytest.raises(InputError, match="in yard, from which no way leads to EPSG:32643"):
        read_zones(frame([square(0, 0, 1, 1)], local)).on_cells(GRID)
