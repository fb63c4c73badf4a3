"""Position along a Hilbert curve over longitude and latitude."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 26
"""Halvings per axis: cells of 0.6 m at the equator, keys below 2**52."""


def hilbert_key(lon_deg: NDArray[np.floating], lat_deg: NDArray[np.floating]) -> NDArray[np.uint64]:
    """Distance along the curve of points in degrees, below 4**26; outside values are clipped.

    Rows sorted by it lie near each other on the ground where they are near each other in the file.
    """
    n = np.int64(1) << LEVELS
    x = np.clip((np.asarray(lon_deg, np.float64) + 180) / 360 * n, 0, n - 1).astype(np.int64)
    y = np.clip((np.asarray(lat_deg, np.float64) + 90) / 180 * n, 0, n - 1).astype(np.int64)
    key = np.zeros(x.shape, np.int64)
    side = n >> 1
    while side:
        right = (x & side) > 0
        upper = (y & side) > 0
        key += side * side * ((3 * right) ^ upper)
        # Turn the quadrant so that the curve inside it starts where the last one ended.
        flip = ~upper & right
        x = np.where(flip, n - 1 - x, x)
        y = np.where(flip, n - 1 - y, y)
        x, y = np.where(upper, x, y), np.where(upper, y, x)
        side >>= 1
    return key.astype(np.uint64)
