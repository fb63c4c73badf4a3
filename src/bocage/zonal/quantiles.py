"""Medians and other quantiles of the cells under each zone, exactly and in bounded memory.

Values of float32 in order are whole numbers of 32 bits in order. A pass over the map counts the
weights by the first 8 bits, which tells the first 8 bits of the quantile; three more passes tell
the rest. Nothing is sorted or kept, and tiles can come in any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray
    from bocage.zonal.coverage import Covered

PASSES = 4
_DIGITS = 256
_SAME = 1e-9
"""Shares of a border cell are known to 1e-7, sums of them to less than this."""

MEMORY_BYTES = 2**28
"""Counts that are held at once; more zones, bands and quantiles take more passes."""


def pairs_at_once(n_quantiles: int) -> int:
    """How many pairs of a zone and a band are counted in one round of passes."""
    return max(1, MEMORY_BYTES // (8 * _DIGITS * max(1, n_quantiles)))


class Quantiles:
    """Of some zones, some features: the smallest value that a share q of the ground is not above.

    The same as numpy.quantile(x, q, weights=shares, method="inverted_cdf").
    """

    def __init__(
        self, zones: NDArray[np.int64], n_features: int, shares: Sequence[float], n_zones: int
    ) -> None:
        """Of the zones at these positions [z] among all."""
        self._place = np.full(n_zones, -1)
        self._place[zones] = np.arange(len(zones))
        self._shares = np.asarray(shares, np.float64)
        shape = (len(zones), n_features, len(self._shares))
        self._found = np.zeros(shape, np.uint32)
        """Leading bits of each quantile, as far as they are known."""
        self._below = np.zeros(shape)
        """Weight of everything smaller than those bits."""
        self._total = np.zeros((len(zones), n_features))
        self._counts = np.zeros((*shape, _DIGITS))
        self._pass = 0

    def add(self, x: FloatArray, covered: Covered) -> None:
        """Count the cells [C, n] of a tile."""
        zone = self._place[np.repeat(covered.zone, np.diff(covered.start))]
        ours = zone >= 0
        if not ours.any():
            return
        zone, cell, weight = zone[ours], covered.cell[ours], covered.share[ours]
        shift = np.uint32(32 - 8 * (self._pass + 1))
        n_zones, n_features, n_shares, _ = self._counts.shape
        for band in range(n_features):
            bits = _in_order(x[band][cell])
            digit = (bits >> shift) & np.uint32(255)
            key = zone * _DIGITS + digit
            leading = bits >> shift >> np.uint32(8)
            for k in range(n_shares):
                same = np.ones(len(zone), bool)
                if self._pass:
                    same = leading == self._found[zone, band, k]
                elif k:
                    continue  # the first pass is the same for every share
                sums = np.bincount(key[same], weights=weight[same], minlength=n_zones * _DIGITS)
                self._counts[:, band, k] += sums.reshape(n_zones, _DIGITS)

    def next_pass(self) -> None:
        """After all tiles were added: the next 8 bits are known."""
        if self._pass == 0:
            self._counts[:] = self._counts[:, :, :1]
            self._total = self._counts[:, :, 0].sum(axis=-1)
        running = self._below[..., None] + np.cumsum(self._counts, axis=-1)
        total = self._total[..., None]
        wanted = self._shares * total - _SAME * total
        digit = (running < wanted[..., None]).sum(axis=-1)
        # Rounding may leave the last digit that has any weight just below what is wanted.
        last = _DIGITS - 1 - (self._counts[..., ::-1] > 0).argmax(axis=-1)
        digit = np.minimum(digit, last)
        before = np.take_along_axis(running, np.maximum(digit - 1, 0)[..., None], axis=-1)[..., 0]
        self._below = np.where(digit > 0, before, self._below)
        self._found = (self._found << np.uint32(8)) | digit.astype(np.uint32)
        self._counts[:] = 0
        self._pass += 1

    def result(self) -> NDArray[np.float64]:
        """Quantiles [z, C, K] after the last pass; NaN for zones without cells."""
        values = _from_order(self._found).astype(np.float64)
        return np.where(self._total[..., None] > 0, values, np.nan)


def _in_order(x: FloatArray) -> NDArray[np.uint32]:
    """Whole numbers in the order of the values."""
    bits = (x + np.float32(0)).view(np.uint32)  # -0 is 0
    return np.asarray(np.where(bits >> 31, ~bits, bits | np.uint32(2**31)), np.uint32)


def _from_order(bits: NDArray[np.uint32]) -> FloatArray:
    restored = np.where(bits >> 31, bits & np.uint32(2**31 - 1), ~bits)
    return np.asarray(restored, np.uint32).view(np.float32)
