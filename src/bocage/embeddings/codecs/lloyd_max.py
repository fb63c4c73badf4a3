"""Rotate, then quantize with the codebook that is optimal for what a rotation produces.

After a Haar rotation the coordinates of a unit vector in D dimensions are nearly N(0, 1/D) whatever
the data was, so one codebook, Lloyd-Max for the normal distribution, is right for every coordinate
and every corpus (TurboQuant, Zandieh et al. 2025, arXiv 2504.19874). The mean of the corpus is
taken off first and each vector keeps its length as a half float.
"""

from __future__ import annotations

from functools import lru_cache
from math import erf, exp, pi, sqrt
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.codecs.bits import pack, packed_width, unpack
from bocage.embeddings.codecs.codec import Codec, row_blocks
from bocage.embeddings.codecs.rotation import haar_rotation

if TYPE_CHECKING:
    from bocage.types import CodeArray, FloatArray


class LloydMax(Codec):
    """Centered, normalized, rotated vectors on a normal Lloyd-Max codebook of 2**bits values."""

    learned: ClassVar[tuple[str, ...]] = (
        "mean",
    )  # rotation and codebook follow from seed and bits

    mean: FloatArray

    def __init__(self, name: str, *, bits: int, seed: int = 0) -> None:
        super().__init__(name, seed=seed)
        self.bits = bits

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return packed_width(self.dims, self.bits) + 2

    def _fit(self, x: FloatArray) -> None:
        self.mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)

    def _encode(self, x: FloatArray) -> CodeArray:
        values = normal_codebook(self.bits)
        edges = ((values[1:] + values[:-1]) / 2).astype(np.float32)
        rotation = haar_rotation(self.dims, self.seed)
        q = np.empty((len(x), self.code_width), np.uint8)
        for rows in row_blocks(len(x), self.dims, n_values=1 << 20):
            y = x[rows] - self.mean
            length = np.linalg.norm(y, axis=1).astype(np.float32)
            y = y @ rotation
            y *= (sqrt(self.dims) / np.where(length > 0, length, 1))[:, None]
            level = np.searchsorted(edges, y).astype(np.uint8)
            q[rows, :-2] = pack(level, self.bits)
            q[rows, -2:] = np.minimum(length, 65504).astype("<f2")[:, None].view(np.uint8)
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        values = normal_codebook(self.bits)
        rotation = haar_rotation(self.dims, self.seed)
        x = np.empty((len(q), self.dims), np.float32)
        for rows in row_blocks(len(q), self.dims, n_values=1 << 20):
            y = values[unpack(q[rows, :-2], self.bits, self.dims)]
            length = np.ascontiguousarray(q[rows, -2:]).view("<f2").astype(np.float32)
            y = y * (length / np.float32(sqrt(self.dims)))
            x[rows] = y @ rotation.T + self.mean
        return x


@lru_cache(maxsize=8)
def normal_codebook(bits: int) -> NDArray[np.float32]:
    """The 2**bits values that quantize N(0, 1) with least squared error (Lloyd, Max 1960)."""
    n = 2**bits
    # Start at quantiles of N(0, 3), the asymptotically optimal density (its cube root, normalized).
    grid = np.linspace(-12, 12, 200_001)
    cumulative = np.cumsum(np.exp(-(grid**2) / 6))
    cumulative /= cumulative[-1]
    values = np.interp((np.arange(n) + 0.5) / n, cumulative, grid)
    for _ in range(20_000):
        edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
        density = np.array([exp(-e * e / 2) / sqrt(2 * pi) for e in edges])
        mass = np.array([0.5 * (1 + erf(e / sqrt(2))) for e in edges])
        moved = (density[:-1] - density[1:]) / np.diff(mass)
        change = np.abs(moved - values).max()
        values = moved
        if change < 1e-7:
            break
    values = (values - values[::-1]) / 2  # rounding breaks the symmetry a little
    codebook: NDArray[np.float32] = values.astype(np.float32)
    codebook.setflags(write=False)
    return codebook
