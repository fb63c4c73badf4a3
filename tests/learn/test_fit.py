import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bocage.errors import ConfigError
from bocage.learn.fit import METHODS, Training, check_method, fit
from bocage.learn.moments import moments

rng = np.random.default_rng(0)
N, D, K = 240, 10, 3
CENTERS = rng.normal(size=(K, D)) * 0.8
Y = rng.integers(0, K, N)
X = (CENTERS[Y] + rng.normal(size=(N, D)) + 0.5).astype(np.float32)
NUMBER = (X @ rng.normal(size=D) + rng.normal(size=N)).astype(np.float32)
FLAGS = rng.random((N, K)) < 1 / (1 + np.exp(-X[:, :K] * 2))
FOLDS = list(KFold(4, shuffle=True, random_state=1).split(X))


def training(rows, task="classification"):
    y = {"classification": Y, "multilabel": FLAGS, "regression": NUMBER}[task]
    n_classes = 0 if task == "regression" else K
    return Training(x=X, y=y, task=task, n_classes=n_classes, rows=rows)


def linear_probe(**options):
    """scikit-learn's, at its optimum: L-BFGS stops some 3e-7 beside it whatever the tolerance."""
    exact = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 1000}
    return make_pipeline(StandardScaler(), LogisticRegression(**exact, **options))


@pytest.mark.parametrize("fold", range(4))
def test_logistic_and_knn_agree_with_scikit_learn_on_the_same_folds(fold):
    train, test = FOLDS[fold]
    model = linear_probe(C=10).fit(X[train].astype(np.float64), Y[train])
    expected = model.predict_proba(X[test].astype(np.float64))
    ours = fit("logistic", training(train), c=10.0).scores(X[test])
    np.testing.assert_allclose(ours, expected, atol=1e-7)
    assert (ours.argmax(1) == expected.argmax(1)).all()

    plain = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(X[train], Y[train])
    np.testing.assert_allclose(
        fit("knn5", training(train)).scores(X[test]), plain.predict_proba(X[test]), atol=1e-12
    )
    voted = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(X[train].astype(np.float64), Y[train])
    np.testing.assert_allclose(
        fit("knn", training(train)).scores(X[test]),
        voted.predict_proba(X[test].astype(np.float64)),
        atol=1e-12,
    )


