"""Fine-tuning on folds: no network sees what it answers, and answers go to their samples."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bocage.learn.classes import make_classes
from bocage.learn.datasets.dataset import Dataset
from bocage.learn.finetune import FinetuneConfig, crossval
from bocage.learn.finetune.crossval import cross_finetune
from bocage.models import load_model
from bocage.scoring.folds import make_folds

CONFIG = FinetuneConfig(epochs=2, batch_size=8, patch_size=8, recipe="plain", lr=1e-3)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return load_model("olmoearth-v1.2-nano", weights=None, compile=False)


def images(y):
    """Crops of 16 px whose near infrared says the class of the crop."""
    rng = np.random.default_rng(0)
    x = rng.normal(1500, 300, (len(y), 1, 12, 16, 16)).clip(50).astype(np.float32)
    x[:, :, 3] += 3000 * np.asarray(y)[:, None, None, None]
    return Dataset(
        name="made",
        images={"sentinel2_l2a": x},
        timestamps=np.tile([[[1, 5, 2022]]], (len(y), 1, 1)),
        y=np.asarray(y, np.int64),
        task="classification",
        classes=make_classes({3: "land", 8: "water"}),  # values that are not their indices
    )


def test_a_label_does_not_reach_its_own_answer(model):
    y = np.tile([0, 1], 16)
    folds = make_folds("random", n_folds=2, labels=y, group=np.arange(32))
    first = cross_finetune(images(y), folds, np.arange(32), model, config=CONFIG)
    assert np.isfinite(first).all() and first.sum(axis=1) == pytest.approx(1)
    changed = images(y)
    changed.y[folds.test(0)] = 1 - changed.y[folds.test(0)]  # fold 1 learns these, fold 0 not
    second = cross_finetune(changed, folds, np.arange(32), model, config=CONFIG)
    assert np.array_equal(first[folds.test(0)], second[folds.test(0)])
    assert not np.allclose(first[folds.test(1)], second[folds.test(1)])


def by_sight(data, _begun, _config, split):
    """In the place of a network: the class that the pixels show, one-hot."""
    rows = data.rows(split)
    x = data.x["sentinel2_l2a"][rows][:, 0, :, :, 3]
    p = data.task.label_px
    if p is not None:
        n, h, w = x.shape
        x = x.reshape(n, h // p, p, w // p, p)
    seen = np.nanmean(x, axis=(2, 4) if p else (1, 2)) > 3000
    return np.eye(2)[seen.astype(int)]


@pytest.fixture
def without_training(monkeypatch):
    """Records the training sets; answers are what is to be seen in the crops of the test."""
    sets = []

    def fake(data, *_args, **_options):
        sets.append(data)
        return SimpleNamespace(best_epoch=0)

    monkeypatch.setattr(crossval, "finetune", fake)
    monkeypatch.setattr(crossval, "start", lambda *_: SimpleNamespace(module=None))
    monkeypatch.setattr(crossval, "restore", lambda *_: None)
    monkeypatch.setattr(crossval, "predict_split", by_sight)
    return sets


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_each_cell_gets_its_own_answer(without_training):
    """Two images whose sides are neither whole crops nor whole patches."""
    rng = np.random.default_rng(1)
    cells = rng.integers(0, 2, (2, 11, 18))
    x = np.full((2, 1, 12, 44, 72), 1000, np.float32)
    x[:, 0, 3] += 4000 * cells.repeat(4, 1).repeat(4, 2)
    x = x[..., :42, :70]
    dataset = Dataset(
        name="made",
        images={"sentinel2_l2a": x},
        timestamps=np.array([[[1, 5, 2021]], [[1, 5, 2022]]]),
        y=cells.repeat(4, 1).repeat(4, 2)[:, :42, :70],
        task="classification",
        classes=make_classes({3: "land", 8: "water"}),
    )
    at = np.sort(rng.choice(cells.size, 300, replace=False))  # the others have no label
    y = cells.reshape(-1)[at]
    folds = make_folds("random", n_folds=3, labels=y, group=np.arange(300))
    config = FinetuneConfig(patch_size=4)
    scores = cross_finetune(dataset, folds, at, None, config=config, cell_labels=cells)
    assert np.array_equal(scores.argmax(axis=1), y)
    for i, data in enumerate(without_training):
        assert data.task.kind == "segmentation" and data.task.label_px == 4
        n = [int((data.labels[data.rows(s)] >= 0).sum()) for s in ("train", "val", "test")]
        assert n[2] == len(folds.test(i)) and sum(n) == 300
        assert n[1] == pytest.approx(200 / 4, abs=3)
        # Crops keep the date of their image.
        assert set(data.timestamps[:, 0, 2]) == {2021, 2022}


def test_whole_blocks_choose_the_epoch(without_training):
    y = np.tile([0, 1], 40)
    block = np.arange(80) // 4
    folds = make_folds("group", n_folds=4, labels=y, group=block)
    found = cross_finetune(images(y), folds, np.arange(80), None, config=CONFIG)
    assert np.array_equal(found.argmax(axis=1), y)
    for data in without_training:
        parts = [set(block[data.rows(s)]) for s in ("train", "val", "test")]
        assert not (parts[0] & parts[1] or parts[1] & parts[2] or parts[0] & parts[2])
        assert len(parts[1]) == pytest.approx(15 / 4, abs=1)
