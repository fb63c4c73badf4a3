"""The leakage check against scikit-learn's 1-NN, and on scores that are memory."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.errors import BocageWarning, InputError
from bocage.scoring.folds import make_folds
from bocage.scoring.location import check_leakage, predict_by_location


@pytest.fixture(scope="module")
def clicked() -> tuple[np.ndarray, np.ndarray]:
    """Labels clicked in clusters of one class: 40 places of 10 clicks within 30 m."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 50_000, (40, 2))[np.arange(400) // 10] + rng.normal(0, 30, (400, 2))
    return xy, rng.permutation(np.arange(40) % 2)[np.arange(400) // 10]


def test_location_only_neighbor_equals_scikit_learn(clicked) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    xy, labels = clicked
    lonlat = xy / 111_200 + np.array([10.0, 60.0])
    for folds, coordinates, options in [
        (make_folds("random", labels=labels, xy_m=xy), xy, {}),
        (
            make_folds("random", labels=labels, lonlat=lonlat),
            np.radians(lonlat[:, ::-1]),
            {"metric": "haversine"},
        ),
    ]:
        expected = np.empty(400, int)
        for train, test in folds.splits():
            model = neighbors.KNeighborsClassifier(1, **options)
            expected[test] = model.fit(coordinates[train], labels[train]).predict(coordinates[test])
        np.testing.assert_array_equal(predict_by_location(folds, labels), expected)


def test_a_score_that_location_explains_is_announced(clicked) -> None:
    xy, labels = clicked
    predicted = np.where(np.random.default_rng(1).random(400) < 0.9, labels, 1 - labels)
    leaky = make_folds("random", labels=labels, xy_m=xy)
    with pytest.warns(BocageWarning, match="beats the model"):
        found = check_leakage(leaky, labels, predicted)
    assert found.location > 0.98
    assert found.model == pytest.approx((predicted == labels).mean())
    # The same predictions in blocks: the place no longer tells the class.
    honest = make_folds("spatial", labels=labels, xy_m=xy, block_m=5000)
    found = check_leakage(honest, labels, predicted)
    assert found.verdict == "model"
    assert found.location < 0.7 < found.low + found.location


def test_equal_predictions_are_a_tie(clicked) -> None:
    xy, labels = clicked
    folds = make_folds("random", labels=labels, xy_m=xy)
    with pytest.warns(BocageWarning, match="cannot be told from"):
        found = check_leakage(folds, labels, predict_by_location(folds, labels))
    assert found.verdict == "tie"
    assert found.low == found.high == 0


def test_numbers_and_many_labels_are_checked_too(clicked) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    xy, labels = clicked
    rng = np.random.default_rng(0)
    y = labels + rng.normal(0, 0.5, 400)
    folds = make_folds("spatial", labels=y, xy_m=xy, block_m=5000)
    found = check_leakage(folds, y, y + rng.normal(0, 0.1, 400))
    by_place = predict_by_location(folds, y)
    assert found.metric == "R2"
    assert found.location == pytest.approx(metrics.r2_score(y, by_place), abs=1e-9)
    many = rng.random((400, 5)) < 0.4
    guess = many ^ (rng.random((400, 5)) < 0.1)
    found = check_leakage(folds, many, guess)
    expected = metrics.f1_score(many, guess, average="samples", zero_division=1)
    assert found.model == pytest.approx(expected, abs=1e-9)


def test_without_places_nothing_is_claimed(clicked) -> None:
    _, labels = clicked
    folds = make_folds("random", labels=labels)
    found = check_leakage(folds, labels, labels)
    assert found.verdict == "unknown"
    assert found.model == 1
    assert "nobody knows" in found.text
    with pytest.raises(InputError, match="folds without places"):
        predict_by_location(folds, labels)
    with pytest.raises(InputError, match="one prediction for each label"):
        check_leakage(folds, labels, labels[:3])
    with pytest.raises(InputError, match="predictions with NaN"):
        check_leakage(folds, labels, np.full(400, np.nan))
