"""Maps of change on disk: nodata apart from no change, true overviews, labels, the real pair."""

import csv
import json
import shutil

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from bocage.change import map_change, open_pair
from bocage.errors import BocageWarning, ConfigError, InputError, StoreError

from .conftest import CHANGED, write_bands, write_store


def read(path, **options):
    with rasterio.open(path, **options) as file:
        return file.read(), file.nodata, file.scales, file.tags()


def test_no_data_is_neither_change_nor_no_change(tmp_path, stores, years):
    result = map_change(*stores, out=tmp_path / "change.tif")
    missing = np.isnan(years[0][0]) | np.isnan(years[1][0])
    strength, nodata, _, _ = read(tmp_path / "change.tif")
    assert np.isnan(nodata)
    np.testing.assert_array_equal(np.isnan(strength[0]), missing)
    binary, nodata, _, tags = read(tmp_path / "change.binary.tif")
    assert nodata == 255 and "magnitude of change >=" in tags["THRESHOLD"]
    np.testing.assert_array_equal(binary[0] == 255, missing)
    truth = np.zeros(missing.shape, bool)
    truth[CHANGED] = True
    np.testing.assert_array_equal(binary[0][~missing] == 1, truth[~missing])
    with (tmp_path / "change.area.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert int(rows[1]["cells"]) == (truth & ~missing).sum()
    run = json.loads((tmp_path / "change.tif.run.json").read_text())
    assert run["threshold"] == result.threshold
    for name in ("change.tif", "change.binary.tif"):
        assert cog_validate(tmp_path / name, strict=True)[0]
    assert {p.suffix for p in result.files} == {".tif", ".qml", ".xml", ".csv", ".png", ".json"}


@pytest.mark.parametrize("method", ["pca", "difference"])
def test_int8_holds_values_within_half_a_step_and_the_basis_is_kept(tmp_path, stores, method):
    for codec in ("int8", "float32"):
        map_change(*stores, out=tmp_path / f"{codec}.tif", method=method, codec=codec, components=3)
    x, _, _, _ = read(tmp_path / "float32.tif")
    q, nodata, scales, tags = read(tmp_path / "int8.tif")
    assert q.dtype == np.int8 and nodata == -128 and len(set(scales)) == 1
    assert f"{scales[0]:.9g}" in tags["SCALE"]
    np.testing.assert_array_equal(q == -128, np.isnan(x))
    inside = ~np.isnan(x) & (np.abs(x) < 127 * scales[0])
    assert inside.sum() > 0.999 * (~np.isnan(x)).sum()
    assert np.abs(q * np.float32(scales[0]) - x)[inside].max() <= 0.5001 * scales[0]
    assert not (tmp_path / "int8.binary.tif").exists()
    if method == "pca":
        kept = np.load(tmp_path / "int8.npz")
        before, after = (a.astype(np.float64) for a in open_pair(*stores).read(
            slice(20, 30), slice(20, 30)))  # fmt: skip
        d = (after - before) - kept["mean"][:, None, None]
        np.testing.assert_allclose(
            np.tensordot(kept["basis"], d, axes=1), x[:, 20:30, 20:30], atol=1e-5
        )


def test_overviews_of_linear_products_are_true_averages(tmp_path, years):
    # Larger than one block, so that GDAL has overviews to hold.
    tall = [np.tile(x, (1, 4, 4)) for x in years]
    stores = [write_store(tmp_path / f"{i}.zarr", [x], (2024 + i,)) for i, x in enumerate(tall)]
    map_change(*stores, out=tmp_path / "pca.tif", method="pca", components=2, codec="float32")
    map_change(*stores, out=tmp_path / "q.tif", method="pca", components=2)
    x, _, _, _ = read(tmp_path / "pca.tif")
    _, _, scales, _ = read(tmp_path / "q.tif")
    for level, factor in enumerate((2, 4)):
        coarse, _, _, _ = read(tmp_path / "pca.tif", OVERVIEW_LEVEL=level)
        codes, nodata, _, _ = read(tmp_path / "q.tif", OVERVIEW_LEVEL=level)
        h, w = (n // factor for n in x.shape[1:])
        parts = x[:, : h * factor, : w * factor].reshape(2, h, factor, w, factor)
        with np.errstate(invalid="ignore"):
            sums, counts = np.nansum(parts, axis=(2, 4)), (~np.isnan(parts)).sum(axis=(2, 4))
            want = np.where(counts > 0, sums / counts, np.nan)
        np.testing.assert_allclose(coarse[:, :h, :w], want, atol=1e-5)
        found = np.where(codes == nodata, np.nan, codes * np.float32(scales[0]))[:, :h, :w]
        inside = np.abs(want) < 127 * scales[0]
        assert np.abs(found - want)[inside].max() <= 0.51 * scales[0]


def write_labels(path, pair, places, names, crs=None):
    """Points at the centers of cells (row, column)."""
    t = pair.grid.transform
    xy = [t @ (c + 0.5, r + 0.5) for r, c in places]
    frame = gpd.GeoDataFrame(
        {"kind": names}, geometry=gpd.points_from_xy(*zip(*xy, strict=True)), crs=pair.grid.crs
    )
    frame.to_crs(crs or pair.grid.crs).to_file(path)
    return path


@pytest.fixture
def clicked(tmp_path, stores):
    rng = np.random.default_rng(3)
    inside = [(int(r), int(c)) for r, c in rng.integers((60, 40), (95, 85), (12, 2))]
    outside = [(int(r), int(c)) for r, c in rng.integers((10, 0), (140, 130), (40, 2))]
    truth = [60 <= r < 95 and 40 <= c < 85 for r, c in outside]
    places = inside + [p for p, t in zip(outside, truth, strict=False) if not t]
    names = ["change"] * 12 + ["no change"] * (len(places) - 12)
    pair = open_pair(*stores)
    path = write_labels(tmp_path / "clicks.geojson", pair, places, names, crs="EPSG:4326")
    return path, places, names


def test_a_logistic_model_of_the_difference_is_that_of_scikit_learn(
    tmp_path, stores, years, clicked
):
    path, places, names = clicked
    # The change is one patch of ground, so where a label lies says nearly as much as what it shows.
    with pytest.warns(BocageWarning, match="by location only"):
        result = map_change(*stores, out=tmp_path / "change.tif", method="logistic", labels=path)
    p, _nodata, _, _ = read(tmp_path / "change.tif")
    d = (years[1] - years[0]).astype(np.float64)
    rows = np.array([d[:, r, c] for r, c in places])
    y = np.array([n == "change" for n in names])
    keep = np.isfinite(rows).all(axis=1)
    scaler = StandardScaler().fit(rows[keep])
    c = result.measure.probe.setting["c"]
    oracle = LogisticRegression(C=c, class_weight="balanced", max_iter=10_000, tol=1e-10)
    oracle.fit(scaler.transform(rows[keep]), y[keep])
    some = [(10, 10), (70, 60), (140, 20), (90, 84)]
    want = [oracle.predict_proba(scaler.transform(d[:, r, k][None]))[0, 1] for r, k in some]
    np.testing.assert_allclose([p[0, r, k] for r, k in some], want, atol=1e-4)
    text = str(result)
    assert "location only" in text and "logistic" in text.lower()
    run = json.loads((tmp_path / "change.tif.run.json").read_text())
    assert any("location only" in name for name in run["fit"]["scores"])
    assert run["threshold"] == 0.5


@pytest.mark.filterwarnings("ignore:accuracy")
def test_linear_scores_of_mean_cells_are_means_of_scores(tmp_path, stores, years, clicked):
    result = map_change(*stores, out=tmp_path / "c.tif", method="logistic", labels=clicked[0])
    line = result.measure.probe.estimator
    # One column of weights speaks for the second class.
    sign = 1 if result.measure.column == 1 else -1
    weight = sign * (line.weight / line.scale[:, None])[:, 0]
    d = (years[1] - years[0]).astype(np.float64)

    def score(x):
        return np.tensordot(weight, x - line.mean[:, None, None], axes=1) + sign * line.bias[0]

    block = d[:, 40:44, 60:64]
    assert score(block).mean() == pytest.approx(
        score(block.mean(axis=(1, 2), keepdims=True))[0, 0], abs=1e-9
    )
    p, _, _, _ = read(tmp_path / "c.tif")
    np.testing.assert_allclose(p[0, 40:44, 60:64], 1 / (1 + np.exp(-score(block))), atol=1e-5)


@pytest.mark.filterwarnings("ignore:accuracy")
def test_labels_that_cannot_teach_change_are_refused(tmp_path, stores, clicked):
    path, places, names = clicked
    pair = open_pair(*stores)

    def attempt(name, places, names, match):
        labels = write_labels(tmp_path / f"{name}.geojson", pair, places, names)
        with pytest.raises(InputError, match=match):
            map_change(*stores, out=tmp_path / f"{name}.tif", method="logistic", labels=labels)

    attempt("one", places, ["change"] * len(places), "only the class .change.")
    three = ["change", "no change", "maybe"] * len(places)
    attempt("three", places, three[: len(places)], "labels of 3 classes")
    other = ["forest" if n == "change" else "field" for n in names]
    attempt("other", places, other, "of which one means change")
    attempt("away", [(r + 9000, c) for r, c in places], names, "outside|on the map")
    frame = gpd.read_file(path)
    frame["seen"] = "by somebody"
    frame.to_file(tmp_path / "two.geojson")
    with pytest.raises(ConfigError, match="use --label-column"):
        map_change(
            *stores, out=tmp_path / "x.tif", method="logistic", labels=tmp_path / "two.geojson"
        )
    with pytest.raises(ConfigError, match="without --labels"):
        map_change(*stores, out=tmp_path / "x.tif", method="logistic")
    with pytest.raises(ConfigError, match="with --labels"):
        map_change(*stores, out=tmp_path / "x.tif", method="cosine", labels=path)


def test_bad_requests_are_one_sentence(tmp_path, stores, years):
    with pytest.raises(ConfigError, match="--method cva on embeddings"):
        map_change(*stores, out=tmp_path / "x.tif", method="cva")
    with pytest.raises(ConfigError, match="--method best"):
        map_change(*stores, out=tmp_path / "x.tif", method="best")
    for threshold in (float("nan"), -5.0, float("inf")):
        with pytest.raises(ConfigError, match=f"--threshold {threshold:g}"):
            map_change(*stores, out=tmp_path / "x.tif", threshold=threshold)
    with pytest.raises(ConfigError, match=r"ends in \.tif"):
        map_change(*stores, out=tmp_path / "x.zarr")
    with pytest.raises(ConfigError, match="--components 0"):
        map_change(*stores, out=tmp_path / "x.tif", method="pca", components=0)
    empty = write_store(tmp_path / "e.zarr", [np.full_like(years[1], np.nan)], (2025,))
    for method in ("magnitude", "pca"):
        with pytest.raises(InputError, match="no cell with data in both"):
            map_change(stores[0], empty, out=tmp_path / "x.tif", method=method)
    assert not (tmp_path / "x.tif").exists()
    map_change(*stores, out=tmp_path / "x.tif")
    before = (tmp_path / "x.tif").stat().st_mtime_ns
    assert "nothing to do" in str(map_change(*stores, out=tmp_path / "x.tif"))
    assert (tmp_path / "x.tif").stat().st_mtime_ns == before
    with pytest.raises(StoreError, match="made otherwise"):
        map_change(*stores, out=tmp_path / "x.tif", method="cosine")
    for content in (b"", b"half a map"):
        (tmp_path / "y.tif").write_bytes(content)
        with pytest.raises(StoreError, match=r"y\.tif, which exists and was made otherwise"):
            map_change(*stores, out=tmp_path / "y.tif")
        assert (tmp_path / "y.tif").read_bytes() == content


@pytest.mark.parametrize("kind", ["scene", "embeddings"])
def test_other_data_under_the_same_name_do_not_pass_for_the_old_ones(tmp_path, years, kind):
    def write(name, x):
        if kind == "embeddings":
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            return write_store(tmp_path / name, [x], (2024 if name.startswith("a") else 2025,))
        (tmp_path / name).mkdir(exist_ok=True)
        bands = np.nan_to_num(1500 + 200 * x[:4]).astype(np.uint16)
        names = ["B02", "B03", "B04", "B08"]
        write_bands(tmp_path / name / "scene.tif", bands, names=names, nodata=0)
        return tmp_path / name

    names = ("a.zarr", "b.zarr") if kind == "embeddings" else ("a", "b")
    pair = write(names[0], years[0]), write(names[1], years[1])
    map_change(*pair, out=tmp_path / "x.tif")
    assert "nothing to do" in str(map_change(*pair, out=tmp_path / "x.tif"))
    write(names[0], years[0][:, ::-1])
    with pytest.raises(StoreError, match="same inputs unchanged since"):
        map_change(*pair, out=tmp_path / "x.tif")


@pytest.mark.parametrize(("method", "least"), [("cva", 0.985), ("irmad", 0.99)])
def test_the_labelled_change_of_taizhou_is_found(tmp_path, taizhou, method, least):
    with pytest.warns(BocageWarning, match="in their order"):
        map_change(taizhou / "2000TM", taizhou / "2003TM", out=tmp_path / "c.tif", method=method)
    strength, _, _, _ = read(tmp_path / "c.tif")
    with rasterio.open(taizhou / "change.bmp") as a, rasterio.open(taizhou / "unchanged.bmp") as b:
        yes, no = a.read(1) > 0, b.read(1) > 0
    labelled = yes | no
    assert roc_auc_score(yes[labelled], strength[0][labelled]) > least
