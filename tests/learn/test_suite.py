"""Suites on synthetic folders, the readers on the real samples, and what each refuses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from bocage.errors import ConfigError, SourceError
from bocage.learn.datasets.class_folders import EUROSAT_BANDS, read_class_folders
from bocage.learn.datasets.dataset import Dataset
from bocage.learn.datasets.official import OFFICIAL
from bocage.learn.datasets.ready import READY, read_dataset
from bocage.learn.suite import TaskConfig, read_suite
from bocage.learn.suite_run import _cell_labels, dataset_rule, embed_dataset, run_suite
from bocage.learn.suite_table import as_dict, markdown, mean_ranks, write
from bocage.sensors import SENTINEL2_L2A

DATA = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no real data at {DATA}")


def write_folders(root, n=8, size=16):
    """Three classes that differ in brightness; places in two clusters."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("Forest", "River", "Town")):
        (root / name).mkdir(parents=True)
        for i in range(n):
            west = 500_000 + 20_000 * (i % 4) + 400 * k
            values = rng.normal(800 + 700 * k, 60, (13, size, size)).astype(np.uint16)
            with rasterio.open(
                root / name / f"{name}_{i}.tif", "w", driver="GTiff", height=size, width=size,
                count=13, dtype="uint16", crs="EPSG:32632",
                transform=Affine(10, 0, west, 0, -10, 5_000_000),
            ) as file:  # fmt: skip
                file.write(values)


