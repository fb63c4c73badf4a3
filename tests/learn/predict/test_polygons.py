"""Polygons of a class map: made in pieces, the same as made at once."""

import json

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Geod
from rasterio.features import shapes

from bocage.errors import ConfigError, InputError
from bocage.learn.predict import layer, predict
from bocage.learn.predict.legend import Legend
from bocage.learn.predict.polygons import write_polygons

from .conftest import CLASSES, Softmax


@pytest.fixture
def class_map(tmp_path, embeddings):
    predict(embeddings, Softmax(6), out=tmp_path / "map.tif", probability=False, picture=False)
    return tmp_path / "map.tif"


def at_once(path):
    with rasterio.open(path) as file:
        codes = file.read(1)
        found = shapes(codes, mask=codes != 255, connectivity=4, transform=file.transform)
        return [(shapely.geometry.shape(g).normalize(), int(v)) for g, v in found]


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet"])
def test_polygons_in_pieces_are_those_of_the_whole_map(tmp_path, class_map, monkeypatch, suffix):
    monkeypatch.setattr(layer, "TILE_CELLS", 64)  # a hundred tiles instead of four
    path = tmp_path / f"areas{suffix}"
    n = write_polygons(class_map, path, Legend.of(CLASSES))
    frame = gpd.read_parquet(path) if suffix == ".parquet" else gpd.read_file(path)
    want = at_once(class_map)
    assert n == len(frame) == len(want)
    if suffix == ".geojson":
        # In degrees, rounded, whatever the CRS of the map: web maps read nothing else.
        assert "crs" not in json.loads(path.read_text())
        assert -180 <= frame.total_bounds[0] < frame.total_bounds[2] <= 180
        moved = frame.to_crs(32618)
        assert moved.area.sum() == pytest.approx(sum(g.area for g, _ in want), rel=1e-4)
        places = shapely.get_coordinates([shapely.centroid(g) for g, _ in want])
        found = shapely.get_coordinates(shapely.centroid(moved.geometry.values))
        assert np.abs(np.sort(found, axis=0) - np.sort(places, axis=0)).max() < 0.1
        return
    found = {(g.normalize().wkb, v) for g, v in zip(frame.geometry, frame["value"], strict=True)}
    assert found == {(g.wkb, v) for g, v in want}
    names = dict(zip(frame["value"], frame["class"], strict=True))
    assert names == {c["value"]: c["name"] for c in CLASSES if c["value"] in names}


def test_polygon_areas_are_those_on_the_ellipsoid(tmp_path, class_map):
    write_polygons(class_map, tmp_path / "areas.gpkg", Legend.of(CLASSES), min_cells=50)
    frame = gpd.read_file(tmp_path / "areas.gpkg")
    geod = Geod(ellps="WGS84")
    dense = frame.geometry.segmentize(20).to_crs(4326)
    for geometry, km2 in zip(dense[:12], frame["km2"][:12], strict=True):
        assert km2 == pytest.approx(abs(geod.geometry_area_perimeter(geometry)[0]) / 1e6, rel=1e-6)


def test_small_ones_and_other_classes_are_left_out(tmp_path, class_map):
    path = tmp_path / "areas.gpkg"
    write_polygons(class_map, path, Legend.of(CLASSES), min_cells=30, classes=(7,))
    frame = gpd.read_file(path)
    want = [g for g, v in at_once(class_map) if v == 7 and g.area >= 30 * 1600]
    assert len(frame) == len(want) and set(frame["value"]) == {7}
    with pytest.raises(InputError, match="no polygon of at least 900000"):
        write_polygons(class_map, path, Legend.of(CLASSES), min_cells=900_000)


def test_polygons_come_with_the_map_and_only_where_a_cell_has_one_class(tmp_path, embeddings):
    from .conftest import Slope

    out = tmp_path / "areas.parquet"
    result = predict(
        embeddings, Softmax(6), out=tmp_path / "m.tif", polygons=out, min_cells=9, picture=False
    )
    assert out in result.files and len(gpd.read_parquet(out)) > 5
    with pytest.raises(ConfigError, match="one class per cell"):
        predict(embeddings, Slope(6), out=tmp_path / "v.tif", polygons=out)
    assert not (tmp_path / "v.tif").exists()
    assert np.isfinite(gpd.read_parquet(out).total_bounds).all()
