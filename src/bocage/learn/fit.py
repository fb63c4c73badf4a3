"""From samples to an estimator: one function per method, all with the same face."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError
from bocage.learn.adamw import RATES, fit_adamw
from bocage.learn.estimators import Estimator, Forest, Linear, Link, Neighbors, Network
from bocage.learn.labels import Task
from bocage.learn.logistic import fit_logistic
from bocage.learn.moments import chunks, moments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

MAX_NEIGHBOR_ROWS = 50_000
"""Training vectors that neighbors keep; more are drawn at random, or a map would take hours."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a method is fitted on."""

    x: FloatArray
    y: NDArray[Any]
    task: Task
    n_classes: int
    rows: NDArray[np.intp]
    """Rows that may be used."""

    seed: int = 0
    balanced: bool = False
    """Classes weigh the same, however many samples they have."""

    def weights(self) -> NDArray[np.float64] | None:
        """Weight of every row of x, or None; mean one over the rows."""
        if not self.balanced or self.task != "classification":
            return None
        counts = np.bincount(self.y[self.rows], minlength=self.n_classes)
        present = np.maximum((counts > 0).sum(), 1)
        return np.asarray(len(self.rows) / (present * np.maximum(counts, 1))[self.y])


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to fit, with the settings that are worth trying."""

    name: str
    title: str
    tasks: tuple[Task, ...]
    fit: Callable[..., Estimator]
    """fit(training, **setting)."""

    settings: tuple[Mapping[str, float], ...] = ({},)
    """Tried on inner folds of the training samples; the first one serves where these cannot be
    made."""


def fit(method: str, training: Training, **setting: float) -> Estimator:
    """Fit one method with one setting."""
    return METHODS[method].fit(training, **setting)


def _logistic(training: Training, *, c: float = 1.0) -> Estimator:
    if training.task == "classification":
        found = fit_logistic(
            training.x,
            training.y,
            training.n_classes,
            c=c,
            rows=training.rows,
            weight=training.weights(),
        )
        return Linear(
            mean=found.mean, scale=found.scale, weight=found.weight, bias=found.bias, link="softmax"
        )
    known = moments(training.x, training.rows)
    columns = [_one_label(training, known, label, c) for label in range(training.n_classes)]
    return Linear(
        mean=known.mean,
        scale=known.scale,
        weight=np.asarray(np.stack([w for w, _ in columns], axis=1), np.float64),
        bias=np.array([b for _, b in columns]),
        link="sigmoid",
    )


def _one_label(
    training: Training, known: Any, label: int, c: float
) -> tuple[NDArray[np.float64], float]:
    flags = training.y[:, label].astype(np.int64)
    share = float(flags[training.rows].mean())
    if share in {0.0, 1.0}:
        # Nothing to learn from these rows: the answer is what they all say.
        return np.zeros(training.x.shape[1]), 20.0 if share else -20.0
    found = fit_logistic(training.x, flags, 2, c=c, rows=training.rows, known=known)
    return found.weight[:, 0], float(found.bias[0])


def _ridge(training: Training, *, alpha: float = 1.0) -> Estimator:
    """Ridge regression on standardized features, by the normal equations."""
    known = moments(training.x, training.rows)
    y = training.y.astype(np.float64)
    mean_y = float(y[training.rows].mean())
    right = np.zeros(training.x.shape[1])
    for at, part in chunks(training.x, training.rows):
        right += (part - known.mean).T @ (y[training.rows[at]] - mean_y)
    gram = known.covariance * known.n / np.outer(known.scale, known.scale)
    weight = np.linalg.solve(gram + alpha * np.eye(len(gram)), right / known.scale)
    return Linear(
        mean=known.mean,
        scale=known.scale,
        weight=np.asarray(weight[:, None], np.float64),
        bias=np.array([mean_y]),
        link="identity",
    )


def _neighbors(training: Training, *, k: float, temperature: float | None) -> Estimator:
    rows = training.rows
    if len(rows) > MAX_NEIGHBOR_ROWS:
        rng = np.random.default_rng(training.seed)
        rows = np.sort(rng.choice(rows, MAX_NEIGHBOR_ROWS, replace=False))
    y = training.y[rows]
    if training.task == "classification":
        y = np.eye(training.n_classes, dtype=np.float32)[y]
    return Neighbors(
        x=training.x[rows],
        y=np.asarray(y, np.float32).reshape(len(rows), -1),
        k=min(int(k), len(rows)),
        temperature=temperature,
    )


def _knn(training: Training, *, k: float = 20) -> Estimator:
    return _neighbors(training, k=k, temperature=0.07)


def _knn_plain(training: Training, *, k: float = 5) -> Estimator:
    return _neighbors(training, k=k, temperature=None)


def _mlp(training: Training, *, alpha: float = 1e-3) -> Estimator:
    from bocage.scoring.scores import import_sklearn

    network = import_sklearn("neural_network")
    known = moments(training.x, training.rows)
    x = ((training.x[training.rows] - known.mean) / known.scale).astype(np.float32)
    kind = "MLPRegressor" if training.task == "regression" else "MLPClassifier"
    model = getattr(network, kind)(
        hidden_layer_sizes=(128,),
        alpha=alpha,
        random_state=training.seed,
        max_iter=200,
        early_stopping=len(x) >= 200 and training.task != "multilabel",
    )
    y = training.y[training.rows]
    present = np.arange(training.n_classes)
    if training.task == "classification":
        present = np.unique(y)
    _quietly(model.fit, x, y)
    (hidden, weight), (hidden_bias, bias) = model.coefs_, model.intercepts_
    if training.task == "classification":
        weight, bias = _all_classes(weight, bias, present, training.n_classes)
    link = {"regression": "identity", "multilabel": "sigmoid"}.get(training.task, "softmax")
    return Network(
        mean=known.mean,
        scale=known.scale,
        hidden_weight=hidden.astype(np.float64),
        hidden_bias=hidden_bias.astype(np.float64),
        weight=weight.astype(np.float64),
        bias=bias.astype(np.float64),
        link=link,  # type: ignore[arg-type]
    )


def _all_classes(
    weight: NDArray[Any], bias: NDArray[Any], present: NDArray[np.int64], n_classes: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Columns for every class: a class that no training row had is never the answer."""
    if len(present) == n_classes:
        return weight, bias
    if weight.shape[1] == 1:
        weight = np.concatenate([np.zeros_like(weight), weight], axis=1)
        bias = np.concatenate([np.zeros_like(bias), bias])
    full = np.zeros((len(weight), n_classes), weight.dtype)
    offset = np.full(n_classes, -100.0)
    full[:, present], offset[present] = weight, bias
    return full, offset


