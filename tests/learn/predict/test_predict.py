"""Embeddings and a probe to a map: values, nodata, overviews, names, colors, sidecars."""

import csv
import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import Resampling
from rio_cogeo.cogeo import cog_validate

from bocage.errors import ConfigError, InputError, SourceError, StoreError
from bocage.learn.predict import predict

from .conftest import CLASSES, Sigmoid, Slope, Softmax, write_embeddings

VALUES = np.array([c["value"] for c in CLASSES])


def expected_classes(probe, x):
    """Class values and probabilities of every cell, computed at once and in plain numpy."""
    d, h, w = x.shape
    p = probe.predict_proba(np.nan_to_num(x.reshape(d, -1).T))
    classes = VALUES[p.argmax(axis=1)].reshape(h, w)
    missing = np.isnan(x[0])
    return np.where(missing, 255, classes), np.where(missing, np.nan, p.T.reshape(-1, h, w))


@pytest.fixture
def made(tmp_path, embeddings, x):
    probe = Softmax(6)
    result = predict(embeddings, probe, out=tmp_path / "map.tif")
    return result, probe


def test_each_cell_has_the_class_of_its_largest_score_and_nodata_stays(made, tmp_path, x):
    _, probe = made
    classes, p = expected_classes(probe, x)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.dtypes == ("uint8",) and file.nodata == 255
        np.testing.assert_array_equal(file.read(1), classes)
        assert file.crs.to_epsg() == 32618 and file.transform.a == 40
    with rasterio.open(tmp_path / "map.probability.tif") as file:
        assert file.descriptions == tuple(c["name"] for c in CLASSES)
        q = file.read().astype(np.float64)
        assert file.nodata == 255 and file.scales == (1 / 250,) * 3
        np.testing.assert_array_equal(q[0] == 255, np.isnan(x[0]))
        found = np.where(q == 255, np.nan, q * file.scales[0])
        np.testing.assert_allclose(found, p, atol=0.5 / 250 + 1e-6)


@pytest.mark.parametrize("name", ["map.tif", "map.probability.tif"])
def test_files_are_cloud_optimized(made, tmp_path, name):
    is_valid, errors, warnings = cog_validate(tmp_path / name, strict=True)
    assert is_valid and not errors and not warnings


