"""Many pixels to one vector: of an image, a field, a census block.

pool(x, "mean+std")     # x [..., P, D] to [..., 2 D]; NaN pixels do not count

The operators are those of published comparisons of pooled embeddings (mean, max, std, GeM with
p = 3, Gaussian around the center, median and quartiles, percentiles, covariance), joined by "+".
Means of vectors of length one are no longer of length one: normalize afterwards where a cosine is
meant.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bocage.errors import ConfigError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

    Operator = Callable[[FloatArray], NDArray[np.floating]]

GEM_POWER = 3
GEM_FLOOR = 1e-6
"""Generalized means are of positive numbers (Radenovic et al. 2018): what is below is raised."""

MIDDLE_SIGMA = 0.25
"""Width of the Gaussian, as a share of the image's side."""


def pool(x: FloatArray, operator: str = "mean") -> FloatArray:
    """One vector for the pixels of each item.

    Args:
        x: Pixels [..., P, D]; [..., H, W, D] for the operator "center". Pixels that hold a NaN do
            not count; an item without any other gives NaN.
        operator: A name of OPERATORS, or several joined by "+".
    """
    parts = operator.split("+")
    unknown = [p for p in parts if p not in {*OPERATORS, "center"}]
    if unknown:
        raise ConfigError(
            got=f"pooling {unknown[0]!r}",
            expected=f"one of {', '.join([*OPERATORS, 'center'])}, or several joined by +",
            fix="try mean+std",
        )
    if x.ndim < (3 if "center" in parts else 2):
        raise InputError(
            got=f"pixels of shape {x.shape}",
            expected="[..., H, W, D] for center, else [..., P, D]",
            fix="keep the axes of the image",
        )
    found = []
    for part in parts:
        if part == "center":
            found.append(_center(x))
            continue
        flat = x.reshape(*x.shape[:-3], -1, x.shape[-1]) if "center" in parts else x
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # an item without pixels gives NaN
            found.append(OPERATORS[part](_complete(flat)))
    return np.concatenate(found, axis=-1).astype(np.float32)


def recommended_pooling(n_pixels: int, dims: int) -> str:
    """A pooling that so many pixels can fill: spread needs more pixels than dimensions."""
    if n_pixels >= 4 * dims:
        return "min+max+mean+std"
    return "mean+std" if n_pixels >= dims / 4 else "mean"


def _complete(x: FloatArray) -> FloatArray:
    """Pixels with all values or none, so that all dimensions are of the same pixels."""
    broken = ~np.isfinite(x).all(axis=-1, keepdims=True)
    if not broken.any():
        return x
    return np.where(broken, np.float32(np.nan), x)


def _mean(x: FloatArray) -> NDArray[np.floating]:
    return np.asarray(np.nanmean(x, axis=-2, dtype=np.float64))


def _std(x: FloatArray) -> NDArray[np.floating]:
    return np.asarray(np.nanstd(x, axis=-2, dtype=np.float64))


def _gem(x: FloatArray) -> NDArray[np.floating]:
    raised = np.maximum(x, np.float32(GEM_FLOOR)).astype(np.float64) ** GEM_POWER
    return np.asarray(np.nanmean(raised, axis=-2) ** (1 / GEM_POWER))


def _percentiles(*shares: float) -> Operator:
    def operator(x: FloatArray) -> NDArray[np.floating]:
        found = np.nanpercentile(x.astype(np.float64), shares, axis=-2)
        return np.concatenate(list(found), axis=-1)

    return operator


def _covariance(x: FloatArray) -> NDArray[np.floating]:
    """The upper triangle with the diagonal, row by row: D (D + 1) / 2 values."""
    valid = np.isfinite(x).all(axis=-1, keepdims=True)
    n = valid.sum(axis=-2, keepdims=True)
    mean = np.nanmean(x, axis=-2, keepdims=True, dtype=np.float64)
    centered = np.where(valid, x - mean, 0)
    matrix = np.swapaxes(centered, -1, -2) @ centered / n
    rows, cols = np.triu_indices(x.shape[-1])
    return np.asarray(matrix[..., rows, cols])


def _center(x: FloatArray) -> NDArray[np.floating]:
    """The mean with weights that fall from the middle of the image as a Gaussian."""
    h, w = x.shape[-3:-1]
    away = [(np.arange(n) - (n - 1) / 2) / (MIDDLE_SIGMA * max(n, 2)) for n in (h, w)]
    weight = np.exp(-0.5 * (away[0][:, None] ** 2 + away[1] ** 2))[..., None]
    valid = np.isfinite(x).all(axis=-1, keepdims=True)
    weight = weight * valid
    total = (np.where(valid, x, 0) * weight).sum(axis=(-3, -2))
    sums = weight.sum(axis=(-3, -2))
    return np.asarray(np.where(sums > 0, total / np.where(sums > 0, sums, 1), np.nan))


OPERATORS: dict[str, Operator] = {
    "mean": _mean,
    "std": _std,
    "min": lambda x: np.asarray(np.nanmin(x, axis=-2)),
    "max": lambda x: np.asarray(np.nanmax(x, axis=-2)),
    "gem": _gem,
    "median": _percentiles(50),
    "quartiles": _percentiles(25, 50, 75),
    "percentiles": _percentiles(10, 25, 50, 75, 90),
    "covariance": _covariance,
}
"""By name; "center" is one more, which needs to know where the pixels are."""
