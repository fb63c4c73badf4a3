"""Areas with intervals: from reference places on the map, or from what a probe remembers."""

import csv

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from bocage.embeddings import open_embeddings
from bocage.errors import BocageWarning, ConfigError, InputError, StoreError
from bocage.learn.examine import ProbeConfig, fit_probe
from bocage.learn.labels import read_labels
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


def stratified(confusion, km2):
    """Areas and half 95 % intervals as Olofsson et al. (2014) write them, equations 9 to 11."""
    k, total = len(km2), sum(km2)
    estimates = []
    for true in range(k):
        share = variance = 0.0
        for mapped in range(k):
            n_mapped = sum(confusion[t][mapped] for t in range(k))
            weight, part = km2[mapped] / total, confusion[true][mapped] / n_mapped
            share += weight * part
            variance += weight**2 * part * (1 - part) / (n_mapped - 1)
        estimates.append((share * total, 1.96 * variance**0.5 * total))
    return estimates


@pytest.mark.filterwarnings("ignore:accuracy|score|few sample")
def test_a_saved_probe_brings_intervals_of_the_areas_it_maps(tmp_path, embeddings, x):
    """Places drawn at random, whose labels the embeddings tell only in part."""
    rng = np.random.default_rng(4)
    truth = (x[0] + rng.normal(0, 0.8, x[0].shape) > 0.3).astype(int) + (x[1] > 1)
    cells = rng.choice(np.argwhere(np.isfinite(x[0])), 500, replace=False)
    with rasterio.open(_plain_raster(tmp_path, embeddings)) as file:
        t, crs = file.transform, file.crs
    xy = [t @ (c + 0.5, r + 0.5) for r, c in cells]
    names = np.array(["sand", "grass", "reed"])[truth[cells[:, 0], cells[:, 1]]]
    points = gpd.points_from_xy(*zip(*xy, strict=True))
    gpd.GeoDataFrame({"kind": names}, geometry=points, crs=crs).to_file(tmp_path / "p.gpkg")
    labels = read_labels(tmp_path / "p.gpkg")
    config = ProbeConfig(compare_random=False, block_m=3000)
    probe, report = fit_probe(labels, open_embeddings(embeddings), config=config)
    assert 0.6 < report.scores["accuracy"].value < 0.95
    np.testing.assert_array_equal(probe.confusion, report.scores.confusion)
    assert sum(map(sum, probe.confusion)) == 500
    probe.save(tmp_path / "probe")
    result = predict(embeddings, tmp_path / "probe", out=tmp_path / "m.tif", picture=False)
    rows = result.tables[2024]
    want = stratified(probe.confusion, [r["km2"] for r in rows])
    for row, (km2, margin) in zip(rows, want, strict=True):
        assert row["km2_adjusted"] == pytest.approx(km2, abs=1e-3)
        assert row["km2_high"] - row["km2_adjusted"] == pytest.approx(margin, abs=1e-3)
        # The labels are a random sample of the ground, so the truth lies in or near the interval.
        name = ["sand", "grass", "reed"].index(row["class"])
        true_km2 = (truth[np.isfinite(x[0])] == name).sum() * 0.0016
        assert abs(true_km2 - km2) < 2 * margin
    assert "if these places were drawn at random" in str(result)


def _plain_raster(folder, embeddings):
    predict(embeddings, Softmax(6), out=folder / "grid.tif", picture=False, probability=False)
    return folder / "grid.tif"


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


def test_places_that_do_not_fit_are_refused_before_the_map_is_made(tmp_path, embeddings):
    frame = gpd.GeoDataFrame(
        {"class": ["water", "moor"]},
        geometry=gpd.points_from_xy([505_020, 509_020], [4_490_020, 4_480_020]),
        crs=32618,
    )
    frame.to_file(tmp_path / "places.gpkg")
    with pytest.raises(InputError, match="the class moor"):
        predict(embeddings, Softmax(6), out=tmp_path / "m.tif", reference=tmp_path / "places.gpkg")
    assert not list(tmp_path.glob("m.*"))


def test_the_column_of_places_is_that_of_the_labels_or_named(tmp_path, embeddings):
    predict(embeddings, Softmax(6), out=tmp_path / "first.tif", picture=False, probability=False)
    places = tmp_path / "places.gpkg"
    write_reference(places, tmp_path / "first.tif", 400, 0.2)
    frame = gpd.read_file(places)
    frame["seen by"] = "somebody"
    frame.to_file(places)
    options = {"reference": places, "picture": False}
    with pytest.raises(ConfigError, match="use --reference-label class"):
        predict(embeddings, Softmax(6), out=tmp_path / "m.tif", **options)
    named = predict(
        embeddings, Softmax(6), out=tmp_path / "m.tif", reference_label="class", **options
    )
    probe = Softmax(6)
    probe.target = "class"
    usual = predict(embeddings, probe, out=tmp_path / "u.tif", **options)
    assert named.tables == usual.tables
    assert "km2_adjusted" in named.tables[2024][0]


def test_other_places_under_the_same_name_do_not_pass_for_the_old_ones(tmp_path, embeddings):
    predict(embeddings, Softmax(6), out=tmp_path / "first.tif", picture=False, probability=False)
    places = tmp_path / "places.geojson"
    write_reference(places, tmp_path / "first.tif", 400, 0.2)
    options = {"reference": places, "picture": False}
    predict(embeddings, Softmax(6), out=tmp_path / "m.tif", **options)
    assert "nothing to do" in str(
        predict(embeddings, Softmax(6), out=tmp_path / "m.tif", **options)
    )
    write_reference(places, tmp_path / "first.tif", 400, 0.4, seed=1)
    with pytest.raises(StoreError, match="made otherwise"):
        predict(embeddings, Softmax(6), out=tmp_path / "m.tif", **options)
