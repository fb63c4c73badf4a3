"""Scores of decoded or coded vectors: kNN, linear probe, retrieval.

The protocols are those of the published study (seed-systems section 3): kNN with k = 5 and cosine,
or Hamming on raw bits; logistic regression on standardized features with C chosen inside the
training folds. Retrieval never counts the query itself.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

C_GRID = (0.01, 0.1, 1.0, 10.0, 100.0)


def knn_cosine(
    train: FloatArray, labels: NDArray[np.int64], test: FloatArray, k: int = 5
) -> NDArray[np.int64]:
    """Predict by the majority among the k nearest training vectors, cosine; ties: lower label."""
    classifier = import_sklearn("neighbors").KNeighborsClassifier(
        min(k, len(train)), metric="cosine", algorithm="brute"
    )
    predicted: NDArray[np.int64] = classifier.fit(train, labels).predict(test)
    return predicted


def knn_distances(
    distance: NDArray[np.floating], labels: NDArray[np.int64], k: int = 5
) -> NDArray[np.int64]:
    """The same from distances [test, train], for codes; equal distances in order of rows."""
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
    votes = labels[nearest]
    counts = np.zeros((len(votes), int(labels.max()) + 1), np.int64)
    for column in votes.T:
        counts[np.arange(len(votes)), column] += 1
    predicted: NDArray[np.int64] = counts.argmax(axis=1)
    return predicted


def linear_probe(
    train: FloatArray,
    labels: NDArray[np.int64],
    test: FloatArray,
    *,
    block: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Logistic regression on standardized features, C from C_GRID by 3 inner folds.

    `block` keeps samples of a block together in the inner folds too.
    """
    selection = import_sklearn("model_selection")
    pipeline = import_sklearn("pipeline").make_pipeline(
        import_sklearn("preprocessing").StandardScaler(),
        import_sklearn("linear_model").LogisticRegression(max_iter=1000),
    )
    smallest = int(np.bincount(labels)[np.unique(labels)].min())
    if smallest < 3:
        return _fit_predict(pipeline, train, labels, test)
    if block is not None and len(np.unique(block)) >= 3 and len(np.unique(block)) < len(block):
        inner = selection.StratifiedGroupKFold(3, shuffle=True, random_state=seed)
    else:
        inner, block = selection.StratifiedKFold(3, shuffle=True, random_state=seed), None
    search = selection.GridSearchCV(pipeline, {"logisticregression__C": C_GRID}, cv=inner)
    return _fit_predict(search, train, labels, test, groups=block)


def _fit_predict(
    model: Any, train: FloatArray, labels: NDArray[np.int64], test: FloatArray, **fit: Any
) -> NDArray[np.int64]:
    fit = {key: value for key, value in fit.items() if value is not None}
    with warnings.catch_warnings():
        # A large C may not converge in 1,000 steps; the inner folds then judge what came out. An
        # inner fold may lack a class when blocks are few, which only makes its score lower.
        warnings.simplefilter("ignore")
        predicted: NDArray[np.int64] = model.fit(train, labels, **fit).predict(test)
    return predicted


def true_neighbors(x: FloatArray, queries: NDArray[np.intp], k: int) -> NDArray[np.intp]:
    """The k nearest other rows of each query row by float32 cosine [Q, k]."""
    unit = _unit(x)
    return _nearest(-(unit[queries] @ unit.T), queries, k)


def retrieval_recall(
    distance: NDArray[np.floating], queries: NDArray[np.intp], truth: NDArray[np.intp]
) -> float:
    """Share of the true neighbors among the k nearest by `distance` [Q, N], the query left out."""
    found = _nearest(distance, queries, truth.shape[1])
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)]
    return float(np.mean(hits) / truth.shape[1])


def cosine_distances(queries: FloatArray, x: FloatArray) -> FloatArray:
    """1 - cosine [Q, N]."""
    return 1 - _unit(queries) @ _unit(x).T


def f1_per_class(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int
) -> FloatArray:
    """F1 of each class; 0 for a class that is never right."""
    hit = labels == predicted
    right = np.bincount(labels[hit], minlength=n_classes)
    total = np.bincount(labels, minlength=n_classes) + np.bincount(predicted, minlength=n_classes)
    return np.asarray(2 * right / np.maximum(total, 1), np.float32)


def _nearest(distance: NDArray[np.floating], queries: NDArray[np.intp], k: int) -> NDArray[np.intp]:
    distance = distance.astype(np.float64)
    distance[np.arange(len(queries)), queries] = np.inf
    found = np.empty((len(queries), k), np.intp)
    step = max(1, (1 << 22) // distance.shape[1])  # scratch arrays of 32 MB
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        found[rows] = np.argsort(distance[rows], axis=1, kind="stable")[:, :k]
    return found


def _unit(x: FloatArray) -> FloatArray:
    length = np.linalg.norm(x, axis=1, keepdims=True).astype(np.float32)
    return np.asarray(x / np.maximum(length, np.float32(1e-30)), np.float32)


def import_sklearn(part: str) -> Any:
    """A module of scikit-learn, or how to install it."""
    from importlib import import_module

    try:
        return import_module(f"sklearn.{part}")
    except ImportError as error:
        raise ConfigError(
            got="scores without the package scikit-learn",
            expected="scikit-learn",
            fix='pip install "bocage[search]"',
        ) from error
