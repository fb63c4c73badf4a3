"""One bit per dimension, and three values per dimension.

A bit says on which side of a threshold a coordinate lies. The threshold rules differ in what they
assume: sign assumes centered vectors (of the models here hardly one is); mean and median center
them; ITQ also turns them so that the bits cut where the data is thin. All are learned once for a
corpus, never per file: bits cut at two thresholds cannot be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bocage.embeddings.codecs.bits import pack_trits, packed_width, unpack_trits
from bocage.embeddings.codecs.codec import Codec, row_blocks, training_sample
from bocage.embeddings.codecs.rotation import haar_rotation
from bocage.errors import ConfigError

if TYPE_CHECKING:
    from bocage.types import CodeArray, FloatArray

RULES = ("sign", "mean", "median", "itq")


class Binary(Codec):
    """bit = x > threshold, most significant bit first; decoding gives the mean of each side."""

    distance: ClassVar[str | None] = "hamming"
    learned: ClassVar[tuple[str, ...]] = ("threshold", "below", "above")

    threshold: FloatArray
    below: FloatArray
    above: FloatArray

    def __init__(self, name: str, *, rule: str = "sign", seed: int = 0) -> None:
        super().__init__(name, seed=seed)
        if rule not in RULES:
            raise ConfigError(
                got=f"binary threshold rule {rule!r}",
                expected=f"one of {', '.join(RULES)}",
                fix="choose a codec from codec_names()",
            )
        self.rule = rule

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return packed_width(self.dims, 1)

    @property
    def n_bits(self) -> int:
        """Bits of a code."""
        return self.dims

    def _fit(self, x: FloatArray) -> None:
        if self.rule == "sign":
            self.threshold = np.zeros(self.dims, np.float32)
        elif self.rule == "median":
            self.threshold = np.median(training_sample(x, 100_000, self.seed), axis=0)
        else:
            self.threshold = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._fit_sides(x)

    def _fit_sides(self, x: FloatArray) -> None:
        bit = x > self.threshold
        n_above = bit.sum(axis=0)
        total, above = x.sum(axis=0, dtype=np.float64), np.where(bit, x, 0).sum(axis=0, dtype=float)
        # A side that no training vector fell on decodes to the threshold.
        self.above = np.where(n_above, above / np.maximum(n_above, 1), self.threshold)
        n_below = len(x) - n_above
        self.below = np.where(n_below, (total - above) / np.maximum(n_below, 1), self.threshold)
        self.above, self.below = self.above.astype(np.float32), self.below.astype(np.float32)

    def _encode(self, x: FloatArray) -> CodeArray:
        q = np.empty((len(x), self.code_width), np.uint8)
        for rows in row_blocks(len(x), self.dims):
            q[rows] = np.packbits(x[rows] > self.threshold, axis=1)
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        bit = np.unpackbits(q, axis=1, count=self.dims).view(np.bool_)
        return np.where(bit, self.above, self.below)

    def distances(self, queries: FloatArray, q: CodeArray) -> FloatArray:
        """Hamming distances [Q, N] between the bits of real queries and codes."""
        return hamming(self.encode(queries), self.check_codes(q)).astype(np.float32)

    def look(self, q: CodeArray) -> tuple[CodeArray, int]:
        """The codes themselves."""
        return q, self.n_bits


class IterativeQuantization(Binary):
    """Binary codes after PCA axes and the rotation that leaves the least error (ITQ).

    Gong et al. 2013, "Iterative Quantization". The axes are not whitened: at full rank that would
    give the noise dimensions as much say as the first.
    """

    learned: ClassVar[tuple[str, ...]] = ("mean", "turn", "threshold", "below", "above")

    mean: FloatArray
    turn: FloatArray

    def __init__(self, name: str, *, n_iterations: int = 30, seed: int = 0) -> None:
        super().__init__(name, rule="itq", seed=seed)
        self.n_iterations = n_iterations

    def _fit(self, x: FloatArray) -> None:
        sample = training_sample(x, 20_000, self.seed)
        self.mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        centered = sample - self.mean
        _, axes = np.linalg.eigh(centered.T @ centered)
        axes = np.ascontiguousarray(axes[:, ::-1], np.float32)
        projected = centered @ axes
        rotation = haar_rotation(self.dims, self.seed)
        for _ in range(self.n_iterations):
            # Procrustes: the rotation that brings the vectors closest to their own signs.
            left, _, right = np.linalg.svd(projected.T @ np.sign(projected @ rotation))
            rotation = left @ right
        self.turn = (axes @ rotation).astype(np.float32)
        self.threshold = np.zeros(self.dims, np.float32)
        self._fit_sides((centered @ self.turn).astype(np.float32))

    def _encode(self, x: FloatArray) -> CodeArray:
        q = np.empty((len(x), self.code_width), np.uint8)
        for rows in row_blocks(len(x), self.dims, n_values=1 << 20):
            q[rows] = np.packbits((x[rows] - self.mean) @ self.turn > 0, axis=1)
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        x: FloatArray = super()._decode(q) @ self.turn.T + self.mean
        return x


class Ternary(Codec):
    """Low, middle or high per dimension, five to a byte; cut where training vectors lose the least.

    Cuts and values are a three-level Lloyd quantizer per dimension, started at the terciles.
    """

    distance: ClassVar[str | None] = "asymmetric"
    learned: ClassVar[tuple[str, ...]] = ("cuts", "values")

    cuts: FloatArray
    values: FloatArray

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return -(-self.dims // 5)

    def _fit(self, x: FloatArray) -> None:
        x = training_sample(x, 20_000, self.seed)
        values = np.percentile(x, [100 / 6, 50, 500 / 6], axis=0).astype(np.float32)
        for _ in range(30):
            cuts = (values[1:] + values[:-1]) / np.float32(2)
            level = (x > cuts[0]).astype(np.uint8) + (x > cuts[1])
            for i in range(3):
                chosen = level == i
                n = chosen.sum(axis=0)
                mean = np.where(chosen, x, 0).sum(axis=0, dtype=np.float64) / np.maximum(n, 1)
                values[i] = np.where(n, mean, values[i]).astype(np.float32)
        self.values = values
        self.cuts = (values[1:] + values[:-1]) / np.float32(2)

    def _encode(self, x: FloatArray) -> CodeArray:
        q = np.empty((len(x), self.code_width), np.uint8)
        for rows in row_blocks(len(x), self.dims):
            level = (x[rows] > self.cuts[0]).astype(np.uint8) + (x[rows] > self.cuts[1])
            q[rows] = pack_trits(level)
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        level = unpack_trits(q, self.dims)
        return np.take_along_axis(self.values, level.astype(np.intp), axis=0)

    def distances(self, queries: FloatArray, q: CodeArray) -> FloatArray:
        """Squared Euclidean distances [Q, N] between real queries and decoded codes."""
        x = self.decode(q)
        squares = np.einsum("nd,nd->n", x, x)
        d: FloatArray = np.einsum("qd,qd->q", queries, queries)[:, None] + squares
        return d - 2 * (queries @ x.T)


def hamming(queries: CodeArray, q: CodeArray) -> CodeArray:
    """Number of differing bits [Q, N] between rows of packed bits; small tables only.

    For millions of rows use `bocage.search.hamming`, which keeps only the nearest.
    """
    distance = np.empty((len(queries), len(q)), np.uint32)
    for rows in row_blocks(len(q), q.shape[1] * max(len(queries), 1), n_values=1 << 22):
        different = queries[:, None, :] ^ q[None, rows, :]
        distance[:, rows] = np.bitwise_count(different).sum(axis=2, dtype=np.uint32)
    return distance
