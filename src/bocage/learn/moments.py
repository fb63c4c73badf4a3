"""Mean, spread and covariance of features, in one pass and without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

CHUNK_ROWS = 4096
"""Rows worked on at once: with 128 features they and their scratch fit into a core's cache."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of the chosen rows."""

    mean: NDArray[np.float64]
    """[D]."""

    scale: NDArray[np.float64]
    """Population standard deviation [D]; 1 where a feature is constant, as scikit-learn has it."""

    covariance: NDArray[np.float64]
    """Of the features [D, D], population."""

    n: int


def moments(x: FloatArray, rows: NDArray[np.intp] | None = None) -> Moments:
    """Moments of x [n, D], or of some of its rows, summed in float64."""
    n = len(x) if rows is None else len(rows)
    dims = x.shape[1]
    first = next(chunks(x, rows))[1]
    shift = first.mean(axis=0, dtype=np.float64).astype(np.float32)
    total = np.zeros(dims)
    square = np.zeros((dims, dims))
    for _, part in chunks(x, rows):
        # Shifted by a value near the mean, so that subtracting squares loses no digits.
        centered = part.astype(np.float64)
        centered -= shift
        total += centered.sum(axis=0)
        square += centered.T @ centered
    offset = total / n
    covariance = square / n - np.outer(offset, offset)
    variance = np.diag(covariance).copy()
    # What rounding leaves of a constant feature is no spread.
    constant = variance <= (np.abs(shift) * 1e-6 + 1e-30) ** 2
    scale = np.where(constant, 1.0, np.sqrt(np.maximum(variance, 0)))
    return Moments(mean=shift + offset, scale=scale, covariance=covariance, n=n)


def chunks(
    x: FloatArray, rows: NDArray[np.intp] | None = None, size: int = CHUNK_ROWS
) -> Iterator[tuple[slice, FloatArray]]:
    """Pieces of x, or of some of its rows, with their place among the chosen ones."""
    n = len(x) if rows is None else len(rows)
    for start in range(0, n, size):
        at = slice(start, min(start + size, n))
        yield at, x[at] if rows is None else x[rows[at]]
