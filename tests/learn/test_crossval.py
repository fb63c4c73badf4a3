import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bocage.learn import crossval
from bocage.learn.crossval import Choice, Target, choose, cross_validate
from bocage.scoring.folds import make_folds

rng = np.random.default_rng(0)
N = 180
Y = rng.integers(0, 3, N)
GOOD = (rng.normal(size=(3, 6))[Y] + 0.8 * rng.normal(size=(N, 6))).astype(np.float32)
NOISE = rng.normal(size=(N, 6)).astype(np.float32)
XY = rng.uniform(0, 10_000, (N, 2))
TARGET = Target(y=Y, task="classification", n_classes=3)
FOLDS = make_folds("spatial", n_folds=4, labels=Y, xy_m=XY, block_m=1500)


def test_every_fold_is_predicted_by_a_model_of_the_others():
    found = cross_validate(GOOD, TARGET, FOLDS, "logistic", settings=[{"c": 1.0}])
    for train, test in FOLDS.splits():
        exact = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=1000)
        model = make_pipeline(StandardScaler(), exact).fit(GOOD[train].astype(np.float64), Y[train])
        expected = model.predict_proba(GOOD[test].astype(np.float64))
        np.testing.assert_allclose(found.scores[test], expected, atol=1e-7)


def test_the_setting_is_the_one_that_inner_folds_like_best():
    train, _ = next(FOLDS.splits())
    found = choose(GOOD, TARGET, train, FOLDS.block, method="logistic")
    splits = crossval._inner(TARGET, train, FOLDS.block, 0)
    assert len(splits) == 3
    block = FOLDS.block
    for a, b in splits:
        assert not set(block[a]) & set(block[b]) and set(a) | set(b) <= set(train)
    loss = {}
    for c in (0.01, 0.1, 1.0, 10.0, 100.0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=5000))
        loss[c] = sum(
            len(b)
            * log_loss(Y[b], model.fit(GOOD[a], Y[a]).predict_proba(GOOD[b]), labels=[0, 1, 2])
            for a, b in splits
        )
    assert found.setting["c"] == min(loss, key=loss.get)


def test_the_better_features_are_chosen_on_inner_folds():
    variants = {"noise": NOISE, "good": GOOD}
    found = cross_validate(variants, TARGET, FOLDS, "logistic")
    assert {c.features for c in found.choices} == {"good"}
    assert "good, c=" in str(found.choices[0])


def test_test_samples_reach_neither_the_fit_nor_the_choice():
    """Spoiling a fold's features and labels changes nothing but its own predictions."""
    test = FOLDS.test(2)
    spoiled, y = GOOD.copy(), Y.copy()
    spoiled[test] = 1e6
    y[test] = 0
    ours = cross_validate({"a": GOOD, "b": NOISE}, TARGET, FOLDS, "logistic")
    target = Target(y=y, task="classification", n_classes=3)
    theirs = cross_validate({"a": spoiled, "b": NOISE}, target, FOLDS, "logistic")
    assert ours.choices[2] == theirs.choices[2]
    one = cross_validate({"a": GOOD}, TARGET, FOLDS, "logistic", settings=[{"c": 1.0}])
    two = cross_validate({"a": spoiled}, target, FOLDS, "logistic", settings=[{"c": 1.0}])
    assert not np.allclose(one.scores[test], two.scores[test])
    fits = []
    original = crossval.fit_choice

    def watched(features, target, rows, *args, **kwargs):
        fits.append(set(rows))
        return original(features, target, rows, *args, **kwargs)

    crossval.fit_choice = watched
    try:
        cross_validate(GOOD, TARGET, FOLDS, "logistic")
    finally:
        crossval.fit_choice = original
    per_fold = len(fits) // FOLDS.n_folds
    for i in range(FOLDS.n_folds):
        for rows in fits[i * per_fold : (i + 1) * per_fold]:
            assert not rows & set(FOLDS.test(i))


def test_too_few_samples_for_a_choice_take_the_first_setting():
    rows = np.array([np.flatnonzero(Y == 0)[0], np.flatnonzero(Y == 1)[0]])
    found = choose(GOOD, TARGET, rows, FOLDS.block, method="logistic")
    assert found == Choice(features="", setting={"c": 1.0})


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_are_cross_validated_too(task):
    if task == "regression":
        y = (GOOD @ np.arange(6) + rng.normal(size=N)).astype(np.float32)
        target = Target(y=y, task=task, n_classes=0)
        method = "ridge"
    else:
        y = np.eye(3, dtype=bool)[Y]
        target = Target(y=y, task=task, n_classes=3)
        method = "logistic"
    folds = make_folds("spatial", n_folds=4, labels=y, xy_m=XY, block_m=1500)
    found = cross_validate({"noise": NOISE, "good": GOOD}, target, folds, method)
    assert {c.features for c in found.choices} == {"good"}
    guess = target.predicted(found.scores)
    assert guess.shape == y.shape
    if task == "regression":
        assert np.corrcoef(guess, y)[0, 1] > 0.95
    else:
        assert (guess == y).mean() > 0.8
