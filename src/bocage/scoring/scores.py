"""What vectors know: kNN, linear probe, retrieval.

Two published protocols of kNN: the majority of the 5 nearest (the compression study; Hamming on
raw bits too), and the 20 nearest with votes of exp(cosine / 0.07) (the model's own evaluation).
The linear probe is a logistic regression on standardized features with C chosen inside the training
folds. Retrieval never counts the query itself.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

C_GRID = (0.01, 0.1, 1.0, 10.0, 100.0)


def nearest_cosine(
    train: FloatArray, test: FloatArray, k: int
) -> tuple[NDArray[np.intp], FloatArray]:
    """The k nearest training rows of each test row and their cosines, nearest first [n, k].

    Equal cosines count in order of rows. Test vectors are taken 2,000 at a time, fewer where the
    training set is large.
    """
    for name, x in (("training", train), ("test", test)):
        if len(x) == 0 or not np.isfinite(x).all():
            raise InputError(
                got=f"{len(x)} {name} vectors" + (", some with NaN or infinity" if len(x) else ""),
                expected="finite vectors",
                fix="drop rows without data before scoring",
            )
    if train.shape[1:] != test.shape[1:] or k < 1:
        raise InputError(
            got=f"training vectors {train.shape}, test vectors {test.shape}, k {k}",
            expected="vectors of one length, and at least one neighbor",
            fix="take both from the same embedding",
        )
    k = min(k, len(train))
    known, asked = _unit(train), _unit(test)
    rows = np.empty((len(test), k), np.intp)
    cosine = np.empty((len(test), k), np.float32)
    step = int(np.clip((1 << 26) // len(train), 1, 2000))  # cosines of 256 MB at a time
    for start in range(0, len(test), step):
        part = slice(start, start + step)
        rows[part], cosine[part] = _largest(asked[part] @ known.T, k)
    return rows, cosine


def knn_cosine(
    train: FloatArray, labels: NDArray[np.int64], test: FloatArray, k: int = 5
) -> NDArray[np.int64]:
    """Predict by the majority among the k nearest training vectors, cosine; ties: lower label."""
    _check_labels(train, labels)
    rows, _ = nearest_cosine(train, test, k)
    names, code = np.unique(labels, return_inverse=True)
    predicted: NDArray[np.int64] = names[_counts(code[rows], len(names)).argmax(axis=1)]
    return predicted


def knn_weighted(
    train: FloatArray,
    labels: NDArray[np.int64],
    test: FloatArray,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> FloatArray:
    """Shares of the votes of the k nearest, each with weight exp(cosine / temperature).

    The protocol of the model's own evaluation (k = 20, 0.07). Labels are classes [n] from 0, or
    0/1 of several labels [n, K]: then each column is a kNN of its own, and a share is the score
    that average precision ranks. Returns [n_test, K]; the prediction is the argmax, or share >=
    0.5.
    """
    _check_labels(train, labels)
    if labels.dtype.kind not in "biu" or labels.min() < 0 or not temperature > 0:
        raise InputError(
            got=f"labels of {labels.dtype}, temperature {temperature}",
            expected="class numbers from 0, and a temperature above 0",
            fix="number the classes with np.unique(labels, return_inverse=True)[1]",
        )
    rows, cosine = nearest_cosine(train, test, k)
    # From the nearest, which changes no share: exp(1 / 0.01) would leave float32.
    weight = np.exp((cosine.astype(np.float64) - cosine[:, :1]) / temperature)
    weight /= weight.sum(axis=1, keepdims=True)
    if labels.ndim == 1:
        return _counts(labels[rows], int(labels.max()) + 1, weight).astype(np.float32)
    many = labels.astype(np.float64)
    shares = np.zeros((len(test), labels.shape[1]))
    for column in range(rows.shape[1]):  # no array of [n, k, K]
        shares += weight[:, column, None] * many[rows[:, column]]
    return shares.astype(np.float32)


def knn_distances(
    distance: NDArray[np.floating], labels: NDArray[np.int64], k: int = 5
) -> NDArray[np.int64]:
    """The same from distances [test, train], for codes; equal distances in order of rows."""
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
    predicted: NDArray[np.int64] = _counts(labels[nearest], int(labels.max()) + 1).argmax(axis=1)
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


def _check_labels(train: FloatArray, labels: NDArray[Any]) -> None:
    if len(train) != len(labels):
        raise InputError(
            got=f"{len(train)} training vectors and {len(labels)} labels",
            expected="one label for each",
            fix="drop the same rows from both",
        )


def _largest(values: FloatArray, k: int) -> tuple[NDArray[np.intp], FloatArray]:
    """Columns and values of the k largest of each row, in order; equal ones in column order."""
    if k < values.shape[1]:
        chosen = np.argpartition(values, -k, axis=1)[:, -k:]
        least = np.take_along_axis(values, chosen, axis=1).min(axis=1, keepdims=True)
        # More rows than asked for share the last place: take those that come first.
        for row in np.flatnonzero((values >= least).sum(axis=1) > k):
            chosen[row] = np.argsort(-values[row], kind="stable")[:k]
    else:
        chosen = np.broadcast_to(np.arange(k), values.shape)
    chosen = np.sort(chosen, axis=1)
    found = np.take_along_axis(values, chosen, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1), np.take_along_axis(found, order, axis=1)


def _counts(
    votes: NDArray[np.integer], n_classes: int, weight: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Votes of each row for each class [n, K]; weight 1 each unless given."""
    n = len(votes)
    code = np.arange(n)[:, None] * n_classes + votes
    each = None if weight is None else weight.ravel()
    return np.bincount(code.ravel(), each, n * n_classes).reshape(n, n_classes).astype(np.float64)


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
            fix='pip install "bocage[learn]"',
        ) from error
