"""Product quantization of principal axes, dealt out so that every byte has its share of variance.

Ge et al. 2013, "Optimized Product Quantization" (the parametric solution, eigenvalue allocation):
the axes go, widest first, to the byte whose axes have the smallest product of variances so far.
Each byte then names the nearest of 256 centers among its few axes. It needs one eigenvalue problem
where OPQ iterates, and of equally long codes it loses the fewest neighbors of the vectors measured
here (docs/compression.md). What is learned are plain arrays, so a search needs no library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bocage.embeddings.codecs.codec import Codec, row_blocks, training_sample
from bocage.embeddings.codecs.product import import_faiss
from bocage.embeddings.codecs.reducers import fix_signs, second_moment
from bocage.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import CodeArray, FloatArray

MAX_AXES_PER_BYTE = 8
"""More axes than this for one byte, and the narrow ones are left out instead."""

_N_CENTERS = 256
_TRAINING_ROWS = 32_768
"""128 for each center; twice as many gained nothing on 94,208 real vectors."""


class BalancedProduct(Codec):
    """`size` bytes per vector: the nearest of 256 centers in each of `size` groups of axes."""

    distance: ClassVar[str | None] = "asymmetric"
    learned: ClassVar[tuple[str, ...]] = ("mean", "basis", "centers")

    mean: FloatArray
    """[D], taken off first."""

    basis: FloatArray
    """[D, size * w]: principal axes in the order of the bytes, w to each."""

    centers: FloatArray
    """[size, 256, w]."""

    def __init__(self, name: str, *, size: int, seed: int = 0) -> None:
        super().__init__(name, seed=seed)
        self.size = size
        self._encoder: Any = None

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return self.size

    def _fit(self, x: FloatArray) -> None:
        if self.dims < self.size:
            raise InputError(
                got=f"{self.dims} dimensions for codec {self.name}",
                expected=f"at least {self.size}: each code byte covers one or more axes",
                fix=f"use balanced_pq{max(1, self.dims // 8)}",
            )
        if len(x) < _N_CENTERS:
            raise InputError(
                got=f"{len(x)} training vectors for codec {self.name}",
                expected=f"at least {_N_CENTERS}, one for each center",
                fix="fit on a larger sample, or use an int8 or binary codec",
            )
        sample = training_sample(x, 50_000, self.seed)
        self.mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        variance, axes = np.linalg.eigh(second_moment(sample, self.mean))
        width = min(MAX_AXES_PER_BYTE, self.dims // self.size)
        order = deal_axes(variance[::-1], self.size, width)
        self.basis = np.ascontiguousarray(fix_signs(axes[:, ::-1])[:, order], np.float32)
        y = (training_sample(sample, _TRAINING_ROWS, self.seed) - self.mean) @ self.basis
        faiss = import_faiss()
        quantizer = faiss.ProductQuantizer(y.shape[1], self.size, 8)
        quantizer.cp.seed = self.seed + 1
        quantizer.cp.niter = 15
        quantizer.cp.min_points_per_centroid = 1
        quantizer.train(np.ascontiguousarray(y, np.float32))
        flat = faiss.vector_to_array(quantizer.centroids)
        self.centers = flat.reshape(self.size, _N_CENTERS, width).copy()

    def _encode(self, x: FloatArray) -> CodeArray:
        if self._encoder is None:
            faiss = import_faiss()
            self._encoder = faiss.ProductQuantizer(self.basis.shape[1], self.size, 8)
            faiss.copy_array_to_vector(self.centers.reshape(-1), self._encoder.centroids)
        q = np.empty((len(x), self.size), np.uint8)
        for rows in row_blocks(len(x), self.dims, n_values=1 << 22):
            y = (x[rows] - self.mean) @ self.basis
            q[rows] = self._encoder.compute_codes(np.ascontiguousarray(y, np.float32))
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        x = np.empty((len(q), self.dims), np.float32)
        for rows in row_blocks(len(q), self.dims, n_values=1 << 22):
            y = self.centers[np.arange(self.size), q[rows]].reshape(len(q[rows]), -1)
            np.matmul(y, self.basis.T, out=x[rows])
            x[rows] += self.mean
        return x

    def distances(self, queries: FloatArray, q: CodeArray) -> FloatArray:
        """Squared Euclidean distances [Q, N] between real queries and decoded codes."""
        q = self.check_codes(q)
        tables, rest = self.tables(queries)
        d = np.repeat(rest[:, None], len(q), axis=1)
        for rows in row_blocks(len(q), 1, n_values=1 << 14):
            for byte in range(self.size):
                index = q[rows, byte].astype(np.intp)
                for i in range(len(queries)):
                    # Indices of a byte are always inside; "clip" skips the check.
                    d[i, rows] += np.take(tables[i, byte], index, mode="clip")
        return d

    def tables(self, queries: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Squared distances [Q, size, 256] to every center, and what lies off the axes [Q]."""
        away = np.asarray(queries, np.float32) - self.mean
        y = away @ self.basis
        parts = y.reshape(len(y), self.size, 1, -1)
        tables = np.square(parts - self.centers).sum(axis=3)
        rest = np.square(away).sum(axis=1) - np.square(y).sum(axis=1)
        return np.asarray(tables, np.float32), np.maximum(rest, 0).astype(np.float32)

    def look(self, q: CodeArray) -> tuple[CodeArray, int]:
        """Bits of the decoded vectors, one per dimension: above the mean or not."""
        bits = np.empty((len(q), -(-self.dims // 8)), np.uint8)
        for rows in row_blocks(len(q), self.dims, n_values=1 << 22):
            bits[rows] = np.packbits(self._decode(q[rows]) > self.mean, axis=1)
        return bits, self.dims


def deal_axes(variance: NDArray[np.floating], n_groups: int, width: int) -> NDArray[np.intp]:
    """Order of axes, `width` to each group, so that products of variances are about equal.

    `variance` falls. Axes without variance count as a billionth of the widest, so that they fill
    the groups evenly instead of pulling one down without end.
    """
    floor = max(float(variance[0]), 1e-30) * 1e-9
    weight = np.log(np.maximum(variance, floor) / floor)
    groups: list[list[int]] = [[] for _ in range(n_groups)]
    sums = np.zeros(n_groups)
    for axis in range(n_groups * width):
        free = [g for g in range(n_groups) if len(groups[g]) < width]
        chosen = min(free, key=lambda g: (sums[g], g))
        groups[chosen].append(axis)
        sums[chosen] += weight[axis]
    return np.concatenate([np.array(g, np.intp) for g in groups])
