"""Mean, spread and extremes of the cells under each zone, added up tile by tile.

Within a tile values are taken from the zone's first cell there, and tiles join by the rule of Chan,
Golub and LeVeque (1983): elevations around 2,000 m with a spread of a millimeter keep it, and one
cell has none.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray
    from bocage.zonal.coverage import Covered


class Moments:
    """Of Z zones and C features; a cell weighs by the share of it that the zone covers."""

    def __init__(self, n_zones: int, n_features: int, names: Collection[str]) -> None:
        """Sums for these statistics; mean and sum need no more than the weights and the mean."""
        shape = (n_zones, n_features)
        self.weight = np.zeros(n_zones)
        """Sum of the shares: how many cells."""
        self.mean = np.zeros(shape)
        self._squares = np.zeros(shape) if "std" in names else None
        extremes = not {"min", "max"}.isdisjoint(names)
        self.low = np.full(shape, np.inf, np.float32) if extremes else None
        self.high = np.full(shape, -np.inf, np.float32) if extremes else None

    def add(self, x: FloatArray, covered: Covered) -> None:
        """Add the cells [C, n] of a tile; every pair of `covered` must hold data."""
        if not len(covered.zone):
            return
        zones, start, share = covered.zone, covered.start[:-1], covered.share
        counts = np.diff(covered.start)
        before, added = self.weight[zones], np.add.reduceat(share, start)
        after = before + added
        for band in range(len(x)):
            values = x[band][covered.cell]
            first = values[start].astype(np.float64)
            apart = values - np.repeat(first, counts)
            weighted = share * apart
            shift = np.add.reduceat(weighted, start) / added
            # From the mean of the tile to the mean so far.
            jump = first + shift - self.mean[zones, band]
            self.mean[zones, band] += jump * (added / after)
            if self._squares is not None:
                squares = np.add.reduceat(weighted * apart, start) - added * shift * shift
                joined = np.maximum(squares, 0) + jump * jump * before * added / after
                self._squares[zones, band] += joined
            if self.low is not None and self.high is not None:
                lowest = np.minimum.reduceat(values, start)
                highest = np.maximum.reduceat(values, start)
                self.low[zones, band] = np.minimum(self.low[zones, band], lowest)
                self.high[zones, band] = np.maximum(self.high[zones, band], highest)
        self.weight[zones] = after

    def result(self, name: str) -> NDArray[np.float64]:
        """A statistic [Z, C]: mean, std, sum, min or max; NaN for zones without cells."""
        empty = (self.weight == 0)[:, None]
        if name == "mean":
            found = self.mean
        elif name == "std":
            assert self._squares is not None
            found = np.sqrt(self._squares / np.where(empty, 1, self.weight[:, None]))
        elif name == "sum":
            found = self.mean * self.weight[:, None]
        else:
            extreme = self.low if name == "min" else self.high
            assert extreme is not None
            found = extreme.astype(np.float64)
        return np.where(empty, np.nan, found)