def _adamw(training: Training, *, rate: float = RATES[0]) -> Estimator:
    y, present = training.y, np.arange(training.n_classes)
    if training.task == "classification":
        present = np.unique(y[training.rows])
        y = np.asarray(y[:, None] == present, np.float64)
    found = fit_adamw(
        training.x,
        y,
        rate=rate,
        rows=training.rows,
        weight=training.weights(),
        seed=training.seed,
    )
    weight, bias = found.weight, found.bias
    if training.task == "classification":
        weight, bias = _all_classes(weight, bias, present, training.n_classes)
    link: Link = "softmax" if training.task == "classification" else "sigmoid"
    return Linear(mean=found.mean, scale=found.scale, weight=weight, bias=bias, link=link)


def _forest(training: Training, *, least: float = 1) -> Estimator:
    from bocage.scoring.scores import import_sklearn

    ensemble = import_sklearn("ensemble")
    kind = "RandomForestRegressor" if training.task == "regression" else "RandomForestClassifier"
    balance: dict[str, Any] = {}
    if training.balanced and training.task == "classification":
        balance["class_weight"] = "balanced"
    model = getattr(ensemble, kind)(
        n_estimators=100,
        min_samples_leaf=int(least),
        max_features="sqrt",
        random_state=training.seed,
        n_jobs=1,
        **balance,
    )
    y = training.y[training.rows]
    model.fit(training.x[training.rows], y)
    present = np.unique(y) if training.task == "classification" else None
    trees = [estimator.tree_ for estimator in model.estimators_]
    starts = np.cumsum([0, *[t.node_count for t in trees]])[:-1]
    leaf = [t.children_left < 0 for t in trees]
    return Forest(
        feature=_joined([np.where(e, -1, t.feature) for t, e in zip(trees, leaf, strict=True)]),
        threshold=np.concatenate([t.threshold for t in trees]),
        left=_joined([t.children_left + s for t, s in zip(trees, starts, strict=True)]),
        right=_joined([t.children_right + s for t, s in zip(trees, starts, strict=True)]),
        value=np.concatenate([_tree_scores(t, training, present) for t in trees]),
        roots=starts.astype(np.int32),
    )


