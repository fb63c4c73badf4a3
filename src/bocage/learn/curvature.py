"""Coordinates in which a logistic loss is nearly round, so that few steps lead to its minimum.

Axes: m rows, D features, K columns of weights; parameters are [D + 1, K], the last row the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_FULL = 2500
"""Parameters up to which the curvature between classes is kept; above, only within each class."""

MAX_WORK = 8e9
"""Multiply-adds that one curvature may cost: a quarter of a second of one core."""


MAX_ROWS = 30_000
"""Rows that a curvature looks at, at most: they are copied in float64."""


class Space(Protocol):
    """A linear change of coordinates of parameters [D + 1, K]."""

    def leave(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Parameters at coordinates v."""

    def enter(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates of parameters."""

    def gradient(self, by_parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """The gradient by the coordinates."""


@dataclass(frozen=True, kw_only=True)
class AtZero:
    """From the covariance alone, exact at zero weights."""

    vectors: NDArray[np.float64]
    """Principal axes of the standardized features [D, D]."""

    factor: NDArray[np.float64]
    """One over the root of the curvature along each, and of the bias [D + 1]."""

    def leave(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Parameters at coordinates v."""
        scaled = self.factor[:, None] * v
        return np.concatenate([self.vectors @ scaled[:-1], scaled[-1:]])

    def enter(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates of parameters."""
        turned = np.concatenate([self.vectors.T @ parameters[:-1], parameters[-1:]])
        return np.asarray(turned / self.factor[:, None])

    def gradient(self, by_parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """The gradient by the coordinates."""
        turned = np.concatenate([self.vectors.T @ by_parameters[:-1], by_parameters[-1:]])
        return np.asarray(self.factor[:, None] * turned)


def at_zero(covariance: NDArray[np.float64], k: int, penalty: float) -> AtZero:
    """The space of zero weights; `penalty` is that of the mean loss."""
    values, vectors = np.linalg.eigh(covariance)
    curvature = 0.25 if k == 1 else 1 / k
    factor = 1 / np.sqrt(curvature * np.append(np.maximum(values, 0), 1) + penalty)
    return AtZero(vectors=vectors, factor=factor)


@dataclass(frozen=True, kw_only=True)
class Here:
    """From the curvature at some parameters: v = L^T parameters, curvature = L L^T."""

    lower: NDArray[np.float64]
    """Cholesky factors, [1, P, P] of all P = (D + 1) K parameters or [K, D + 1, D + 1]."""

    def leave(self, v: NDArray[np.float64]) -> NDArray[np.float64]:
        """Parameters at coordinates v."""
        return self._each(v, lambda lower, part: _solve(lower, part, transposed=True))

    def enter(self, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coordinates of parameters."""
        return self._each(parameters, lambda lower, part: lower.T @ part)

    def gradient(self, by_parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        """The gradient by the coordinates."""
        return self._each(by_parameters, lambda lower, part: _solve(lower, part, transposed=False))

    def _each(self, values: NDArray[np.float64], change: Any) -> NDArray[np.float64]:
        shape = values.shape
        columns = values.T.reshape(len(self.lower), -1)
        done = [change(lower, part) for lower, part in zip(self.lower, columns, strict=True)]
        return np.ascontiguousarray(np.stack(done).reshape(shape[::-1]).T)


def here(
    x: NDArray[np.float64],
    p: NDArray[np.float64],
    weight: NDArray[np.float64],
    penalty: float,
) -> Here:
    """The space at some parameters, from rows of standardized features.

    `x` [m, D]; `p` [m, K] probabilities there (of class 1 for K = 1); `weight` [m] sums to one.
    """
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    d, k = x.shape[1], p.shape[1]
    full = k > 1 and d * k <= MAX_FULL
    shrink = np.full(d, penalty)
    shrink[-1] = 0
    blocks = np.zeros((k, d, k, d) if full else (k, d, d))
    for i in range(k):
        own = _weighted(x, weight * p[:, i] * (1 - p[:, i]))
        own[np.diag_indices(d)] += shrink
        if not full:
            blocks[i] = own
            continue
        blocks[i, :, i] = own
        for j in range(i):
            blocks[i, :, j] = _weighted(x, -weight * p[:, i] * p[:, j])
            blocks[j, :, i] = blocks[i, :, j].T
    matrices = blocks.reshape(1, k * d, k * d) if full else blocks
    return Here(lower=np.stack([_cholesky(m) for m in matrices]))


def rows_for_curvature(d: int, k: int) -> int:
    """How many rows a curvature may look at."""
    products = k * (k + 1) / 2 if k > 1 and (d + 1) * k <= MAX_FULL else k
    return int(np.clip(MAX_WORK / (products * (d + 1) ** 2), 2000, MAX_ROWS))


def _weighted(x: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((x * weight[:, None]).T @ x)


def _cholesky(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    # Adding the same to every class's bias changes nothing: no curvature at all along there.
    # Classes that are far from each other have next to none.
    floor = 1e-9 + 1e-6 * float(np.trace(matrix)) / len(matrix)
    return np.asarray(np.linalg.cholesky(matrix + floor * np.eye(len(matrix))))


def _solve(
    lower: NDArray[np.float64], right: NDArray[np.float64], *, transposed: bool
) -> NDArray[np.float64]:
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(lower, right, trans=1 if transposed else 0, lower=True))
