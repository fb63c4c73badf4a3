import json
import warnings
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.warp import transform

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.geo import Grid
from bocage.learn.baselines import on_cells, otsu, spectral_indices, usable_columns
from bocage.learn.examine import Bands, ProbeConfig, examine, fit_probe, make_sample_folds
from bocage.learn.labels import read_labels
from bocage.learn.probe import load_probe
from bocage.learn.raster import Raster
from bocage.learn.sample import sample

from .conftest import CRS, center, frame, points, truth

quick = ProbeConfig(n_folds=4, block_m=1000, compare_random=False)


@pytest.fixture
def samples(embeddings, label_file):
    return sample(read_labels(label_file, column="class"), embeddings)


def test_a_probe_is_scored_beside_its_baselines(embeddings, label_file, tmp_path):
    config = ProbeConfig(n_folds=4, block_m=1000, methods=("logistic", "knn"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)
        probe, report = fit_probe(
            read_labels(label_file, column="class"), embeddings, config=config
        )
    accuracy = {row.name.split(":")[0]: row.scores["accuracy"].value for row in report.rows}
    assert accuracy["logistic regression on standardized features"] > 0.95
    assert accuracy["location only"] < accuracy["logistic regression on standardized features"]
    assert accuracy["the most frequent class"] < 0.65
    assert len(report.rows) == 5
    row, col = points(200)
    assert (probe.predict(vectors_at(embeddings, row, col)) == truth()[row, col] + 1).mean() > 0.95
    text = report.markdown()
    for part in (
        "spatial folds: 4 of 200 samples",
        "By location: accuracy",
        "| water |",
        "random:",
    ):
        assert part in text or part == "random:"
    assert "weights of the model are random" in text
    probe.save(tmp_path)
    report.write(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names >= {"probe.json", "arrays.npz", "report.md", "report.json", "confusion.png"}
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["rows"][0]["scores"]["accuracy"]["value"] == probe.scores["accuracy"]
    assert np.sum(stored["rows"][0]["confusion"]) == 200
    assert load_probe(tmp_path).scores["accuracy"] == probe.scores["accuracy"]


def vectors_at(embeddings, row, col):
    return embeddings.values[1][:, row, col].T


def test_a_score_that_location_alone_reaches_is_warned_of(embeddings, tmp_path):
    row, col = points(150)
    x, y = center(row, col)
    # One border through the middle, and embeddings that do not know it.
    names = np.where(col < 40, "west", "east")
    table = geopandas.GeoDataFrame(
        {"side": names}, geometry=geopandas.points_from_xy(x, y), crs=CRS
    )
    table.to_file(tmp_path / "a.gpkg")
    labels = read_labels(tmp_path / "a.gpkg")
    config = ProbeConfig(folds="random", n_folds=4)
    with pytest.warns(BocageWarning, match="knows only coordinates beats the model"):
        _, report = fit_probe(labels, embeddings, config=config, year=2024)
    assert "beats" in report.markdown()


def test_numbers_and_labels_that_hold_together_are_examined(embeddings, tmp_path):
    row, col = points(160)
    x, y = center(row, col)
    values = embeddings.values[1][:, row, col]
    table = geopandas.GeoDataFrame(
        {
            "height": (3 * values[0] + values[1] + 0.05).astype(float),
            "wet": values[3] > 0.2,
            "tall": values[0] > 0,
        },
        geometry=geopandas.points_from_xy(x, y),
        crs=CRS,
    )
    table.to_file(tmp_path / "a.gpkg")
    labels = read_labels(tmp_path / "a.gpkg", column="height")
    probe, report = fit_probe(labels, embeddings, config=quick, year=2024)
    assert report.scores["r2"].value > 0.99 and probe.method == "ridge"
    assert report.rows[-1].scores["r2"].value < 0.05  # the mean
    report.write(tmp_path / "out")
    assert (tmp_path / "out/scatter.png").exists()
    labels = read_labels(tmp_path / "a.gpkg", column=["wet", "tall"])
    probe, report = fit_probe(labels, embeddings, config=quick, year=2024)
    assert report.scores["f1_macro"].value > 0.9
    report.write(tmp_path / "more")
    assert probe.predict(values.T).shape == (160, 2)


def test_bands_and_indices_stand_beside(samples):
    rng = np.random.default_rng(0)
    wet = samples.y.astype(np.float32)
    green = 1000 + 100 * rng.normal(size=len(wet))
    nir = np.where(wet, 300, 2500) + 100 * rng.normal(size=len(wet))
    gone = np.full(len(wet), np.nan)
    x = np.stack([green, nir, gone], axis=1).astype(np.float32)
    x[5] = np.nan  # a cloud
    names = tuple(f"sentinel2_l2a:{b}" for b in ("B03", "B08", "B09"))
    _, report = examine(samples, config=quick, bands=Bands(x=x, names=names))
    by_name = {row.name: row.scores["accuracy"].value for row in report.rows}
    assert by_name["the 2 bands themselves"] > 0.98
    ndwi = next(name for name in by_name if name.startswith("NDWI by Otsu"))
    assert by_name[ndwi] > 0.98


@pytest.mark.parametrize("crs", ["EPSG:3857", "+proj=utm +zone=32 +units=us-ft", "EPSG:4326"])
def test_blocks_of_ground_are_as_large_in_any_crs(samples, crs):
    x, y = transform(samples.crs, crs, samples.xy[:, 0], samples.xy[:, 1])
    moved = replace(samples, xy=np.stack([x, y], axis=1), crs=crs)
    folds = make_sample_folds(moved, ProbeConfig(block_m=700))
    sides = [np.ptp(samples.xy[folds.block == b], axis=0) for b in np.unique(folds.block)]
    assert 600 < np.max(sides) <= 705  # meters of ground


def test_otsu_splits_where_the_spread_within_is_least():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(-0.4, 0.1, 500), rng.normal(0.5, 0.1, 200)])
    found = otsu(values)
    grid = np.linspace(-0.7, 0.8, 400)

    def within(t):
        low, high = values[values <= t], values[values > t]
        if not len(low) or not len(high):
            return np.inf
        return low.var() * len(low) + high.var() * len(high)

    best = min(within(t) for t in grid)
    assert within(found) <= best * 1.001


