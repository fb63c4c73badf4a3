"""Mean, spread and extremes of the cells under each zone, added up tile by tile.

Within a tile values are taken from the tile's own mean, and tiles join by the rule of Chan, Golub
and LeVeque (1983): a map of elevations around 2,000 m with a spread of a millimeter keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray
    from bocage.zonal.coverage import Covered


class Moments:
    """Of Z zones and C features; a cell weighs by the share of it that the zone covers."""

    def __init__(self, n_zones: int, n_features: int, *, extremes: bool) -> None:
        shape = (n_zones, n_features)
        self.weight = np.zeros(n_zones)
        """Sum of the shares: how many cells."""
        self.mean = np.zeros(shape)
        self._squares = np.zeros(shape)
        self.low = np.full(shape, np.inf, np.float32) if extremes else None
        self.high = np.full(shape, -np.inf, np.float32) if extremes else None

    def add(self, x: FloatArray, covered: Covered) -> None:
        """Add the cells [C, n] of a tile; every pair of `covered` must hold data."""
        if not len(covered.zone):
            return
        matrix = covered.matrix(x.shape[1])
        zones, before = covered.zone, self.weight[covered.zone]
        added = matrix.sum(axis=1)
        after = before + added
        used = np.zeros(x.shape[1], bool)
        used[covered.cell] = True
        for band in range(len(x)):
            values = np.where(used, x[band], 0).astype(np.float64)
            center = values.sum() / used.sum()
            values = np.where(used, values - center, 0)
            first = matrix @ values / added
            squares = matrix @ (values * values) - added * first * first
            apart = center + first - self.mean[zones, band]
            self.mean[zones, band] += apart * (added / after)
            joined = np.maximum(squares, 0) + apart * apart * before * added / after
            self._squares[zones, band] += joined
            if self.low is not None and self.high is not None:
                gathered, start = x[band][covered.cell], covered.start[:-1]
                lowest = np.minimum.reduceat(gathered, start)
                highest = np.maximum.reduceat(gathered, start)
                self.low[zones, band] = np.minimum(self.low[zones, band], lowest)
                self.high[zones, band] = np.maximum(self.high[zones, band], highest)
        self.weight[zones] = after

    def result(self, name: str) -> NDArray[np.float64]:
        """A statistic [Z, C]: mean, std, sum, min or max; NaN for zones without cells."""
        empty = (self.weight == 0)[:, None]
        if name == "mean":
            found = self.mean
        elif name == "std":
            found = np.sqrt(self._squares / np.where(empty, 1, self.weight[:, None]))
        elif name == "sum":
            found = self.mean * self.weight[:, None]
        else:
            extreme = self.low if name == "min" else self.high
            assert extreme is not None
            found = extreme.astype(np.float64)
        return np.where(empty, np.nan, found)
