"""Bits that count: principal axes in unary levels of one step; Hamming is then L1 distance.

One bit per dimension gives an axis with a thousandth of the variance as much say as the first. Here
every principal axis is cut at equal steps and a value is the number of cuts below it, written as
that many ones (a thermometer). The Hamming distance of two codes is then their L1 distance along
the axes in steps, and bits go where the variance is: wide axes get many, narrow ones none. The step
is the one that spends the bits given. Codes stay plain bits, for the same engines and readers as
other binary codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bocage.embeddings.codecs.binary import hamming
from bocage.embeddings.codecs.bits import packed_width
from bocage.embeddings.codecs.codec import Codec, row_blocks, training_sample
from bocage.embeddings.codecs.reducers import fix_signs, second_moment

if TYPE_CHECKING:
    from bocage.types import CodeArray, FloatArray


class Levels(Codec):
    """`bits_per_dim` * D bits, shared among principal axes in proportion to their range."""

    distance: ClassVar[str | None] = "hamming"
    learned: ClassVar[tuple[str, ...]] = ("mean", "basis", "axis", "threshold", "middle", "step")

    mean: FloatArray
    basis: FloatArray
    axis: np.ndarray[tuple[int], np.dtype[np.int32]]
    threshold: FloatArray
    middle: FloatArray
    step: FloatArray

    def __init__(self, name: str, *, bits_per_dim: int = 1, seed: int = 0) -> None:
        super().__init__(name, seed=seed)
        self.bits_per_dim = bits_per_dim

    @property
    def n_bits(self) -> int:
        """Bits of a code."""
        return self.bits_per_dim * self.dims

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return packed_width(self.n_bits, 1)

    def _fit(self, x: FloatArray) -> None:
        sample = training_sample(x, 50_000, self.seed)
        self.mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        _, axes = np.linalg.eigh(second_moment(sample, self.mean))
        basis = fix_signs(axes[:, ::-1]).astype(np.float32)
        y = (sample - self.mean) @ basis
        # Cuts cover all but the outermost percent of each axis.
        low, high = np.percentile(y, [0.5, 99.5], axis=0)
        step = _step_for(high - low, self.n_bits)
        n_cuts = np.floor((high - low) / step).astype(int) if step > 0 else np.zeros(len(low), int)
        used = np.flatnonzero(n_cuts)
        self.basis = np.ascontiguousarray(basis[:, used])
        self.middle = ((low + high) / 2)[used].astype(np.float32)
        self.step = np.array([step], np.float32)
        self.axis = np.repeat(np.arange(len(used)), n_cuts[used]).astype(np.int32)
        nth = np.concatenate([np.arange(n) - (n - 1) / 2 for n in n_cuts[used]] or [np.zeros(0)])
        self.threshold = (self.middle[self.axis] + nth * step).astype(np.float32)

    def _encode(self, x: FloatArray) -> CodeArray:
        q = np.zeros((len(x), self.code_width), np.uint8)
        for rows in row_blocks(len(x), self.n_bits, n_values=1 << 20):
            y = (x[rows] - self.mean) @ self.basis
            packed = np.packbits(y[:, self.axis] > self.threshold, axis=1)
            q[rows, : packed.shape[1]] = packed  # bits that no axis could use stay 0
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        bits = np.unpackbits(q, axis=1, count=len(self.axis))
        n_axes = len(self.middle)
        counts = np.zeros((len(q), n_axes), np.float32)
        starts = np.searchsorted(self.axis, np.arange(n_axes))
        if n_axes:
            counts = np.add.reduceat(bits, starts, axis=1, dtype=np.float32)
        n_cuts = np.bincount(self.axis, minlength=n_axes)
        y = self.middle + (counts - n_cuts / 2) * self.step[0]
        return np.asarray(y @ self.basis.T + self.mean, np.float32)

    def distances(self, queries: FloatArray, q: CodeArray) -> FloatArray:
        """Hamming distances [Q, N] between the bits of real queries and codes."""
        return hamming(self.encode(queries), self.check_codes(q)).astype(np.float32)

    def look(self, q: CodeArray) -> tuple[CodeArray, int]:
        """The codes themselves."""
        return q, self.n_bits


def _step_for(extent: np.ndarray[tuple[int], np.dtype[np.float64]], n_bits: int) -> float:
    """The smallest step with at most `n_bits` cuts over all axes; 0 if nothing varies."""
    widest = float(extent.max())
    if widest <= 0:
        return 0.0
    small, large = widest / n_bits / 2, 2 * widest
    for _ in range(60):
        middle = (small * large) ** 0.5
        if np.floor(extent / middle).sum() > n_bits:
            small = middle
        else:
            large = middle
    return large
