"""`bocage predict` and `bocage change` as typed."""

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from bocage.cli import app
from bocage.errors import BocageError
from bocage.learn.classes import make_classes
from bocage.learn.estimators import Linear
from bocage.learn.probe import FittedOn, Probe
from tests.change.conftest import write_bands, write_store
from tests.learn.predict.conftest import smooth

runner = CliRunner()


def run(*words):
    result = runner.invoke(app, [str(w) for w in words])
    if isinstance(result.exception, BocageError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def files(tmp_path):
    x = [smooth(6, (90, 70), seed) for seed in (0, 1)]
    both = write_store(tmp_path / "both.zarr", x, (2024, 2025))
    rng = np.random.default_rng(0)
    Probe(
        estimator=Linear(
            mean=np.zeros(6), scale=np.ones(6), weight=rng.normal(0, 1, (6, 3)),
            bias=np.zeros(3), link="softmax",
        ),
        method="logistic", setting={}, task="classification",
        classes=make_classes(["water", "land", "ice"]),
        embedding=FittedOn(dims=6, model="olmoearth-v1.2-nano", weights_id="random:0"),
    ).save(tmp_path / "probe")  # fmt: skip
    return both, tmp_path / "probe", tmp_path


def test_a_saved_probe_maps_a_store(files):
    both, probe, folder = files
    plan = run("predict", both, "--with", probe, "--out", folder / "m.tif", "--dry-run")
    assert "water, land, ice" in plan and "m_2025.tif" in plan
    assert not (folder / "m_2025.tif").exists()
    text = run(
        "predict", both, "--with", probe, "--out", folder / "m.tif", "--years", "2025",
        "--polygons", folder / "m.gpkg", "--no-probability",
    )  # fmt: skip
    assert "water" in text and "km2" in text and (folder / "m.gpkg").exists()
    with rasterio.open(folder / "m.tif") as file:
        assert set(np.unique(file.read(1))) <= {0, 1, 2, 255}
    assert "nothing to do" in run(
        "predict", both, "--with", probe, "--out", folder / "m.tif", "--years", "2025",
        "--polygons", folder / "m.gpkg", "--no-probability",
    )  # fmt: skip


def test_two_years_of_a_store_make_a_map_of_change(files):
    both, _, folder = files
    plan = run("change", both, "--years", "2024,2025", "--dry-run")
    assert "2024 to 2025" in plan
    text = run("change", both, "--years", "2024,2025", "--out", folder / "c.tif")
    assert "magnitude of change >=" in text and (folder / "c.binary.tif").exists()


def test_two_images_make_a_map_of_change(files):
    _, _, folder = files
    rng = np.random.default_rng(0)
    x = rng.normal(500, 50, (3, 60, 60)).astype(np.float32)
    y = (x * 1.2 + rng.normal(0, 5, x.shape)).astype(np.float32)
    y[:, 20:30, 20:30] += 300
    a, b = write_bands(folder / "a.tif", x), write_bands(folder / "b.tif", y)
    text = run("change", a, b, "--out", folder / "c.tif", "--method", "irmad")
    assert "chi-square of change" in text
    with rasterio.open(folder / "c.binary.tif") as file:
        found = file.read(1)
    assert found[20:30, 20:30].all() and found.sum() < 150


@pytest.fixture
def scenes(tmp_path):
    """Two dates in one folder, the later with 1000 more in every band, and both dates apart."""
    rng = np.random.default_rng(0)
    x = rng.uniform(200, 3000, (12, 60, 50)).astype(np.uint16)
    y = (x + 40).astype(np.uint16)
    y[:, 20:30, 20:30] += 900
    names = ["B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"]
    (tmp_path / "series").mkdir()
    write_bands(tmp_path / "series" / "S2_20210615.tif", x, names=names)
    write_bands(tmp_path / "series" / "S2_20240615.tif", y + np.uint16(1000), names=names)
    write_bands(tmp_path / "a.tif", x, names=names)
    write_bands(tmp_path / "b.tif", y, names=names)
    return tmp_path


def values(path):
    with rasterio.open(path) as file:
        return file.read()


def test_options_of_imagery_hold_for_both_scenes_or_for_each(scenes, monkeypatch):
    monkeypatch.chdir(scenes)
    words = ["series", "--dates", "before=2021,after=2024", "--offset", "before=0,after=-1000"]
    text = run("change", *words, "--out", "c.tif", "--method", "cva")
    assert "2021 to 2024" in text and "12 bands" in text
    run("change", "a.tif", "b.tif", "--out", "bands.tif", "--method", "cva")
    np.testing.assert_array_equal(values("c.tif"), values("bands.tif"))
    assert "nothing to do" in run("change", *words, "--out", "c.tif", "--method", "cva")
    box = "77.0515,28.9085,77.0545,28.9110"
    small = run("change", *words, "--bbox", box, "--dry-run")
    assert "50 x 60 cells" in text and "50 x 60 cells" not in small


def test_a_map_of_other_dates_or_values_is_not_taken_for_the_asked_one(scenes, monkeypatch):
    monkeypatch.chdir(scenes)
    for name in ("S2_20210715.tif", "S2_20240715.tif"):
        (scenes / "series" / name).write_bytes((scenes / "series" / "S2_20210615.tif").read_bytes())
    june = ["--dates", "before=2021-06,after=2024-06"]
    run("change", "series", *june, "--offset", "before=0,after=-1000", "--out", "c.tif")
    for other in (
        ["--dates", "before=2021-07,after=2024-06", "--offset", "before=0,after=-1000"],
        [*june, "--offset", "before=0,after=-990"],
    ):
        with pytest.raises(BocageError, match="made otherwise"):
            run("change", "series", *other, "--out", "c.tif")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["predict", "both.zarr", "--with", "nothing", "--out", "m.tif"], "nothing, which is no"),
        (
            ["predict", "both.zarr", "--with", "probe", "--out", "m.tif", "--years", "x"],
            "--years x",
        ),
        (["predict", "gone.zarr", "--with", "probe", "--out", "m.tif"], "does not exist"),
        (["change", "both.zarr", "--out", "c.tif", "--years", "2024"], "two years"),
        (["change", "both.zarr"], "no --out"),
        (["change", "--out", "c.tif"], "no BEFORE and no --catalog"),
        (["change", "--catalog", "https://example.org/", "--out", "c.tif"], "--dates before="),
        (
            ["change", "both.zarr", "--years", "2024,2025", "--scale", "10000", "--out", "c.tif"],
            "--scale with the embeddings both.zarr",
        ),
        (
            ["predict", "both.zarr", "--with", "probe", "--date", "2024-01-01", "--out", "m.tif"],
            "--date with the embeddings both.zarr",
        ),
        (
            [
                "predict",
                "both.zarr",
                "--with",
                "probe",
                "--out",
                "m.tif",
                "--window",
                "64",
                "--keep-embeddings",
            ],
            "--window and --keep-embeddings with the embeddings both.zarr",
        ),
        (
            ["predict", "both.zarr", "--with", "probe", "--out", "both.zarr/m.tif"],
            r"--out both.zarr/m.tif inside of both.zarr; .* use --out m.tif",
        ),
        (
            ["change", "both.zarr", "--years", "2024,2025", "--out", "both.zarr/in/c.tif"],
            "inside of both.zarr",
        ),
        (
            ["change", "both.zarr", "both.zarr", "--years", "2024,2024", "--out", "c.tif"],
            "both.zarr at both times",
        ),
        (
            ["change", "both.zarr", "--years", "2024,2025", "--components", "0", "--out", "c.tif"],
            "--components 0",
        ),
        (
            ["change", "both.zarr", "--years", "2024,2025", "--out", "probe/probe.json/c.tif"],
            "while writing probe/probe.json/c.tif",
        ),
        (["change", "both.zarr", "gone.zarr", "--out", "c.tif"], "gone.zarr, which does not"),
    ],
)
def test_mistakes_are_one_sentence(files, monkeypatch, words, match):
    monkeypatch.chdir(files[2])
    with pytest.raises(BocageError, match=match):
        run(*words)
