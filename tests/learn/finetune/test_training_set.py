import numpy as np
import pytest

from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.learn.finetune import (
    FinetuneConfig,
    Task,
    make_training_set,
    open_training_set,
    write_training_set,
)
from tests.learn.finetune.crops import STAMPS, crops


def made(y, task, x=None, **options):
    n = len(y)
    x = np.full((n, 2, 8, 8, 12), 800, np.float32) if x is None else x
    x[..., ::2, 0] = 3000
    x[..., ::2, 1] = 100
    stamps = np.tile(STAMPS, (n, 1, 1))
    return make_training_set({"sentinel2_l2a": x}, y, task=task, timestamps=stamps, **options)


def test_comes_back_from_its_folder(tmp_path):
    data = crops(lonlat=np.zeros((24, 2)))
    write_training_set(tmp_path / "set", data)
    again = open_training_set(tmp_path / "set")
    assert again.task == data.task and again.sensors == data.sensors
    assert again.fingerprint() == data.fingerprint()
    for name in ("labels", "timestamps", "split", "lonlat"):
        assert np.array_equal(getattr(again, name), getattr(data, name))
    assert isinstance(again.x["sentinel2_l2a"], np.memmap)
    with pytest.raises(ConfigError, match="holds a training set already"):
        write_training_set(tmp_path / "set", data)
    (tmp_path / "set/labels.npy").unlink()
    with pytest.raises(SourceError, match=r"labels\.npy"):
        open_training_set(tmp_path / "set")


def test_values_become_indices_of_classes():
    y = np.array([7, 3, 7, 255, 3, 7, 3, 7])
    data = made(
        y,
        "classification",
        classes={3: "land", 7: "water"},
        ignore=(255,),
        split=[0, 0, 0, 0, 1, 1, 2, 2],
    )
    assert data.labels.tolist() == [1, 0, 1, -1, 0, 1, 0, 1]
    assert data.counts("train").tolist() == [1, 2]
    with pytest.raises(InputError, match=r"label values \[255\] \(1 times\)"):
        made(y, "classification", classes={3: "land", 7: "water"})


@pytest.mark.parametrize(
    ("y", "task", "words"),
    [
        (np.zeros(10, int), "classification", r"1 class\(es\) for classification \(0\)"),
        (np.full((10, 8, 8), -1), "segmentation", r"0 class\(es\) for segmentation"),
        (np.r_[np.arange(9.0), np.nan], "regression", "1 of 10 targets that are NaN"),
        (np.full((10, 8, 8), np.nan), "regression", "all labels of train are ignored"),
        (np.zeros((10, 3, 3), int), "segmentation", "labels of 3 rows for crops of 8"),
        (np.zeros((10, 8, 8), int), "classification", r"labels of shape \[10, 8, 8\]"),
        (np.full((10, 3), 2), "multilabel", "3 classes"),
    ],
)
def test_labels_that_teach_nothing_are_refused(y, task, words):
    with pytest.raises(InputError, match=words):
        made(y, task, split=np.arange(10) % 3)


def test_one_class_in_training_is_refused_and_unseen_classes_are_said():
    y = np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(InputError, match=r"one class only \(0\)"):
        made(y, "classification", split=[0, 0, 0, 1, 1, 2])
    y = np.array([0, 1, 0, 1, 2, 1])
    with pytest.warns(BocageWarning, match="no training sample of 2"):
        made(y, "classification", split=[0, 0, 0, 1, 1, 2])
    with pytest.raises(InputError, match="without val samples"):
        made(y, "classification", split=[0, 0, 0, 0, 0, 0])


def test_reflectance_is_refused_as_everywhere():
    x = np.random.default_rng(0).uniform(0, 0.5, (10, 2, 8, 8, 12)).astype(np.float32)
    stamps = np.tile(STAMPS, (10, 1, 1))
    with pytest.raises(InputError, match="reflectance"):
        make_training_set(
            {"sentinel2_l2a": x}, np.arange(10) % 2, task="classification", timestamps=stamps
        )


def test_moments_are_those_of_numpy_over_valid_training_pixels():
    data = crops(n=12)
    data.x["sentinel2_l2a"][0, 0, :4] = np.nan
    mean, std = data.moments()
    flat = data.x["sentinel2_l2a"][data.rows("train")].reshape(-1, 12).astype(np.float64)
    assert mean["sentinel2_l2a"] == pytest.approx(np.nanmean(flat, axis=0), rel=1e-9)
    assert std["sentinel2_l2a"] == pytest.approx(np.nanstd(flat, axis=0), rel=1e-7)


def test_a_spatial_split_keeps_neighbors_together():
    n = 200
    rng = np.random.default_rng(0)
    lonlat = np.column_stack([rng.uniform(10, 11, n), rng.uniform(50, 51, n)])
    y = (lonlat[:, 0] * 4).astype(int) % 2
    data = made(y, "classification", split="spatial", lonlat=lonlat)
    assert set(data.split) == {0, 1, 2}
    with pytest.raises(ConfigError, match="without places"):
        made(y, "classification", split="spatial")


def test_options_that_cannot_be_are_named():
    for options, words in (
        ({"recipe": "magic"}, "recipe='magic'"),
        ({"epochs": 0}, "epochs=0"),
        ({"drop_timesteps": 1.0}, "drop_timesteps"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"class_weights": (0.0, 0.0)}, "class_weights"),
    ):
        with pytest.raises(ConfigError, match=words):
            FinetuneConfig(**options)
    with pytest.raises(ConfigError, match="task 'detection'"):
        Task(kind="detection")
