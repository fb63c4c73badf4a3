import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bocage.errors import ConfigError, InputError
from bocage.learn import logistic
from bocage.learn.logistic import fit_logistic
from bocage.learn.moments import moments


def problem(n, dims, n_classes, seed=0):
    """Correlated features far from zero, one of them constant, and noisy classes."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 6))
    x = hidden @ rng.normal(size=(6, dims)) + 0.3 * rng.normal(size=(n, dims))
    x = x * rng.uniform(0.01, 30, dims) + rng.normal(0, 50, dims)
    x[:, 0] = 7.1
    y = (hidden[:, :n_classes] * 1.5 + rng.gumbel(size=(n, n_classes))).argmax(axis=1)
    return x.astype(np.float32), y


def official(x, y, c, **options):
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    model = LogisticRegression(C=c, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    return model.fit(scaled, y, **options), scaled


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_weights_are_those_of_scikit_learn(n_classes, c):
    x, y = problem(1500, 20, n_classes)
    found = fit_logistic(x, y, n_classes, c=c)
    expected, _ = official(x, y, c)
    assert found.converged
    scale = np.abs(expected.coef_).max()
    np.testing.assert_allclose(found.weight.T, expected.coef_, atol=1e-6 * scale)
    intercept = expected.intercept_
    if n_classes > 2:
        intercept = intercept - intercept.mean()
    np.testing.assert_allclose(found.bias, intercept, atol=1e-6 * scale)


def test_rows_weights_and_plain_features_are_those_of_scikit_learn():
    x, y = problem(1200, 12, 3)
    rows = np.arange(0, 1200, 2)
    weight = np.random.default_rng(1).uniform(0.2, 3, 1200)
    found = fit_logistic(x, y, 3, rows=rows, weight=weight)
    scaled = StandardScaler().fit_transform(x[rows].astype(np.float64))
    model = LogisticRegression(tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    model.fit(scaled, y[rows], sample_weight=weight[rows])
    np.testing.assert_allclose(found.weight.T, model.coef_, atol=1e-6)

    x = x / np.float32(50)
    found = fit_logistic(x, y, 3, standardize=False)
    model = LogisticRegression(tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    model.fit(x.astype(np.float64), y)
    np.testing.assert_allclose(found.weight.T, model.coef_, atol=1e-5)
    z = x @ found.weight + found.bias
    p = model.predict_proba(x.astype(np.float64))
    np.testing.assert_allclose(np.log(p) - z, (np.log(p) - z)[:, :1].repeat(3, 1), atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_many_rows_start_from_a_part_and_reach_the_same_optimum(monkeypatch, n_classes):
    x, y = problem(9000, 16, n_classes)
    plain = fit_logistic(x, y, n_classes)
    monkeypatch.setattr(logistic, "START_ROWS", 1000)
    parted = fit_logistic(x, y, n_classes)
    assert parted.n_steps < plain.n_steps
    assert parted.loss == pytest.approx(plain.loss, abs=1e-13)
    np.testing.assert_allclose(parted.weight, plain.weight, atol=1e-6)


def test_threads_do_not_change_the_answer(monkeypatch):
    x, y = problem(20_000, 8, 3)
    monkeypatch.setattr(logistic, "n_threads", lambda: 1)
    one = fit_logistic(x, y, 3)
    monkeypatch.setattr(logistic, "n_threads", lambda: 3)
    three = fit_logistic(x, y, 3)
    np.testing.assert_allclose(one.weight, three.weight, atol=1e-6)


def test_the_features_are_neither_copied_nor_changed():
    import tracemalloc

    x, y = problem(60_000, 64, 2)
    kept = x.copy()
    fit_logistic(x[:2000], y[:2000], 2)  # imports
    tracemalloc.start()
    fit_logistic(x, y, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(x, kept)
    assert peak < 60_000 * 64 * 4 * 2.5  # the sample for the curvature is 30,000 rows in float64
    peaks = []
    for part in (x[:20_000], x):
        tracemalloc.start()
        moments(part)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.01 * peaks[0]  # chunks in float64, however many rows there are


def test_separable_classes_do_not_blow_up():
    x, y = problem(400, 10, 2)
    x[:, 3] += y * 10_000
    found = fit_logistic(x, y, 2, c=100.0)
    assert np.isfinite(found.weight).all() and found.loss < 0.01
    assert (((x - found.mean) / found.scale @ found.weight + found.bias > 0)[:, 0] == y).all()


def test_one_class_and_bad_penalties_are_refused():
    x, y = problem(50, 4, 2)
    with pytest.raises(InputError, match="one class only"):
        fit_logistic(x, y, 2, rows=np.flatnonzero(y == 0))
    with pytest.raises(ConfigError, match="C=0"):
        fit_logistic(x, y, 2, c=0)


def test_moments_are_those_of_numpy():
    x, _ = problem(5000, 9, 2)
    rows = np.arange(100, 4100, 3)
    found = moments(x, rows)
    part = x[rows].astype(np.float64)
    np.testing.assert_allclose(found.mean, part.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.scale[1:], part.std(0)[1:], rtol=1e-12)
    assert found.scale[0] == 1  # a constant feature
    np.testing.assert_allclose(
        found.covariance, np.cov(part.T, bias=True), atol=1e-12 * np.abs(found.covariance).max()
    )
