"""`bocage zonal` as typed."""

import sys

import geopandas
import numpy as np
import pytest

from bocage.learn.classes import make_classes
from bocage.learn.estimators import Linear
from bocage.learn.probe import FittedOn, Probe
from tests.change.conftest import write_store
from tests.cli.conftest import bocage  # noqa: F401 - the fixture
from tests.zonal.conftest import TRANSFORM, frame, square, write_raster


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (6, 60, 70)).astype(np.float32)
    write_store(tmp_path / "emb.zarr", [x, x + 1], (2024, 2025), transform=TRANSFORM)
    shapes = frame([square(0, 0, 20, 20), square(30, 30, 25.5, 9.5), square(900, 0, 2, 2)],
                   name=["north", "south", "away"])  # fmt: skip
    shapes.to_file(tmp_path / "districts.geojson")
    return tmp_path


def test_districts_of_a_store(bocage, files):  # noqa: F811 - the fixture
    words = ["zonal", files / "emb.zarr", "--zones", files / "districts.geojson", "--id", "name"]
    plan = bocage(*words, "--dry-run")
    assert plan.code == 0 and "3 named by name, 2 near the map" in plan.out
    ran = bocage(*words, "--out", files / "stats.parquet", "--deltas", "--years", "2024,2025")
    assert ran.code == 0, ran.err
    assert "empty    1 outside the map: away" in ran.out
    assert f"geopandas.read_parquet('{files / 'stats.parquet'}')" in ran.out
    table = geopandas.read_parquet(files / "stats.parquet")
    assert table["name"].tolist() == ["north", "south", "away"] * 2
    np.testing.assert_allclose(table["delta_mean_000"][3:5], 1, atol=1e-6)


def test_districts_of_what_predict_and_change_write(bocage, files):  # noqa: F811 - the fixture
    """Names of classes and years come with the files."""
    rng = np.random.default_rng(0)
    Probe(
        estimator=Linear(
            mean=np.zeros(6), scale=np.ones(6), weight=rng.normal(0, 1, (6, 3)),
            bias=np.zeros(3), link="softmax",
        ),
        method="logistic", setting={}, task="classification",
        classes=make_classes(["water", "land", "sea ice"]),
        embedding=FittedOn(dims=6, model="olmoearth-v1.2-nano", weights_id="random:0"),
    ).save(files / "probe")  # fmt: skip
    store, zones = files / "emb.zarr", ["--zones", files / "districts.geojson", "--id", "name"]
    ran = bocage("predict", store, "--with", files / "probe", "--out", files / "m.tif")
    assert ran.code == 0, ran.err
    maps = [files / "m_2024.tif", files / "m_2025.tif"]
    ran = bocage("zonal", *maps, *zones, "--out", files / "c.csv", "--deltas")
    assert ran.code == 0, ran.err
    table = geopandas.pd.read_csv(files / "c.csv")
    assert table["year"].tolist() == [2024] * 3 + [2025] * 3
    shares = table[["share_water", "share_land", "share_sea_ice"]]
    np.testing.assert_allclose(shares.sum(axis=1)[[0, 1, 3, 4]], 1, atol=1e-9)
    assert {"majority", "ha_water", "delta_share_sea_ice"} <= set(table.columns)
    ran = bocage("zonal", files / "m_2024.probability.tif", *zones, "--out", files / "p.csv")
    assert ran.code == 0, ran.err
    means = geopandas.pd.read_csv(files / "p.csv")[["mean_water", "mean_land", "mean_sea_ice"]]
    np.testing.assert_allclose(means.sum(axis=1)[:2], 1, atol=0.01)
    ran = bocage("change", store, "--out", files / "change.tif")
    assert ran.code == 0, ran.err
    ran = bocage("zonal", files / "change.binary.tif", *zones, "--out", files / "b.csv")
    assert ran.code == 0, ran.err
    assert {"ha_no_change", "ha_change", "share_change"} <= set(
        geopandas.pd.read_csv(files / "b.csv").columns
    )
    ran = bocage("zonal", files / "change.tif", *zones, "--out", files / "s.csv", "--above", "2")
    assert ran.code == 0, ran.err
    assert geopandas.pd.read_csv(files / "s.csv")["median"][0] == pytest.approx(6**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no --out"),
        (["--out", "t.shp"], "ends in .parquet"),
        (["--out", "t.csv", "--id", "gid"], "without the column 'gid'"),
        (["--out", "t.csv", "--stats", "avg"], "statistic 'avg'"),
        (["--out", "t.csv", "--years", "x"], "--years x"),
        (["--out", "t.csv", "--kind", "map"], "kind 'map'"),
        (["--out", "t.csv", "--dims", "9"], "dims=9"),
    ],
)
def test_mistakes_are_one_sentence(bocage, files, words, message):  # noqa: F811 - the fixture
    ran = bocage("zonal", files / "emb.zarr", "--zones", files / "districts.geojson", *words)
    assert ran.code == 1
    assert ran.err.startswith("bocage: error: got ") and message in ran.err
    assert ran.err.count("\n") == 1


def test_a_raster_that_says_nothing_is_asked_about(bocage, files):  # noqa: F811 - the fixture
    path = write_raster(files / "landcover.tif", np.ones((1, 60, 70), np.uint8))
    words = ["zonal", path, "--zones", files / "districts.geojson", "--out", files / "t.csv"]
    assert "--kind classes" in bocage(*words).err
    assert bocage(*words, "--kind", "classes").code == 0
    assert "ha_class_1" in (files / "t.csv").read_text(encoding="utf-8-sig")


@pytest.mark.parametrize("package", ["exactextract", "geopandas"])
def test_without_the_extra_it_says_which(bocage, files, monkeypatch, package):  # noqa: F811
    monkeypatch.setitem(sys.modules, package, None)
    words = ["--zones", files / "districts.geojson", "--out", files / "t.csv"]
    ran = bocage("zonal", files / "emb.zarr", *words)
    assert ran.code == 1
    assert f"without the package {package}" in ran.err and 'bocage[zonal]"' in ran.err