def test_embeddings_of_a_real_length_agree_with_scikit_learn_too():
    """768 dims far from zero, where float32 sums lose digits; neighbors that nearly tie."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 4, 900)
    hidden = rng.normal(size=(4, 16))[y] + rng.normal(size=(900, 16))
    x = (hidden @ rng.normal(size=(16, 768)) + rng.normal(0, 8, 768)).astype(np.float32)
    x += rng.normal(0, 1e-3, x.shape).astype(np.float32)
    train, test = np.arange(600), np.arange(600, 900)
    data = Training(x=x, y=y, task="classification", n_classes=4, rows=train)
    wide = x.astype(np.float64)
    model = linear_probe(C=0.1).fit(wide[train], y[train])
    ours = fit("logistic", data, c=0.1).scores(x[test])
    np.testing.assert_allclose(ours, model.predict_proba(wide[test]), atol=1e-6)
    options = {"metric": "cosine", "algorithm": "brute"}
    voted = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), **options)
    expected = voted.fit(wide[train], y[train]).predict_proba(wide[test])
    np.testing.assert_allclose(fit("knn", data).scores(x[test]), expected, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_ridge_agrees_with_scikit_learn(alpha):
    train, test = FOLDS[0]
    model = make_pipeline(StandardScaler(), Ridge(alpha=alpha))
    model.fit(X[train].astype(np.float64), NUMBER[train].astype(np.float64))
    ours = fit("ridge", training(train, "regression"), alpha=alpha).scores(X[test])[:, 0]
    np.testing.assert_allclose(ours, model.predict(X[test].astype(np.float64)), atol=1e-12)


def test_the_forest_of_arrays_is_the_forest():
    train, test = FOLDS[0]
    options = {"n_estimators": 100, "max_features": "sqrt", "random_state": 0, "n_jobs": 1}
    expected = RandomForestClassifier(**options).fit(X[train], Y[train]).predict_proba(X[test])
    ours = fit("forest", training(train)).scores(X[test])
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    expected = RandomForestRegressor(**options).fit(X[train], NUMBER[train]).predict(X[test])
    ours = fit("forest", training(train, "regression")).scores(X[test])[:, 0]
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    expected = RandomForestClassifier(**options).fit(X[train], FLAGS[train]).predict_proba(X[test])
    ours = fit("forest", training(train, "multilabel")).scores(X[test])
    np.testing.assert_allclose(ours, np.stack([p[:, 1] for p in expected], 1), atol=1e-12)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_the_network_of_arrays_is_the_network(task):
    train, test = FOLDS[0]
    known = moments(X[train])
    a, b = (((X[rows] - known.mean) / known.scale).astype(np.float32) for rows in FOLDS[0])
    options = {"hidden_layer_sizes": (128,), "alpha": 1e-3, "random_state": 0, "max_iter": 200}
    y = training(train, task).y[train]
    kind = MLPRegressor if task == "regression" else MLPClassifier
    with pytest.warns(ConvergenceWarning):
        model = kind(**options).fit(a, y)
    expected = model.predict(b)[:, None] if task == "regression" else model.predict_proba(b)
    ours = fit("mlp", training(train, task)).scores(X[test])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_knn_of_numbers_and_of_labels_agree_with_scikit_learn():
    train, test = FOLDS[1]
    options = {"n_neighbors": 5, "metric": "cosine", "algorithm": "brute"}
    expected = KNeighborsRegressor(**options).fit(X[train], NUMBER[train]).predict(X[test])
    ours = fit("knn5", training(train, "regression")).scores(X[test])[:, 0]
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    expected = KNeighborsClassifier(**options).fit(X[train], FLAGS[train]).predict_proba(X[test])
    ours = fit("knn5", training(train, "multilabel")).scores(X[test])
    np.testing.assert_allclose(ours, np.stack([p[:, 1] for p in expected], 1), atol=1e-6)


def test_multilabel_logistic_is_one_regression_per_label():
    train, test = FOLDS[2]
    ours = fit("logistic", training(train, "multilabel"), c=1.0).scores(X[test])
    for k in range(K):
        model = linear_probe().fit(X[train].astype(np.float64), FLAGS[train, k])
        expected = model.predict_proba(X[test].astype(np.float64))[:, 1]
        np.testing.assert_allclose(ours[:, k], expected, atol=1e-7)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "ridge"])
def test_a_class_that_no_training_row_has_is_never_the_answer(method):
    rows = np.flatnonzero(Y != 1)
    scores = fit(method, training(rows)).scores(X)
    assert scores.shape == (N, K)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    assert (scores.argmax(axis=1) != 1).all()


def test_a_label_that_all_rows_agree_on_is_always_the_answer():
    flags = FLAGS.copy()
    flags[:, 1], flags[:, 2] = True, False
    for method in ("logistic", "forest", "knn"):
        data = Training(x=X, y=flags, task="multilabel", n_classes=K, rows=np.arange(N))
        scores = fit(method, data).scores(X)
        assert (scores[:, 1] > 0.99).all() and (scores[:, 2] < 0.01).all()


def test_balanced_classes_weigh_the_same():
    rows = np.concatenate([np.flatnonzero(Y == 0)[:5], np.flatnonzero(Y != 0)])
    data = Training(x=X, y=Y, task="classification", n_classes=K, rows=rows, balanced=True)
    weights = data.weights()[rows]
    sums = np.bincount(Y[rows], weights)
    np.testing.assert_allclose(sums, len(rows) / 3)
    model = linear_probe(class_weight="balanced").fit(X[rows].astype(np.float64), Y[rows])
    expected = model.predict_proba(X.astype(np.float64))
    np.testing.assert_allclose(fit("logistic", data, c=1.0).scores(X), expected, atol=1e-7)


def test_methods_that_do_not_fit_the_task_are_refused():
    with pytest.raises(ConfigError, match=r"'ridge' for classification.*logistic"):
        check_method("ridge", "classification")
    with pytest.raises(ConfigError, match="'svm'"):
        check_method("svm", "regression")
