"""Scores of classes against scikit-learn and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.errors import InputError
from bocage.scoring.confusion import Confusion

K = 5


@pytest.fixture(scope="module")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.choice(K, (6, 40, 50), p=[0.5, 0.3, 0.15, 0.05, 0.0]).astype(np.uint8)
    wrong = rng.random(target.shape) < 0.3
    return np.where(wrong, rng.integers(0, K, target.shape), target).astype(np.uint8), target


def test_scores_equal_scikit_learn(pixels) -> None:
    sk = pytest.importorskip("sklearn.metrics")
    prediction, target = pixels
    found = Confusion(K).update(prediction, target).compute()
    t, p = target.ravel(), prediction.ravel()
    np.testing.assert_array_equal(found.confusion, sk.confusion_matrix(t, p, labels=range(K)))
    expected = {
        "accuracy": sk.accuracy_score(t, p),
        "f1_micro": sk.f1_score(t, p, average="micro"),
        "f1_macro": sk.f1_score(t, p, average="macro", zero_division=0),
        "kappa": sk.cohen_kappa_score(t, p),
        "miou": sk.jaccard_score(t, p, average="macro", zero_division=0),
        "balanced_accuracy": np.mean([(p[t == c] == c).mean() for c in range(4)]),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-12), name
    table = sk.precision_recall_fscore_support(t, p, labels=range(K), zero_division=0)
    for c in range(4):
        row = found.rows[c]
        got = [row["precision"].value, row["recall"].value, row["f1"].value, row["support"]]
        np.testing.assert_allclose(got, [column[c] for column in table], rtol=1e-12)
    # Class 4 is predicted but never true: its recall is not defined, its F1 is zero.
    assert np.isnan(found.rows[4]["recall"].value)
    assert found.rows[4]["f1"].value == 0


def test_miou_is_global_and_equals_torchmetrics(pixels) -> None:
    jaccard = pytest.importorskip("torchmetrics.classification")
    import torch

    prediction, target = pixels
    target = target.copy()
    target[:, :5] = 255
    oracle = jaccard.MulticlassJaccardIndex(K, average="macro", ignore_index=255)
    ours = Confusion(K, ignore=255)
    for i in range(6):
        oracle.update(torch.from_numpy(prediction[i]).long(), torch.from_numpy(target[i]).long())
        ours.update(prediction[i], target[i])
    assert ours.compute()["miou"].value == pytest.approx(float(oracle.compute()), rel=1e-6)
    per_image = [
        Confusion(K, ignore=255).update(p, t) for p, t in zip(prediction, target, strict=True)
    ]
    means = np.mean([metric.compute()["miou"].value for metric in per_image])
    assert means != pytest.approx(ours.compute()["miou"].value, abs=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_any_integer_type_and_layout_counts_the_same(pixels, dtype) -> None:
    prediction, target = pixels
    expected = Confusion(K).update(prediction, target).compute().confusion
    p, t = prediction.astype(dtype), target.astype(dtype)
    for a, b in [(p, t), (p.ravel(), t.ravel()), (p.transpose(2, 0, 1), t.transpose(2, 0, 1))]:
        np.testing.assert_array_equal(Confusion(K).update(a, b).compute().confusion, expected)
    blocks = np.arange(t.size).reshape(t.shape) // 77
    by_pixel = Confusion(K).update(p, t, block=blocks)
    np.testing.assert_array_equal(by_pixel.compute().confusion, expected)
    assert by_pixel.state()["n"].sum() == t.size


def test_names_reach_the_table_and_the_markdown(pixels) -> None:
    names = ("water", "crop", "forest", "built", "snow")
    found = Confusion(names).update(*pixels).compute()
    assert [row["class"] for row in found.rows] == list(names)
    assert found.rows[0]["support"] == (pixels[1] == 0).sum()
    text = found.markdown()
    assert "| miou | 0." in text
    assert "| water | 0." in text


def test_wrong_classes_and_shapes_are_refused(pixels) -> None:
    prediction, target = pixels
    with pytest.raises(InputError, match="target class 255; expected classes 0 to 4"):
        Confusion(K).update(prediction, np.where(target == 3, 255, target))
    with pytest.raises(InputError, match="predicted class -1"):
        Confusion(K).update(prediction.astype(int) - 1, target)
    with pytest.raises(InputError, match="predictions of type float32"):
        Confusion(K).update(prediction.astype(np.float32), target)
    with pytest.raises(InputError, match="argmax of scores"):
        Confusion(K).update(np.zeros((6, K, 40, 50)), target)
    with pytest.raises(InputError, match="two classes"):
        Confusion(1)
    empty = Confusion(K, ignore=0).update(np.zeros(4, int), np.zeros(4, int)).compute()
    assert empty.n == 0
    assert np.isnan(empty["accuracy"].value)


@pytest.mark.slow
def test_thirty_million_pixels_take_under_two_seconds() -> None:
    import time

    rng = np.random.default_rng(0)
    target = rng.integers(0, 10, (30, 1000, 1000), dtype=np.uint8)
    prediction = rng.integers(0, 10, (30, 1000, 1000), dtype=np.uint8)
    start = time.perf_counter()
    Confusion(10).update(prediction, target).compute()
    assert time.perf_counter() - start < 2