def test_indices_are_normalized_differences():
    x = np.array([[300.0, 100.0, 50.0, 25.0]], np.float32)
    names = tuple(f"sentinel2_l2a:{b}" for b in ("B03", "B08", "B04", "B11"))
    found = spectral_indices(x, names)
    assert found["NDWI"][0] == pytest.approx(0.5)
    assert found["NDVI"][0] == pytest.approx(1 / 3)
    assert found["MNDWI"][0] == pytest.approx(275 / 325)
    assert set(spectral_indices(x[:, :2], names[:2])) == {"NDWI"}
    assert usable_columns(np.array([[1, np.nan], [2, np.nan], [np.nan, 3]])).tolist() == [0]


def test_imagery_is_averaged_over_cells_that_fit_and_looked_up_in_others():
    values = np.arange(2 * 12 * 12, dtype=np.float32).reshape(2, 12, 12)
    values[0, 0, 0] = np.nan
    fine = Grid(crs=CRS, transform=Affine(10, 0, 100, 0, -10, 500), shape_yx=(12, 12))
    raster = Raster(
        read=lambda _y, r, c: values[:, r, c], grid=fine, features=("a", "b"), years=(0,)
    )
    coarse = Grid(crs=CRS, transform=Affine(40, 0, 100, 0, -40, 500), shape_yx=(4, 3))
    found = on_cells(raster, coarse).read(0, slice(0, 4), slice(0, 3))
    blocks = values.reshape(2, 3, 4, 3, 4)
    np.testing.assert_allclose(found[:, :3], np.nanmean(blocks, axis=(2, 4)))
    assert np.isnan(found[:, 3]).all()  # cells below the imagery
    shifted = Grid(crs=CRS, transform=Affine(35, 0, 103, 0, -35, 497), shape_yx=(3, 3))
    found = on_cells(raster, shifted).read(0, slice(1, 3), slice(0, 2))
    for i in range(2):
        for j in range(2):
            x, y = 103 + 35 * (j + 0.5), 497 - 35 * (i + 1.5)
            assert found[1, i, j] == values[1, int((500 - y) // 10), int((x - 100) // 10)]


def test_bad_samples_are_refused_in_one_sentence(embeddings, tmp_path):
    def labels(shapes, names):
        path = tmp_path / "a.gpkg"
        path.unlink(missing_ok=True)
        geopandas.GeoDataFrame({"class": names}, geometry=shapes, crs=CRS).to_file(path)
        return read_labels(path, column="class")

    near = [shapely.Point(center(20 + i // 5, 20 + i % 5)) for i in range(20)]
    with pytest.raises(InputError, match="all 20 samples in one block of 5,000 m"):
        fit_probe(
            labels(near, list("ab") * 10), embeddings, year=2024, config=ProbeConfig(block_m=5000)
        )
    with pytest.raises(InputError, match="4 samples for 5 folds"):
        fit_probe(labels(near[:4], list("abab")), embeddings, year=2024)
    off = [shapely.Point(center(1, i)) for i in range(10)]
    mixed = labels(near[:10] + off, ["a"] * 10 + ["b"] * 10)
    with warnings.catch_warnings(), pytest.raises(InputError, match=r"one class only \('a'\)"):
        warnings.simplefilter("ignore", BocageWarning)
        fit_probe(mixed, embeddings, year=2024)
    with pytest.raises(ConfigError, match="method 'tree'"):
        ProbeConfig(methods=("tree",))
    with pytest.raises(ConfigError, match="seed -1"):
        ProbeConfig(seed=-1)


def test_a_class_without_samples_is_told_and_left_out(embeddings, tmp_path):
    table = frame(100)
    table.loc[0, "class"] = "snow"
    table.loc[[0], "geometry"] = [shapely.Point(center(1, 1))]
    table.to_file(tmp_path / "a.gpkg")
    labels = read_labels(tmp_path / "a.gpkg", column="class")
    with pytest.warns(BocageWarning) as told:
        probe, _ = fit_probe(labels, embeddings, year=2024, config=quick)
    assert any("no sample of the class snow" in str(w.message) for w in told)
    assert [c.name for c in probe.classes] == ["land", "water"]
    assert [c.value for c in probe.classes] == [1, 3]


def test_a_bar_in_the_name_of_a_class_does_not_end_its_cell(embeddings, tmp_path):
    row, col = points(60)
    names = np.array(["dry | bare", "water"])[truth()[row, col]]
    path = tmp_path / "a.gpkg"
    shapes = [shapely.Point(center(r, c)) for r, c in zip(row, col, strict=True)]
    geopandas.GeoDataFrame({"class": names}, geometry=shapes, crs=CRS).to_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BocageWarning)
        probe, report = fit_probe(read_labels(path), embeddings, year=2024)
    tables = report.markdown().split("## By class")[1]
    for line in tables.splitlines():
        if "dry" in line:
            assert "dry \\| bare" in line
    bars = {line.replace("\\|", "").count("|") for line in tables.split("##")[0].split("\n")[2:-2]}
    assert len(bars) == 1
    assert len(repr(probe)) < 2000
