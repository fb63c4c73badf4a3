"""Hectares under each zone: of each class, of bands that say yes, of numbers above a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bocage.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray
    from bocage.zonal.coverage import Covered

MAX_CLASSES = 1000
_MAX_SPAN = 2**16


class ClassAreas:
    """Hectares [Z] of each class value that occurs under a zone, or that the legend names."""

    def __init__(self, n_zones: int, legend: Mapping[int, str], name: str) -> None:
        self.n_zones = n_zones
        self.legend = legend
        self._name = name
        self.hectares = {value: np.zeros(n_zones) for value in legend}

    def add(self, codes: FloatArray, covered: Covered, hectares: NDArray[np.float64]) -> None:
        """Add class codes [1, n] of a tile, whose cells have areas [n]."""
        values, index = _index(codes[0][covered.cell])
        if len(self.hectares) + len(values) > MAX_CLASSES + len(self.legend):
            raise InputError(
                got=f"{self._name} with more than {MAX_CLASSES} values",
                expected="a map of classes",
                fix="use --kind values",
            )
        zone = np.repeat(np.arange(len(covered.zone)), np.diff(covered.start))
        weight = covered.share * hectares[covered.cell]
        n = len(values)
        sums = np.bincount(zone * n + index, weights=weight, minlength=n * len(covered.zone))
        for k, value in enumerate(values):
            total = self.hectares.setdefault(int(value), np.zeros(self.n_zones))
            total[covered.zone] += sums.reshape(-1, n)[:, k]


def _index(codes: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Values that occur, in order, and the position of each code among them."""
    whole = codes.astype(np.int64)
    low = int(whole.min())
    span = int(whole.max()) - low
    if span > _MAX_SPAN:
        values, index = np.unique(whole, return_inverse=True)
        return values, index
    # Counting takes a tenth of the time of sorting.
    occurs = np.bincount(whole - low, minlength=span + 1) > 0
    place = np.cumsum(occurs) - 1
    return np.flatnonzero(occurs) + low, place[whole - low]


class YesAreas:
    """Hectares [Z, C] where each band is at least a threshold."""

    def __init__(self, n_zones: int, n_features: int, threshold: float) -> None:
        self.threshold = np.float32(threshold)
        self.hectares = np.zeros((n_zones, n_features))

    def add(self, x: FloatArray, covered: Covered, hectares: NDArray[np.float64]) -> None:
        """Add the cells [C, n] of a tile, which have areas [n]."""
        matrix = covered.matrix(x.shape[1], hectares)
        for band in range(len(x)):
            yes = (x[band] >= self.threshold).astype(np.float64)
            self.hectares[covered.zone, band] += matrix @ yes
