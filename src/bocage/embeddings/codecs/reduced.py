"""Any reducer in front of any quantizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs.codec import Codec, row_blocks

if TYPE_CHECKING:
    from bocage.embeddings.codecs.reducers import Reducer
    from bocage.types import CodeArray, FloatArray


class Reduced(Codec):
    """Reduce the dimensions, then quantize; decoding lifts back to all dimensions."""

    def __init__(self, name: str, reducer: Reducer, quantizer: Codec, *, seed: int = 0) -> None:
        super().__init__(name, seed=seed)
        self.reducer = reducer
        self.quantizer = quantizer
        self.distance = quantizer.distance  # type: ignore[misc]
        self.nodata = quantizer.nodata  # type: ignore[misc]

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return self.quantizer.code_width

    @property
    def code_dtype(self) -> np.dtype[Any]:
        """Type of one entry."""
        return self.quantizer.code_dtype

    @property
    def n_bits(self) -> int:
        """Bits of a code."""
        return self.quantizer.n_bits

    def _fit(self, x: FloatArray) -> None:
        self.reducer.fit(x)
        self.quantizer.fit(self.reducer.reduce(x))

    def _encode(self, x: FloatArray) -> CodeArray:
        q = np.empty((len(x), self.code_width), self.code_dtype)
        for rows in row_blocks(len(x), self.dims, n_values=1 << 22):
            q[rows] = self.quantizer.encode(self.reducer.reduce(x[rows]))
        return q

    def _decode(self, q: CodeArray) -> FloatArray:
        return self.reducer.lift(self.quantizer.decode(q))

    def decode_reduced(self, q: CodeArray) -> FloatArray:
        """The d numbers that were quantized, without lifting: enough for cosine, kNN and probes."""
        return self.quantizer.decode(self.check_codes(q))

    def distances(self, queries: FloatArray, q: CodeArray) -> FloatArray:
        """Distances [Q, N] of the quantizer, in the reduced space."""
        return self.quantizer.distances(self.reducer.reduce(queries), q)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Arrays of both parts, under their names."""
        return {
            **{f"reducer.{k}": v for k, v in self.reducer.arrays().items()},
            **{f"quantizer.{k}": v for k, v in self.quantizer.arrays().items()},
        }

    def restore(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Give both parts their arrays back."""
        for part, target in (("reducer.", self.reducer), ("quantizer.", self.quantizer)):
            target.restore({k[len(part) :]: v for k, v in arrays.items() if k.startswith(part)})
        self.quantizer.dims = self.reducer.d
