"""Affine integers per dimension: x = low + step * level, 8 to 2 bits, three range rules.

min-max keeps every training value but lets one outlier spend the levels; percentile cuts the tails;
MSE searches the cut that reconstructs the training vectors best, dimension by dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bocage.embeddings.codecs.bits import pack, packed_width, unpack
from bocage.embeddings.codecs.codec import Codec, row_blocks, training_sample
from bocage.embeddings.codecs.rotation import haar_rotation
from bocage.errors import ConfigError

if TYPE_CHECKING:
    from bocage.types import CodeArray, FloatArray

RANGES = ("minmax", "percentile", "mse")


class Affine(Codec):
    """`bits`-bit levels between a low and a high value per dimension.

    int8 uses 255 levels stored as -127..127, so that -128 can mean nodata; fewer bits use all
    2**bits levels, are packed, and have no nodata code.
    """

    learned: ClassVar[tuple[str, ...]] = ("low", "step")

    low: FloatArray
    step: FloatArray

    def __init__(self, name: str, *, bits: int, value_range: str = "minmax", seed: int = 0) -> None:
        super().__init__(name, seed=seed)
        if bits not in (2, 3, 4, 8) or value_range not in RANGES:
            raise ConfigError(
                got=f"{bits} bits with range rule {value_range!r}",
                expected=f"2, 3, 4 or 8 bits and one of {', '.join(RANGES)}",
                fix="choose a codec from codec_names()",
            )
        self.bits = bits
        self.value_range = value_range
        if bits == 8:
            self.nodata = -128  # type: ignore[misc]

    @property
    def n_levels(self) -> int:
        """Levels per dimension."""
        return 255 if self.bits == 8 else 2**self.bits

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return packed_width(self.dims, self.bits)

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Type of one entry."""
        return np.dtype(np.int8 if self.bits == 8 else np.uint8)

    def _fit(self, x: FloatArray) -> None:
        sample = training_sample(x, 50_000, self.seed)
        if self.value_range == "minmax":
            low, high = x.min(axis=0), x.max(axis=0)
        elif self.value_range == "percentile":
            # The rarer the levels, the more of the tail is given up.
            cut = {8: 0.05, 4: 0.5, 3: 1.0, 2: 4.0}[self.bits]
            low, high = np.percentile(sample, [cut, 100 - cut], axis=0).astype(np.float32)
        else:
            low, high = _least_squares_range(sample, self.n_levels)
        self._set_range(low, high)

    def _set_range(self, low: FloatArray, high: FloatArray) -> None:
        step = (high - low) / np.float32(self.n_levels - 1)
        self.low = np.asarray(low, np.float32)
        self.step = np.where(step > 0, step, 1).astype(np.float32)  # a constant dimension

    def _encode(self, x: FloatArray) -> CodeArray:
        q = np.empty((len(x), self.code_width), self.code_dtype)
        top = np.float32(self.n_levels - 1)
        for rows in row_blocks(len(x), self.dims):
            level = x[rows] - self.low
            level /= self.step
            np.rint(level, out=level)
            np.clip(level, 0, top, out=level)
            if self.bits == 8:
                level -= 127
                np.copyto(q[rows], level, casting="unsafe")
            else:
                q[rows] = pack(level.astype(np.uint8), self.bits)
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        x = np.empty((len(q), self.dims), np.float32)
        for rows in row_blocks(len(q), self.dims):
            if self.bits == 8:
                np.add(q[rows], np.float32(127), out=x[rows], dtype=np.float32)
            else:
                x[rows] = unpack(q[rows], self.bits, self.dims)
            x[rows] *= self.step
            x[rows] += self.low
        return x


class RotatedAffine(Affine):
    """A Haar rotation, then affine min-max: the simple form that is often called TurboQuant.

    Kept beside `LloydMax` (lloyd_max.py), the algorithm proper, so that the two can be compared.
    """

    learned: ClassVar[tuple[str, ...]] = ("low", "step")  # the rotation comes back from the seed
    nodata: ClassVar[float | None] = None

    def _fit(self, x: FloatArray) -> None:
        super()._fit(x @ haar_rotation(self.dims, self.seed))

    def _encode(self, x: FloatArray) -> CodeArray:
        return super()._encode(x @ haar_rotation(self.dims, self.seed))

    def _decode(self, q: CodeArray) -> FloatArray:
        x: FloatArray = super()._decode(q) @ haar_rotation(self.dims, self.seed).T
        return x


def _least_squares_range(x: FloatArray, n_levels: int) -> tuple[FloatArray, FloatArray]:
    """Range per dimension with the least squared error, among shrinkings of min-max."""
    x = x[: min(len(x), 20_000)]
    low, high, middle = x.min(axis=0), x.max(axis=0), np.median(x, axis=0)
    best_error = np.full(x.shape[1], np.inf)
    best_low, best_high = low.copy(), high.copy()
    # 40 shrinkings, dense near one for 8 bits and reaching 0.1 for heavy tails at 2 bits.
    for factor in np.geomspace(1.0, 0.1, 40, dtype=np.float32):
        trial_low = middle - factor * (middle - low)
        trial_high = middle + factor * (high - middle)
        step = (trial_high - trial_low) / np.float32(n_levels - 1)
        step = np.where(step > 0, step, 1)
        level = np.clip(np.rint((x - trial_low) / step), 0, n_levels - 1)
        error = np.square(trial_low + level * step - x).mean(axis=0)
        better = error < best_error
        best_error[better] = error[better]
        best_low[better], best_high[better] = trial_low[better], trial_high[better]
    return best_low.astype(np.float32), best_high.astype(np.float32)
