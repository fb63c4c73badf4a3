"""Logistic regression that reads the features where they lie.

scikit-learn's optimum (the same loss, penalty and intercept), found without a float64 copy of the
features and without standardizing them in memory: chunks are centered in scratch, the scale is
folded into the weights. L-BFGS runs in coordinates in which the loss is nearly round
(`curvature.py`), where a few steps do what takes hundreds in the plain ones; a random part of the
rows finds the place to start from.

Axes: n rows, D features, K columns (classes; one column for two classes).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError, InputError
from bocage.learn.curvature import Here, Space, at_zero, here, rows_for_curvature
from bocage.learn.moments import CHUNK_ROWS, Moments, moments

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

START_ROWS = 50_000
"""Rows that find the place to start from, when there are many more."""

TOLERANCE = 1e-8
"""Largest component of the gradient of the mean loss to stop at, in round coordinates."""

STEPS_PER_ROUND = 25
MAX_ROUNDS = 8
"""Steps between looks at the curvature, and how many looks."""


@dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """Weights on standardized features: logits = (x - mean) / scale @ weight + bias."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    """[D, K]."""

    bias: NDArray[np.float64]
    """[K]."""

    loss: float
    """Mean log loss plus penalty at the end."""

    n_steps: int
    converged: bool


def fit_logistic(
    x: FloatArray,
    y: NDArray[np.int64],
    n_classes: int,
    *,
    c: float = 1.0,
    rows: NDArray[np.intp] | None = None,
    weight: NDArray[np.floating] | None = None,
    known: Moments | None = None,
    start: LogisticFit | None = None,
    standardize: bool = True,
) -> LogisticFit:
    """Minimize c * sum of log losses + half the squared weights, as scikit-learn does.

    Args:
        x: Features [n, D] float32, finite; never copied as a whole.
        y: Class of each row, 0 to n_classes - 1 [n]. Two classes share one column of weights.
        n_classes: Number of classes.
        c: Inverse strength of the penalty.
        rows: Use these rows only.
        weight: Weight of each row [n].
        known: Moments of these rows, if they are known from an earlier fit.
        start: An earlier fit of the same shape to start from.
        standardize: Features of zero mean and spread one; otherwise as they are.
    """
    if not c > 0:
        raise ConfigError(got=f"C={c}", expected="a number above 0", fix="try 1")
    used = y if rows is None else y[rows]
    if len(np.unique(used)) < 2:
        raise InputError(
            got="training samples of one class only",
            expected="at least two classes",
            fix="add labels of another class, or use fewer folds or smaller blocks",
        )
    known = known or moments(x, rows)
    scale = known.scale if standardize else np.ones_like(known.scale)
    problem = _Problem(
        x=x,
        y=y,
        k=1 if n_classes == 2 else n_classes,
        rows=rows,
        weight=weight,
        mean=known.mean,
        scale=scale,
        c=c,
    )
    theta = np.zeros((x.shape[1] + 1, problem.k))
    if start is not None:
        theta = np.concatenate([start.weight, start.bias[None]])
    with single_threaded_blas():
        covariance = known.covariance / np.outer(scale, scale)
        theta, loss, n_steps, converged = _fit(problem, covariance, theta, start is not None)
    found, bias = theta[:-1], theta[-1]
    if problem.k > 1:
        bias = bias - bias.mean()
    if not standardize:
        # The features were centered all the same, which only moves the intercept.
        bias = bias - known.mean @ found
    return LogisticFit(
        mean=known.mean if standardize else np.zeros_like(known.mean),
        scale=scale,
        weight=found,
        bias=bias,
        loss=loss,
        n_steps=n_steps,
        converged=converged,
    )


def _fit(
    problem: _Problem,
    covariance: NDArray[np.float64],
    theta: NDArray[np.float64],
    started: bool,
) -> tuple[NDArray[np.float64], float, int, bool]:
    space: Space = at_zero(covariance, problem.k, problem.penalty)
    if problem.n > 4 * START_ROWS and not started:
        theta = _rounds(problem.part(START_ROWS), space, theta, 1e-5)[0]
        started = True
    if started:
        space = problem.space(theta)
    return _rounds(problem, space, theta, TOLERANCE)


def _rounds(
    problem: _Problem, space: Space, theta: NDArray[np.float64], tolerance: float
) -> tuple[NDArray[np.float64], float, int, bool]:
    n_steps = 0
    for number in range(MAX_ROUNDS):
        theta, loss, n, status = _minimize(problem, space, theta, tolerance)
        n_steps += n
        # Status 0: at the minimum. Status 2: the digits are used up; that is the minimum unless
        # the coordinates are poor, which the next round finds out.
        if status == 0 or (status == 2 and isinstance(space, Here) and number > 1):
            return theta, loss, n_steps, True
        space = problem.space(theta)
    return theta, loss, n_steps, False


def _minimize(
    problem: _Problem, space: Space, theta: NDArray[np.float64], tolerance: float
) -> tuple[NDArray[np.float64], float, int, int]:
    from scipy.optimize import minimize

    shape, total, penalty = theta.shape, problem.total_weight, problem.penalty

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = space.leave(flat.reshape(shape))
        loss, gradient = problem.evaluate(at)
        gradient /= total
        gradient[:-1] += penalty * at[:-1]
        value = loss / total + 0.5 * penalty * float((at[:-1] ** 2).sum())
        return value, space.gradient(gradient).ravel()

    options = {"maxiter": STEPS_PER_ROUND, "gtol": tolerance, "ftol": 0.0, "maxcor": 20}
    result = minimize(
        objective, space.enter(theta).ravel(), jac=True, method="L-BFGS-B", options=options
    )
    return space.leave(result.x.reshape(shape)), float(result.fun), result.nit, result.status


def single_threaded_blas() -> AbstractContextManager[Any]:
    """One thread per product: the chunks are what runs in parallel."""
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def n_threads() -> int:
    """Processors this process may use, or what OMP_NUM_THREADS says."""
    import os

    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdigit() and int(stated) > 0:
        return int(stated)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Loss and gradient over the rows; parameters here are of standardized features."""

    x: FloatArray
    y: NDArray[np.int64]
    k: int
    rows: NDArray[np.intp] | None
    weight: NDArray[np.floating] | None
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    c: float

    @property
    def n(self) -> int:
        """Rows used."""
        return len(self.x) if self.rows is None else len(self.rows)

    @property
    def total_weight(self) -> float:
        """Sum of the rows' weights."""
        if self.weight is None:
            return float(self.n)
        used = self.weight if self.rows is None else self.weight[self.rows]
        return float(used.sum(dtype=np.float64))

    @property
    def penalty(self) -> float:
        """Of the squared weights, beside the mean loss."""
        return 1 / (self.c * self.total_weight)

    def draw(self, n: int) -> NDArray[np.intp]:
        """Some of the rows, the same every time."""
        chosen = np.sort(np.random.default_rng(0).choice(self.n, min(n, self.n), replace=False))
        return chosen if self.rows is None else self.rows[chosen]

    def part(self, n: int) -> _Problem:
        """The same mean loss on fewer rows."""
        part = replace(self, rows=self.draw(n))
        return replace(part, c=self.c * self.total_weight / part.total_weight)

    def space(self, theta: NDArray[np.float64]) -> Here:
        """Round coordinates at some parameters."""
        rows = self.draw(rows_for_curvature(self.x.shape[1], self.k))
        x = (self.x[rows] - self.mean) / self.scale
        z = x @ theta[:-1] + theta[-1]
        p = sigmoid(z) if self.k == 1 else softmax(z)
        weight = np.ones(len(rows)) if self.weight is None else self.weight[rows].astype(float)
        return here(x, p, weight / weight.sum(), self.penalty)

    def evaluate(self, theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Sum of losses and its gradient [D + 1, K], without the penalty."""
        a = theta[:-1] / self.scale[:, None]
        b = theta[-1]
        workers = min(n_threads(), -(-self.n // CHUNK_ROWS))
        if workers == 1:
            parts = [self._share(a, b, 0, 1)]
        else:
            with ThreadPoolExecutor(workers) as pool:
                jobs = [pool.submit(self._share, a, b, i, workers) for i in range(workers)]
                parts = [job.result() for job in jobs]
        loss = sum(p[0] for p in parts)
        gradient = np.sum([p[1] for p in parts], axis=0)
        gradient[:-1] /= self.scale[:, None]
        return loss, gradient

    def _share(
        self, a: NDArray[np.float64], b: NDArray[np.float64], worker: int, workers: int
    ) -> tuple[float, NDArray[np.float64]]:
        """A worker's share of the chunks, in a fixed order."""
        n_chunks = -(-self.n // CHUNK_ROWS)
        first = worker * n_chunks // workers * CHUNK_ROWS
        last = min((worker + 1) * n_chunks // workers * CHUNK_ROWS, self.n)
        loss, gradient = 0.0, np.zeros((len(a) + 1, len(b)))
        centered = np.empty((CHUNK_ROWS, self.x.shape[1]))
        for start in range(first, last, CHUNK_ROWS):
            at = slice(start, min(start + CHUNK_ROWS, last))
            rows = at if self.rows is None else self.rows[at]
            part = np.subtract(self.x[rows], self.mean, out=centered[: at.stop - at.start])
            weight = None if self.weight is None else self.weight[rows]
            z = part @ a
            z += b
            one_loss, residual = _residual(z, self.y[rows], weight)
            loss += one_loss
            gradient[:-1] += part.T @ residual
            gradient[-1] += residual.sum(axis=0, dtype=np.float64)
        return loss, gradient


def _residual(
    z: NDArray[Any], y: NDArray[np.int64], weight: NDArray[np.floating] | None
) -> tuple[float, NDArray[Any]]:
    """Loss of logits z [m, K], and its derivative; z is overwritten."""
    if z.shape[1] == 1:
        sign = np.where(y == 1, z.dtype.type(1), z.dtype.type(-1))[:, None]
        margin = z * sign
        small = np.exp(-np.abs(margin))
        losses = np.log1p(small) + np.maximum(-margin, 0)
        # d loss / d z = -sign * sigmoid(-margin)
        z = -sign * np.where(margin >= 0, small, z.dtype.type(1)) / (1 + small)
    else:
        every = np.arange(len(y))
        z -= z.max(axis=1, keepdims=True)
        losses = -z[every, y][:, None]
        np.exp(z, out=z)
        total = z.sum(axis=1, keepdims=True)
        losses = losses + np.log(total)
        z /= total
        z[every, y] -= 1
    if weight is not None:
        by = weight.astype(z.dtype)[:, None]
        losses = losses * by
        z = z * by
    return float(losses.sum(dtype=np.float64)), z


def softmax(z: NDArray[np.floating]) -> NDArray[Any]:
    """Probabilities of logits [n, K], K > 1."""
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True))


def sigmoid(z: NDArray[np.floating]) -> NDArray[Any]:
    """1 / (1 + exp(-z)) without overflow."""
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1, small) / (1 + small))
