"""In-loop scores tell features that know the classes from features that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler

from bocage.errors import InputError
from bocage.pretrain.architecture import make_pretraining_model
from bocage.pretrain.evaluation import embed, encoder_of, evaluate, hits, read_evaluation_set
from bocage.pretrain.recipe import make_recipe
from bocage.sensors import SENSORS

MEAN = np.array([band.mean for band in SENSORS["sentinel2_l2a"].bands], np.float32)
N = 40


def write(path: Path, **changed: np.ndarray) -> Path:
    """Two classes that differ in tone."""
    rng = np.random.default_rng(0)
    labels = np.arange(N) % 2
    tone = np.where(labels, 1.3, 0.8)[:, None, None, None, None]
    images = (MEAN * tone + rng.normal(0, 40, (N, 1, 16, 16, 12))).astype(np.float32)
    lonlat = np.stack([np.linspace(0, 40, N), np.linspace(40, 50, N)], axis=1)
    arrays = {"images": images, "labels": labels, "lonlat": lonlat, **changed}
    np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
    return path


def test_separable_classes_are_found_and_shuffled_ones_are_not(tmp_path: Path) -> None:
    recipe = make_recipe("v1.2", "nano")
    tensors = make_pretraining_model(recipe.model, 0).state_dict()
    good = read_evaluation_set(write(tmp_path / "tone.npz"))
    shuffled = np.random.default_rng(1).permutation(np.arange(N) % 2)
    bad = read_evaluation_set(write(tmp_path / "noise.npz", labels=shuffled))
    scores = evaluate(recipe.model, tensors, (good, bad))
    assert set(scores) == {"tone/knn", "tone/linear", "noise/knn", "noise/linear"}
    assert scores["tone/knn"] == scores["tone/linear"] == 1.0
    assert scores["noise/knn"] < 0.8
    assert scores["noise/linear"] < 0.8


def test_scores_agree_with_scikit_learn_on_the_same_folds(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    dataset = read_evaluation_set(write(tmp_path / "set.npz"))
    x = (rng.normal(size=(N, 4)) + dataset.labels[:, None]).astype(np.float32)
    right = hits(x, dataset)
    assert {len(r) for r in right.values()} == {N}
    splits = list(dataset.folds.splits())
    peer = cross_val_score(
        LogisticRegression(), StandardScaler().fit_transform(x), dataset.labels, cv=splits
    )
    sizes = [len(test) for _, test in splits]
    assert right["linear"].mean() == pytest.approx(np.average(peer, weights=sizes), abs=0.1)


def test_places_give_blocks_and_no_places_random_folds(tmp_path: Path) -> None:
    spatial = read_evaluation_set(write(tmp_path / "a.npz"))
    assert spatial.folds.name == "spatial"
    assert read_evaluation_set(write(tmp_path / "b.npz", lonlat=None)).folds.name == "random"


def test_the_embedding_is_the_mean_of_the_map_and_skips_missing_pixels(tmp_path: Path) -> None:
    recipe = make_recipe("v1.2", "nano")
    encoder = encoder_of(recipe.model, make_pretraining_model(recipe.model, 0).state_dict())
    images = np.load(write(tmp_path / "a.npz"))["images"]
    images[0, :, :8] = np.nan
    x = embed(encoder, read_evaluation_set(write(tmp_path / "b.npz", images=images)))
    assert x.shape == (N, recipe.model.width)
    assert np.isfinite(x).all()


def test_folders_of_npy_are_read_too(tmp_path: Path) -> None:
    arrays = np.load(write(tmp_path / "a.npz"))
    (tmp_path / "folder").mkdir()
    for name in arrays.files:
        np.save(tmp_path / "folder" / f"{name}.npy", arrays[name])
    found = read_evaluation_set(tmp_path / "folder")
    np.testing.assert_array_equal(found.images, arrays["images"])
    assert found.name == "folder"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"labels": None}, "without labels"),
        ({"images": np.zeros((N, 16, 16, 12))}, r"shape \[40, 16, 16, 12\]"),
        ({"images": np.zeros((N, 1, 8, 8, 13))}, "13"),
        ({"labels": np.zeros(3, int)}, r"labels of shape \[3\]"),
        ({"labels": np.full(N, -1)}, "whole numbers from 0"),
        ({"sensor": np.array("modis")}, "sensor modis"),
        ({"timestamps": np.zeros((N, 2, 3), int)}, r"timestamps of shape \[40, 2, 3\]"),
        ({"lonlat": np.zeros((3, 2))}, r"lonlat of shape \[3, 2\]"),
    ],
)
def test_a_misshapen_set_is_named(changed: dict, named: str, tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", **changed)
    with pytest.raises(InputError, match=named):
        read_evaluation_set(path)


def test_a_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.npz"):
        read_evaluation_set(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InputError, match=r"text\.npz"):
        read_evaluation_set(tmp_path / "text.npz")
