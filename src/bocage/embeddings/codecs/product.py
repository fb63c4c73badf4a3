"""Vector codecs of faiss: product quantization, OPQ, residual quantization and RaBitQ.

One faiss index without vectors is the codec; its serialized bytes are its parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bocage.embeddings.codecs.codec import Codec, training_sample
from bocage.errors import ConfigError, InputError

if TYPE_CHECKING:
    from bocage.types import CodeArray, FloatArray

KINDS = ("pq", "opq", "rq", "rabitq")


class FaissCodec(Codec):
    """Codes of a faiss index; `size` is bytes per vector, or bits per dimension for RaBitQ."""

    distance: ClassVar[str | None] = "asymmetric"

    def __init__(self, name: str, *, kind: str, size: int, seed: int = 0) -> None:
        super().__init__(name, seed=seed)
        if kind not in KINDS:
            raise ConfigError(
                got=f"codec kind {kind!r}",
                expected=f"one of {', '.join(KINDS)}",
                fix="choose a codec from codec_names()",
            )
        self.kind = kind
        self.size = size
        self._index: Any = None

    @property
    def code_width(self) -> int:
        """Entries per row of codes."""
        return int(self._index.sa_code_size())

    def _fit(self, x: FloatArray) -> None:
        faiss = import_faiss()
        if self.kind in ("pq", "opq") and self.dims % self.size:
            raise InputError(
                got=f"{self.dims} dimensions for codec {self.name}",
                expected=f"a multiple of {self.size}: each code byte covers an equal part",
                fix=f"use {self.kind}{_divisor_below(self.dims, self.size)}",
            )
        if self.kind != "rabitq" and len(x) < 256:
            raise InputError(
                got=f"{len(x)} training vectors for codec {self.name}",
                expected="at least 256, one for each centroid",
                fix="fit on a larger sample, or use an int8 or binary codec",
            )
        if self.kind == "opq" and len(x) < 2 * self.dims:
            # With fewer vectors than dimensions faiss 1.15.1 crashes the process while training.
            raise InputError(
                got=f"{len(x)} training vectors of {self.dims} dimensions for codec {self.name}",
                expected=f"at least {2 * self.dims} to learn a rotation from",
                fix=f"fit on a larger sample, or use pq{self.size}",
            )
        self._index = self._untrained(faiss)
        # 256 centroids gain nothing from more than 64 Ki points.
        self._index.train(training_sample(x, 65_536, self.seed))

    def _untrained(self, faiss: Any) -> Any:
        if self.kind == "rabitq":
            turn = faiss.RandomRotationMatrix(self.dims, self.dims)
            turn.init(self.seed)
            inner = faiss.IndexRaBitQ(self.dims, faiss.METRIC_L2, self.size)
            return faiss.IndexPreTransform(turn, inner)
        if self.kind == "rq":
            index = faiss.IndexResidualQuantizer(self.dims, self.size, 8, faiss.METRIC_L2)
            index.rq.cp.min_points_per_centroid = 1
            return index
        inner = faiss.IndexPQ(self.dims, self.size, 8, faiss.METRIC_L2)
        inner.pq.cp.min_points_per_centroid = 1
        inner.pq.cp.seed = self.seed + 1
        if self.kind == "pq":
            return inner
        turn = faiss.OPQMatrix(self.dims, self.size)
        turn.niter = 10  # 50 by default: five times the time for less than 1 % of the error
        return faiss.IndexPreTransform(turn, inner)

    def _encode(self, x: FloatArray) -> CodeArray:
        codes: CodeArray = self._index.sa_encode(x)
        return codes

    def _decode(self, q: CodeArray) -> FloatArray:
        if self.kind == "rabitq" and self.size > 1:
            raise ConfigError(
                got=f"vectors asked back from {self.name}",
                expected="distances: faiss rebuilds only the sign bit of multi-bit RaBitQ codes",
                fix="call distances(queries, codes), or use lloyd4 or int4 to decode",
            )
        x: FloatArray = self._index.sa_decode(np.ascontiguousarray(q))
        return x

    def index_of(self, q: CodeArray) -> Any:
        """A faiss index that holds these codes, ready to search (exact over the codes)."""
        faiss = import_faiss()
        index = faiss.deserialize_index(faiss.serialize_index(self._index))
        target = faiss.downcast_index(index.index) if hasattr(index, "chain") else index
        target.add_sa_codes(np.ascontiguousarray(q))
        index.ntotal = target.ntotal
        return index

    def distances(self, queries: FloatArray, q: CodeArray) -> FloatArray:
        """Squared Euclidean distances [Q, N] estimated from codes, queries unquantized."""
        q = self.check_codes(q)
        index = self.index_of(q)
        values, rows = index.search(np.ascontiguousarray(queries, np.float32), len(q))
        distance: FloatArray = np.empty_like(values)
        np.put_along_axis(distance, rows, values, axis=1)
        return distance

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The trained faiss index as bytes."""
        if self._index is None:
            return {}
        return {"faiss_index": import_faiss().serialize_index(self._index)}

    def restore(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Take the trained index back."""
        self._index = import_faiss().deserialize_index(arrays["faiss_index"])


def import_faiss() -> Any:
    """Import faiss or say how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            got="a faiss codec or index without the package faiss",
            expected="faiss-cpu",
            fix='pip install "bocage[search]"',
        ) from error
    return faiss


def _divisor_below(dims: int, size: int) -> int:
    return max(d for d in range(1, min(size, dims) + 1) if dims % d == 0)