def test_overviews_are_the_most_frequent_class_and_the_mean_probability(made, tmp_path, x):
    _, probe = made
    classes, p = expected_classes(probe, x)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.overviews(1)[:2] == [2, 4]
    for level, factor in enumerate((2, 4)):
        with rasterio.open(tmp_path / "map.tif", OVERVIEW_LEVEL=level) as file:
            found = file.read(1)
        with rasterio.open(tmp_path / "map.probability.tif", OVERVIEW_LEVEL=level) as file:
            shares = file.read(2)
        for i, j in [(0, 0), (3, 5), (20, 30), (40, 11), (found.shape[0] - 1, 60)]:
            cells = np.s_[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            inside = classes[cells][classes[cells] != 255]
            if inside.size == 0:
                assert found[i, j] == 255 and shares[i, j] == 255
                continue
            values, counts = np.unique(inside, return_counts=True)
            assert found[i, j] == values[counts.argmax()]
            # Codes of means, not means of codes: the true mean within half a step.
            assert abs(shares[i, j] / 250 - np.nanmean(p[1][cells])) <= 0.5 / 250 + 1e-6


def test_gdal_finds_names_and_colors(made, tmp_path):
    with rasterio.open(tmp_path / "map.tif") as file:
        colors = file.colormap(1)
        tags = file.tags()
    assert colors[3] == (0x1F, 0x78, 0xB4, 255) and colors[255][3] == 0
    assert tags["CLASS_10"] == "town & road"
    # GDAL itself writes the categories that it read from the sidecar into a VRT.
    rasterio.shutil.copy(tmp_path / "map.tif", tmp_path / "seen.vrt", driver="VRT")
    seen = ET.parse(tmp_path / "seen.vrt")
    names = [c.text or "" for c in seen.iter("Category")]
    assert len(names) == 11 and (names[3], names[7], names[10]) == (
        "water", "forest", "town & road",
    )  # fmt: skip


def test_the_qgis_style_lists_every_class_with_its_color(made, tmp_path):
    entries = list(ET.parse(tmp_path / "map.qml").iter("paletteEntry"))
    assert [(e.get("value"), e.get("label"), e.get("color")) for e in entries] == [
        (str(c["value"]), c["name"], c["color"]) for c in CLASSES
    ]


def test_the_area_table_counts_every_cell_once(made, tmp_path, x):
    result, probe = made
    classes, _ = expected_classes(probe, x)
    with (tmp_path / "map.area.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["cells"]) for r in rows] == [int((classes == v).sum()) for v in VALUES]
    # UTM near its central meridian is 0.9996 in length: a cell of 40 m is 1602.6 to 1601.3 m2.
    for row in rows:
        if int(row["cells"]):
            assert float(row["km2"]) / int(row["cells"]) == pytest.approx(1.6e-3 / 0.9996**2, 1e-3)
    assert sum(float(r["share"]) for r in rows) == pytest.approx(1, abs=1e-5)
    assert result.tables[2024][0]["class"] == "water"


def test_record_item_and_picture_lie_beside_the_map(made, tmp_path):
    result, _ = made
    run = json.loads((tmp_path / "map.tif.run.json").read_text())
    assert run["classes"][0] == CLASSES[0] and 0.9 < run["valid_fraction"] < 1
    item = json.loads((tmp_path / "map.tif.stac.json").read_text())
    classes = item["assets"]["map"]["classification:classes"]
    assert classes[2] == {
        "value": 10, "name": "town-road", "title": "town & road", "color_hint": "e31a1c",
    }  # fmt: skip
    assert item["properties"]["start_datetime"].startswith("2024-01-01")
    with rasterio.open(tmp_path / "map.png") as file:
        colors = set(map(tuple, file.read().reshape(4, -1).T.tolist()))
    assert (0x1F, 0x78, 0xB4, 255) in colors and (0, 0, 0, 0) in colors
    assert set(result.files) >= {tmp_path / "map.png", tmp_path / "map.tif.run.json"}
    left = {p.name for p in tmp_path.iterdir()}
    assert not [n for n in left if "scores" in n or "partial" in n or n.endswith(".lock")]


def test_run_again_does_nothing_and_another_probe_is_refused(made, embeddings, tmp_path):
    _, probe = made
    before = (tmp_path / "map.tif").stat().st_mtime_ns
    again = predict(embeddings, probe, out=tmp_path / "map.tif")
    assert not again.seconds and (tmp_path / "map.tif").stat().st_mtime_ns == before
    with pytest.raises(StoreError, match="was made otherwise"):
        predict(embeddings, Softmax(6, seed=1), out=tmp_path / "map.tif")


def test_new_embeddings_under_the_same_name_do_not_pass_for_the_old_ones(made, x, tmp_path):
    found = next(tmp_path.glob("*.zarr"))
    shutil.rmtree(found)
    write_embeddings(found, x[:, ::-1])
    with pytest.raises(StoreError, match="inputs unchanged since"):
        predict(found, Softmax(6), out=tmp_path / "map.tif", min_cells=1)


def test_numbers_are_float32_with_nan_and_overviews_that_are_true_means(tmp_path, embeddings, x):
    predict(embeddings, Slope(6), out=tmp_path / "height.tif")
    want = np.tensordot(Slope(6).weights, x, axes=1)
    with rasterio.open(tmp_path / "height.tif") as file:
        assert file.dtypes == ("float32",) and np.isnan(file.nodata)
        np.testing.assert_allclose(file.read(1), want, atol=1e-5)
    with rasterio.open(tmp_path / "height.tif", OVERVIEW_LEVEL=0) as file:
        coarse = file.read(1)
    h, w = (n // 2 * 2 for n in want.shape)
    means = np.nanmean(want[:h, :w].reshape(h // 2, 2, w // 2, 2), axis=(1, 3))
    np.testing.assert_allclose(coarse[: h // 2, : w // 2], means, atol=1e-5)
    assert cog_validate(tmp_path / "height.tif", strict=True)[0]
    assert not (tmp_path / "height.area.csv").exists()


def test_a_multi_label_map_has_a_band_per_class(tmp_path, embeddings, x):
    probe = Sigmoid(6)
    result = predict(embeddings, probe, out=tmp_path / "map.tif", threshold=0.7)
    p = probe.predict_proba(np.nan_to_num(x.reshape(6, -1).T)).T.reshape(3, *x.shape[1:])
    want = np.where(np.isnan(x[0]), 255, p >= 0.7)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.descriptions == tuple(c["name"] for c in CLASSES)
        np.testing.assert_array_equal(file.read(), want)
    assert [r["cells"] for r in result.tables[2024]] == [int((b == 1).sum()) for b in want]


def test_each_year_gets_a_map_of_its_own(tmp_path, x):
    source = write_embeddings(tmp_path / "emb.zarr", x, years=(2023, 2024, 2025))
    probe = Softmax(6)
    result = predict(source, probe, out=tmp_path / "map.tif", years=(2023, 2024), picture=False)
    assert [p.name for p in result.paths] == ["map_2023.tif", "map_2024.tif"]
    for path, sign in zip(result.paths, (1, -1), strict=True):
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), expected_classes(probe, sign * x)[0])
            assert file.tags()["YEAR"] == path.stem[-4:]


def test_class_values_above_254_are_kept_in_sixteen_bits(tmp_path, embeddings):
    probe = Softmax(6)
    probe.classes = tuple({"value": v, "name": f"c{v}", "color": None} for v in (111, 255, 523))
    predict(embeddings, probe, out=tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.dtypes == ("uint16",) and file.nodata == 65535
        assert set(np.unique(file.read(1))) <= {111, 255, 523, 65535}


def test_bad_input_is_one_sentence(tmp_path, embeddings, x):
    out = tmp_path / "map.tif"
    with pytest.raises(InputError, match=r"dims 6; expected dims 8, which Softmax was fitted on"):
        predict(embeddings, Softmax(8), out=out)
    with pytest.raises(InputError, match="weights random:0; expected weights sha"):
        predict(embeddings, Softmax(6, weights_id="sha"), out=out)
    with pytest.raises(ConfigError, match=r"ends in \.tif"):
        predict(embeddings, Softmax(6), out=tmp_path / "map.zarr")
    with pytest.raises(InputError, match="years 2019"):
        predict(embeddings, Softmax(6), out=out, years=(2019,))
    with pytest.raises(SourceError, match="does not exist"):
        predict(tmp_path / "nothing.zarr", Softmax(6), out=out)
    with pytest.raises(SourceError, match=r"probe.json"):
        predict(embeddings, tmp_path, out=out)
    with pytest.raises(ConfigError, match=r"--polygons .*kml"):
        predict(embeddings, Softmax(6), out=out, polygons=tmp_path / "areas.kml")
    short = Softmax(6)
    short.weights = short.weights[:, :2]
    with pytest.raises(ConfigError, match="2 scores per cell"):
        predict(embeddings, short, out=tmp_path / "short.tif")
    empty = write_embeddings(tmp_path / "empty.zarr", np.full_like(x, np.nan))
    with pytest.raises(InputError, match="nothing but nodata"):
        predict(empty, Softmax(6), out=tmp_path / "empty.tif")
    assert not list(tmp_path.glob("*.tif"))


def test_two_processes_do_not_write_one_map(tmp_path, embeddings):
    import fcntl

    with (tmp_path / ".map.tif.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process"):
            predict(embeddings, Softmax(6), out=tmp_path / "map.tif")


def test_southern_maps_keep_their_crs(tmp_path, x):
    from affine import Affine

    source = write_embeddings(
        tmp_path / "emb.zarr", x, crs="EPSG:32718",
        transform=Affine(40, 0, 500_000, 0, -40, 9_000_000),
    )  # fmt: skip
    predict(source, Softmax(6), out=tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs.to_epsg() == 32718 and file.transform.f == 9_000_000
        out_shape = tuple(n // 2 for n in file.shape)
        assert file.read(1, out_shape=out_shape, resampling=Resampling.nearest).shape == out_shape
