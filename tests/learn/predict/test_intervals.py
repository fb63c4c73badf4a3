"""Areas with intervals: from reference places on the map, or from what a probe remembers."""

import csv

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.learn.predict import predict
from bocage.scoring.areas import estimate_areas

from .conftest import CLASSES, Slope, Softmax


def write_reference(path, raster, n, wrong, seed=0):
    """n random places of a map; a share of them has another true class than the map says."""
    rng = np.random.default_rng(seed)
    values = [c["value"] for c in CLASSES]
    names = {c["value"]: c["name"] for c in CLASSES}
    with rasterio.open(raster) as file:
        codes, t = file.read(1), file.transform
    cells = np.argwhere(codes != 255)
    cells = cells[rng.choice(len(cells), n, replace=False)]
    mapped = codes[cells[:, 0], cells[:, 1]]
    true = np.where(rng.random(n) < wrong, rng.choice(values, n), mapped)
    xy = [t @ (c + 0.5, r + 0.5) for r, c in cells]
    frame = gpd.GeoDataFrame(
        {"class": [names[v] for v in true]},
        geometry=gpd.points_from_xy(*zip(*xy, strict=True)),
        crs=32618,
    )
    frame.to_crs(4326).to_file(path)
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (np.searchsorted(values, mapped), np.searchsorted(values, true)), 1)
    return counts


def test_reference_places_correct_the_areas(tmp_path, embeddings):
    predict(embeddings, Softmax(6), out=tmp_path / "first.tif", picture=False, probability=False)
    places = tmp_path / "places.geojson"
    counts = write_reference(places, tmp_path / "first.tif", 400, 0.2)
    result = predict(
        embeddings, Softmax(6), out=tmp_path / "m.tif", reference=places, picture=False
    )
    with (tmp_path / "m.area.csv").open() as file:
        rows = list(csv.DictReader(file))
    want = estimate_areas(counts, [float(r["km2"]) for r in rows])
    for row, area, margin in zip(rows, want.area, want.area_margin, strict=True):
        assert float(row["km2_adjusted"]) == pytest.approx(area, abs=1e-4)
        assert float(row["km2_high"]) - float(row["km2_adjusted"]) == pytest.approx(
            margin, abs=1e-4
        )
    assert "95 %" in str(result)


def test_a_confusion_matrix_that_a_probe_keeps_is_used(tmp_path, embeddings):
    probe = Softmax(6)
    probe.confusion = np.array([[40, 5, 0], [2, 50, 4], [1, 3, 60]])  # rows: truth
    result = predict(embeddings, probe, out=tmp_path / "m.tif", picture=False)
    rows = result.tables[2024]
    want = estimate_areas(probe.confusion.T, [r["km2"] for r in rows])
    assert [r["km2_adjusted"] for r in rows] == pytest.approx(want.area.tolist(), abs=1e-4)
    probe.confusion = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    with pytest.warns(BocageWarning, match="no confidence intervals"):
        result = predict(embeddings, probe, out=tmp_path / "few.tif", picture=False)
    assert "km2_low" not in result.tables[2024][0]


def test_places_of_other_classes_are_refused(tmp_path, embeddings):
    frame = gpd.GeoDataFrame(
        {"class": ["water", "moor"]},
        geometry=gpd.points_from_xy([505_020, 509_020], [4_490_020, 4_480_020]),
        crs=32618,
    )
    frame.to_file(tmp_path / "places.gpkg")
    options = {"reference": tmp_path / "places.gpkg", "picture": False}
    with pytest.raises(InputError, match="the class moor"):
        predict(embeddings, Softmax(6), out=tmp_path / "m.tif", **options)
    with pytest.raises(ConfigError, match="one class per cell"):
        predict(embeddings, Slope(6), out=tmp_path / "v.tif", **options)
