"""Coarser levels of an embedding raster: masked means of real values, never of codes.

Averaging square-root codes bends the mean (cosine 0.9977 to the true one at factor 4), and picking
every fourth code is worse (0.947); so the mean is taken over decoded values and coded again. Every
level is the mean of the full-resolution cells below it, so errors of coding do not add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bocage.types import FloatArray, ShapeYX


def overview_factors(shape_yx: ShapeYX, block_cells: int, limit: int) -> tuple[int, ...]:
    """2, 4, 8, ... until the map fits one block, as GDAL's COG driver does; none above `limit`."""
    factors: list[int] = []
    factor = 2
    while max(shape_yx) > block_cells * factor // 2 and factor <= limit:
        factors.append(factor)
        factor *= 2
    return tuple(factors)


def masked_means(x: FloatArray, factors: Sequence[int]) -> list[FloatArray]:
    """Means over factor x factor cells of x [D, h, w] for each factor, each twice the one before.

    NaN cells do not count; a mean of nothing is NaN. Partial cells at the right and lower edge are
    means of what lies on the map.
    """
    valid = ~np.isnan(x)
    # All bands of a cell are valid or none is, in nearly all rasters: then one count serves all.
    uniform = bool((valid == valid[:1]).all())
    counts = (valid[:1] if uniform else valid).astype(np.float32)
    sums = np.where(valid, x, np.float32(0))
    means: list[FloatArray] = []
    done = 1
    for factor in factors:
        if factor != done * 2:
            raise ValueError(f"factors must double, got {factor} after {done}")
        sums, counts, done = _pair_sums(sums), _pair_sums(counts), factor
        with np.errstate(invalid="ignore"):
            means.append(np.where(counts > 0, sums / counts, np.float32(np.nan)))
    return means


def _pair_sums(a: NDArray[np.float32]) -> NDArray[np.float32]:
    d, h, w = a.shape
    if h % 2 or w % 2:
        a = np.pad(a, ((0, 0), (0, h % 2), (0, w % 2)))
        h, w = a.shape[1:]
    rows = a[:, 0::2] + a[:, 1::2]
    return np.ascontiguousarray(rows[:, :, 0::2] + rows[:, :, 1::2]).reshape(d, h // 2, w // 2)
