"""Scores that the test samples had no part in: nested cross-validation.

Each outer fold is predicted by an estimator that was fitted on the other folds, with a setting
(penalty, pooling, normalization) chosen on inner folds of these other folds. So nothing about a
test sample, not even which setting suits it, reaches its prediction.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageWarning, InputError
from bocage.learn.estimators import Estimator
from bocage.learn.fit import Training, check_method
from bocage.learn.labels import Task
from bocage.scoring.folds import Folds, make_folds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

N_INNER = 3
"""Inner folds of the choice of a setting."""

MAX_CHOICE_ROWS = 50_000
"""Rows that the choice of a setting looks at; the fit itself uses all."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to be predicted."""

    y: NDArray[Any]
    """Index of the class [n], flags [n, C], or numbers [n]."""

    task: Task
    n_classes: int

    def predicted(self, scores: NDArray[np.floating]) -> NDArray[Any]:
        """Scores [n, C] as values like y."""
        if self.task == "regression":
            return scores[:, 0].astype(np.float32)
        if self.task == "multilabel":
            return np.asarray(scores > 0.5)
        return np.asarray(scores.argmax(axis=1))

    def goodness(self, scores: NDArray[np.floating], rows: NDArray[np.intp]) -> float:
        """How good the scores of these rows are, larger is better; for choosing only."""
        y = self.y[rows]
        if self.task == "regression":
            return -float(((scores[:, 0] - y) ** 2).mean())
        # Likelihood and not accuracy: on few samples many settings are equally accurate.
        p = np.clip(scores, 1e-6, 1 - 1e-6)
        if self.task == "multilabel":
            return float(np.where(y, np.log(p), np.log(1 - p)).mean())
        return float(np.log(p[np.arange(len(y)), y]).mean())


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Features and a setting."""

    features: str
    """Name of the variant: which pooling, which normalization."""

    setting: Mapping[str, float]

    def __str__(self) -> str:
        parts = [self.features] if self.features else []
        return ", ".join([*parts, *(f"{k}={v:g}" for k, v in self.setting.items())]) or "default"


@dataclass(frozen=True, kw_only=True)
class CrossValidated:
    """Predictions of every tested sample by an estimator that had not seen it."""

    scores: NDArray[np.float64]
    """[n, C]; NaN where no fold tests a sample."""

    choices: tuple[Choice, ...]
    """Of each fold."""


def cross_validate(
    features: FloatArray | Mapping[str, FloatArray],
    target: Target,
    folds: Folds,
    method: str,
    *,
    settings: Sequence[Mapping[str, float]] | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> CrossValidated:
    """Predict every fold from the others.

    Args:
        features: [n, D], or several variants by name, among which the inner folds choose.
        target: What to predict.
        folds: From `make_folds`.
        method: A name of `METHODS`.
        settings: Settings to choose from, instead of the method's own; one means no choice.
        balanced: Classes weigh the same.
        seed: Of everything drawn.
    """
    variants = _variants(features)
    candidates = _candidates(variants, method, target.task, settings)
    scores = np.full((len(target.y), max(target.n_classes, 1)), np.nan)
    choices = []
    for train, test in folds.splits():
        choice = choose(
            variants,
            target,
            train,
            folds.block,
            method=method,
            candidates=candidates,
            balanced=balanced,
            seed=seed,
        )
        estimator = fit_choice(
            variants, target, train, method, choice, balanced=balanced, seed=seed
        )
        scores[test] = predict_rows(estimator, variants[choice.features], test)
        choices.append(choice)
    return CrossValidated(scores=scores, choices=tuple(choices))


def predict_rows(
    estimator: Estimator, x: FloatArray, rows: NDArray[np.intp], size: int = 65_536
) -> NDArray[np.float64]:
    """Scores of some rows, without a copy of them all."""
    parts = [estimator.scores(x[rows[i : i + size]]) for i in range(0, len(rows), size)]
    return np.concatenate(parts)


def fit_choice(
    features: FloatArray | Mapping[str, FloatArray],
    target: Target,
    rows: NDArray[np.intp],
    method: str,
    choice: Choice,
    *,
    balanced: bool = False,
    seed: int = 0,
) -> Estimator:
    """Fit the chosen setting on the rows."""
    training = Training(
        x=_variants(features)[choice.features],
        y=target.y,
        task=target.task,
        n_classes=target.n_classes,
        rows=rows,
        seed=seed,
        balanced=balanced,
    )
    return check_method(method, target.task).fit(training, **choice.setting)


def choose(
    features: FloatArray | Mapping[str, FloatArray],
    target: Target,
    rows: NDArray[np.intp],
    block: NDArray[np.int64],
    *,
    method: str,
    candidates: Sequence[Choice] | None = None,
    balanced: bool = False,
    seed: int = 0,
) -> Choice:
    """The candidate that predicts inner folds of the rows best; whole blocks stay together."""
    variants = _variants(features)
    if candidates is None:
        candidates = _candidates(variants, method, target.task, None)
    if len(candidates) == 1:
        return candidates[0]
    if len(rows) > MAX_CHOICE_ROWS:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(rows, MAX_CHOICE_ROWS, replace=False))
    splits = _inner(target, rows, block, seed)
    if not splits:
        return candidates[0]
    best, most = candidates[0], -np.inf
    for candidate in candidates:
        total = 0.0
        for train, test in splits:
            estimator = fit_choice(
                variants, target, train, method, candidate, balanced=balanced, seed=seed
            )
            found = estimator.scores(variants[candidate.features][test])
            total += target.goodness(found, test) * len(test)
        if total > most:
            best, most = candidate, total
    return best


def _inner(
    target: Target, rows: NDArray[np.intp], block: NDArray[np.int64], seed: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Splits of the rows; none if the classes do not reach for them."""
    n_blocks = len(np.unique(block[rows]))
    grouped = N_INNER <= n_blocks < len(rows)
    labels = target.y[rows] if target.task == "classification" else None
    try:
        with warnings.catch_warnings():
            # A class that an inner fold lacks makes its score lower, and changes nothing else.
            warnings.simplefilter("ignore", BocageWarning)
            inner = make_folds(
                "group" if grouped else "random",
                n_folds=N_INNER,
                labels=labels,
                group=block[rows] if grouped else np.arange(len(rows)),
                seed=seed,
            )
    except InputError:
        return []  # fewer samples than folds, or one class: the first setting serves
    splits = [(rows[train], rows[test]) for train, test in inner.splits()]
    if target.task != "classification":
        return splits
    return [(a, b) for a, b in splits if len(np.unique(target.y[a])) > 1]


def _variants(features: FloatArray | Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
    return features if isinstance(features, Mapping) else {"": features}


def _candidates(
    variants: Mapping[str, FloatArray],
    method: str,
    task: Task,
    settings: Sequence[Mapping[str, float]] | None,
) -> list[Choice]:
    own = check_method(method, task).settings
    return [
        Choice(features=name, setting=setting) for setting in (settings or own) for name in variants
    ]