def _joined(parts: list[NDArray[Any]]) -> NDArray[np.int32]:
    return np.concatenate(parts).astype(np.int32)


def _tree_scores(
    tree: Any, training: Training, present: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    value = tree.value  # [nodes, outputs, classes]
    if training.task == "regression":
        return np.asarray(value[:, 0, :1], np.float64)
    share = value / value.sum(axis=2, keepdims=True)
    if training.task == "multilabel":
        # A label that all rows agree on has one class only; which one is not in the tree.
        constant = training.y[training.rows].all(axis=0)
        yes = share[:, :, 1] if share.shape[2] > 1 else np.zeros(share.shape[:2])
        return np.asarray(np.where(constant, 1.0, yes), np.float64)
    found = np.zeros((len(share), training.n_classes))
    found[:, present] = share[:, 0]
    return found


def _quietly(function: Callable[..., Any], *arguments: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        # Stopping at the largest number of steps is a fact about the score, not a failure.
        warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")
        function(*arguments)


_CLASSES: tuple[Task, ...] = ("classification", "multilabel")
_ALL: tuple[Task, ...] = ("classification", "multilabel", "regression")

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            name="logistic",
            title="logistic regression on standardized features",
            tasks=_CLASSES,
            fit=_logistic,
            settings=tuple({"c": c} for c in (1.0, 0.01, 0.1, 10.0, 100.0)),
        ),
        Method(
            name="ridge",
            title="ridge regression on standardized features",
            tasks=("regression",),
            fit=_ridge,
            settings=tuple({"alpha": a} for a in (1.0, 0.01, 0.1, 10.0, 100.0, 1000.0, 10_000.0)),
        ),
        Method(
            name="adamw",
            title="batch norm and a linear layer by AdamW, as in the models' own evaluation",
            tasks=_CLASSES,
            fit=_adamw,
            settings=tuple({"rate": r} for r in RATES),
        ),
        Method(name="knn", title="20 nearest by cosine, weighted votes", tasks=_ALL, fit=_knn),
        Method(name="knn5", title="5 nearest by cosine", tasks=_ALL, fit=_knn_plain),
        Method(
            name="forest",
            title="random forest of 100 trees",
            tasks=_ALL,
            fit=_forest,
            settings=({"least": 1}, {"least": 5}),
        ),
        Method(
            name="mlp",
            title="perceptron with 128 hidden units",
            tasks=_ALL,
            fit=_mlp,
            settings=({"alpha": 1e-3}, {"alpha": 1e-1}),
        ),
    )
}
"""The methods by name."""


def check_method(method: str, task: Task) -> Method:
    """The method, if it is known and fits the task."""
    usable = [m.name for m in METHODS.values() if task in m.tasks]
    if method not in usable:
        raise ConfigError(
            got=f"method {method!r} for {task}",
            expected=f"one of {', '.join(usable)}",
            fix=f"use --method {usable[0]}",
        )
    return METHODS[method]