SUITE = """
name = "three classes"
data = "data"

[[models]]
name = "olmoearth-v1.2-nano"
weights = "random"

[[models]]
name = "olmoearth-v1.2-nano"
weights = "random"
title = "the same again"

[[tasks]]
name = "mine"
reader = "class_folders"
path = "patches"
patch_size = 8
folds = "spatial"
n_folds = 3
block_m = 10000
normalization = ["pretraining"]

[[tasks]]
name = "mados"
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    root = tmp_path_factory.mktemp("suite")
    write_folders(root / "data" / "patches")
    (root / "suite.toml").write_text(SUITE)
    return run_suite(read_suite(root / "suite.toml"), macs=lambda *_: 12_000_000)


def test_a_suite_scores_models_beside_baselines(result):
    (task,) = result.tasks
    names = list(task.scores)
    assert names[:2] == ["olmoearth-v1.2-nano (random)", "the same again"]
    baselines = ["raw bands, linear", "NDVI, NDWI, linear", "location only", "most frequent"]
    assert names[2:] == baselines
    # Half of the features (the spread within patches) are noise, and samples are few.
    assert task.scores["raw bands, linear"]["accuracy"].value > 0.7
    assert task.scores["most frequent"]["accuracy"].value < 0.5
    assert "3 of 24 samples" in task.about and "10,000 m" in task.about
    # Equal models share their ranks.
    assert mean_ranks(result) == dict.fromkeys(result.models, 1.5)


def test_a_task_without_data_is_left_out_with_the_reason(result):
    ((name, why),) = result.refused.items()
    assert name.startswith("mados") and "Zenodo" in why
    assert "left out mados" in markdown(result)


def test_the_results_are_written_as_table_numbers_and_picture(result, tmp_path):
    written = write(result, tmp_path)
    assert {p.name for p in written} == {"table.md", "suite.json", "pareto.png"}
    stored = json.loads((tmp_path / "suite.json").read_text())
    assert stored == json.loads(json.dumps(as_dict(result)))
    text = (tmp_path / "table.md").read_text()
    assert "| 12M |" in text and "baselines, not claims" in text


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_task_says_what_it_lacks(name, tmp_path):
    with pytest.raises(SourceError, match=name) as told:
        read_dataset(name, reader=None, path=None, root=tmp_path, options={})
    assert told.value.expected and told.value.fix


def test_the_table_says_which_fields_are_its_own():
    own = {name: task.ours for name, task in OFFICIAL.items() if task.ours}
    assert own["tolbi_crop"] == ("metric",) and own["gb2_treesatai"] == ("size_px",)
    assert {field for fields in own.values() for field in fields} <= {"metric", "size_px"}
    # Stated by the authors: overall accuracy of the point sets, error of the ships' lengths.
    for name in ("glance", "us_trees", "geo_ecosystem_annual_test", "mados", "gb2_caffe"):
        assert OFFICIAL[name].ours == ()


@pytest.mark.parametrize("name", READY)
def test_known_data_sets_say_where_to_get_them(name, tmp_path):
    with pytest.raises(SourceError, match=r"not at .*https"):
        read_dataset(name, reader=None, path=None, root=tmp_path, options={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("folds =", "fold ="), "tasks with fold"),
        (('"spatial"', '"diagonal"'), "folds 'diagonal' of task mine"),
        (("[[models]]", "[[model]]"), "with name, data, model"),
        (('"pretraining"', '"whitened"'), "normalization whitened"),
        (('"class_folders"', '"class_files"'), "reader 'class_files'"),
    ],
)
def test_mistakes_in_a_suite_are_named(change, message, tmp_path):
    (tmp_path / "s.toml").write_text(SUITE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        run_suite(read_suite(tmp_path / "s.toml"))


def test_files_that_are_no_suite_are_refused(tmp_path):
    (tmp_path / "s.toml").write_text("name = ")
    with pytest.raises(SourceError, match=r"s\.toml"):
        read_suite(tmp_path / "s.toml")
    (tmp_path / "s.json").write_text("{}")
    with pytest.raises(ConfigError, match="with nothing"):
        read_suite(tmp_path / "s.json")
    (tmp_path / "s.toml").write_text(SUITE.replace('reader = "class_folders"', ""))
    with pytest.raises(ConfigError, match=r"task .mine.*or a reader"):
        run_suite(read_suite(tmp_path / "s.toml"))


def test_the_models_see_the_statistics_of_the_data_set():
    rng = np.random.default_rng(0)
    x = rng.normal(300, 40, (5, 2, 12, 6, 6)).astype(np.float32)
    x[:, :, 3] = np.nan
    factor, offset = dataset_rule("sentinel2_l2a", x)
    changed = x * factor + offset
    own = SENTINEL2_L2A.bands
    for c, band in enumerate(own):
        if c == 3:
            assert np.isnan(changed[:, :, c]).all()
            continue
        # What the model computes from it, and what the method asks for.
        seen = (changed[:, :, c] - (band.mean - 2 * band.std)) / (4 * band.std)
        mean, std = x[:, :, c].mean(dtype=np.float64), x[:, :, c].std(dtype=np.float64)
        np.testing.assert_allclose(seen, (x[:, :, c] - (mean - 2 * std)) / (4 * std), atol=1e-4)


def test_a_cell_has_the_most_frequent_class_of_its_pixels():
    image = np.array([[0, 0, 1, 2], [0, 1, -1, 2], [-1, -1, 1, 1], [-1, -1, 0, 1], [2, 2, 2, 2]])
    np.testing.assert_array_equal(_cell_labels(image, 2, 3), [[0, 2], [-1, 1], [2, 2]])
    numbers = np.array([[1.0, 3.0], [np.nan, 2.0]], np.float32)
    assert _cell_labels(numbers, 2, 0)[0, 0] == 2.0


def test_pixels_of_an_image_become_cells_in_order():
    y = np.zeros((1, 10, 12), np.int64)
    images = {"sentinel2_l2a": np.full((1, 1, 12, 10, 12), 7, np.float32)}
    images["sentinel2_l2a"][0, 0, :, 9] = 9
    dataset = Dataset(
        name="d", images=images, timestamps=np.array([[[1, 6, 2020]]]), y=y, task="classification"
    )

    class Model:
        def window_encoder(self, *, patch_size, output, check_units):
            def encode(values, _timestamps):
                x = values["sentinel2_l2a"][:, 0, :2]
                n, c, h, w = x.shape
                cells = x.reshape(n, c, h // patch_size, patch_size, w // patch_size, patch_size)
                return np.moveaxis(np.nanmean(cells, axis=(3, 5)), 1, -1)

            return encode

    task = TaskConfig(name="d", patch_size=4, normalization=("pretraining",))
    (found,) = embed_dataset(task, dataset, Model()).values()
    assert found.shape == (9, 2)  # 10 rows become three rows of cells, the last one half empty
    assert (found[:6] == 7).all() and (found[6:] == 8).all()


def test_patches_are_read_in_the_order_of_the_sensor(tmp_path):
    (tmp_path / "A").mkdir()
    (tmp_path / "B").mkdir()
    for name in "AB":
        with rasterio.open(
            tmp_path / name / "x.tif", "w", driver="GTiff", height=4, width=4, count=13,
            dtype="uint16", crs="EPSG:32632", transform=Affine(10, 0, 0, 0, -10, 5e6),
        ) as file:  # fmt: skip
            for i in range(13):
                file.write(np.full((4, 4), 100 + i, np.uint16), i + 1)
    found = read_class_folders(tmp_path)
    bands = found.images["sentinel2_l2a"][0, 0, :, 0, 0]
    expected = [100 + EUROSAT_BANDS.index(b) for b in SENTINEL2_L2A.band_names]
    assert bands.tolist() == expected


@needs_data
def test_eurosat_has_its_bands_classes_and_places():
    found = read_dataset("eurosat_ms_200", reader=None, path=None, root=DATA, options={})
    assert found.images["sentinel2_l2a"].shape == (200, 1, 12, 64, 64)
    assert np.bincount(found.y).tolist() == [20] * 10
    assert found.lonlat is not None
    assert (found.lonlat[:, 0] > -25).all() and (found.lonlat[:, 1] > 34).all()
    ndvi = found.images["sentinel2_l2a"][:, 0, [3, 2]].mean(axis=(2, 3))
    ndvi = (ndvi[:, 0] - ndvi[:, 1]) / ndvi.sum(axis=1)
    names = [c.name for c in found.classes]
    assert ndvi[found.y == names.index("Forest")].mean() > 0.4
    assert ndvi[found.y == names.index("SeaLake")].mean() < 0


@needs_data
def test_slovenia_has_three_clear_dates_and_land_use():
    found = read_dataset("eolearn_slovenia", reader=None, path=None, root=DATA, options={})
    x = found.images["sentinel2_l2a"]
    assert x.shape == (1, 3, 12, 101, 100) and found.y.shape == (1, 101, 100)
    assert found.timestamps[0, :, 1].tolist() == [6, 7, 8]  # July, August, September, in order
    blue = x[0, :, 0].mean(axis=(1, 2))
    assert (blue < 1000).all()  # no clouds
    names = np.array([c.name for c in found.classes])
    assert set(names[found.y[found.y >= 0]]) == set(names)
    forest, grass = (found.y[0] == np.flatnonzero(names == n)[0] for n in ("forest", "grassland"))
    assert x[0, :, 2][:, forest].mean() < x[0, :, 2][:, grass].mean()  # forests are darker in red


@needs_data
def test_worldcereal_has_months_with_holes_and_radar_in_decibels():
    pytest.importorskip("pyarrow")
    found = read_dataset("worldcereal", reader=None, path=None, root=DATA, options={})
    s2, s1 = found.images["sentinel2_l2a"], found.images["sentinel1"]
    assert s2.shape == (500, 12, 12, 1, 1) and s1.shape == (500, 12, 2, 1, 1)
    share = np.isnan(s2[:, :, 0, 0, 0]).mean(axis=0)
    assert share[4] == pytest.approx(0.39)  # as counted in the table itself
    assert -25 < np.nanmedian(s1[:, :, 1]) < np.nanmedian(s1[:, :, 0]) < 0
    assert np.bincount(found.y).min() >= 1 and len(found.classes) >= 3
    assert (np.diff(found.timestamps[:, :, 2] * 12 + found.timestamps[:, :, 1], axis=1) == 1).all()


def test_a_suite_fine_tunes_on_the_same_folds(tmp_path):
    write_folders(tmp_path / "data" / "patches", n=4)
    text = SUITE.replace('[[tasks]]\nname = "mados"', "").replace(
        'folds = "spatial"\nn_folds = 3\nblock_m = 10000',
        'folds = "random"\nn_folds = 2\nfinetune = { epochs = 2, batch_size = 4 }',
    )
    text = text.replace(
        '[[models]]\nname = "olmoearth-v1.2-nano"\nweights = "random"\ntitle = "the same again"', ""
    )
    (tmp_path / "s.toml").write_text(text)
    said = []
    found = run_suite(read_suite(tmp_path / "s.toml"), macs=lambda *_: 5, say=said.append)
    name = "olmoearth-v1.2-nano (random)"
    (task,) = found.tasks
    assert list(task.scores)[:2] == [name, f"{name}, fine-tuned"]
    n = [s.n for s in task.scores.values()]
    assert set(n) == {12}  # everyone on the same samples
    assert len([line for line in said if line.startswith("tuned")]) == 2
    assert set(mean_ranks(found)) == {name, f"{name}, fine-tuned"}
    assert {p.name for p in write(found, tmp_path / "out")} >= {"pareto.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{ epoch = 2 }", "finetune with epoch of task mine"),
        ("{ patch_size = 2 }", "patch_size and seed"),
        ("{ epochs = 0 }", "epochs=0"),
    ],
)
def test_mistakes_in_fine_tuning_are_named_before_the_work(options, message, tmp_path):
    (tmp_path / "s.toml").write_text(
        SUITE.replace("n_folds = 3", f"n_folds = 3\nfinetune = {options}")
    )
    with pytest.raises(ConfigError) as told:  # there are not even data
        run_suite(read_suite(tmp_path / "s.toml"))
    assert message in str(told.value)
