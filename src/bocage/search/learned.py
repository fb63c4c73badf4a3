"""What a build learns from a sample of its source: codes, ranges, and cuts of the Hilbert curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs import Codec, make_codec
from bocage.embeddings.codecs.affine import Affine
from bocage.embeddings.codecs.codec import valid_rows
from bocage.errors import ConfigError, InputError
from bocage.search.buckets import BUCKET_BYTES, MAX_BUCKETS
from bocage.search.hilbert import hilbert_key
from bocage.search.sources import Batch, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.search.build import IndexOptions
    from bocage.types import FloatArray

_SAMPLE_BYTES = 80 << 20
"""Vectors of the sample, 20,000 of 1,024 dimensions; fitting holds four times as much."""

_FEW_ROWS = 1000

_LOOK_AT = 8
"""Rows looked at for each row of the sample."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What the sample taught."""

    codec: Codec
    """Of the first stage."""

    rerank: Affine
    """Of the second stage: int8 between the least and largest value of each dimension."""

    cuts: NDArray[np.uint64]
    """Where the Hilbert curve is cut into buckets."""
    model: str
    extra: Any


def learn(source: Source, options: IndexOptions, model: str) -> Learned:
    """Fit the codes of both stages and the cuts of the curve on a sample of the source."""
    sample = _Sample(options)
    row_bytes, extra = 0, None
    # Many more rows are looked at than kept: a few blocks of a source are a few landscapes, and
    # what lies beyond the least and largest value is clipped.
    for batch in source.sample(_LOOK_AT * options.sample_rows, options.seed):
        x, keep = unit_vectors(batch, on_zero=options.on_zero)
        sample.add(x, place_keys(batch.bbox[keep]), batch.where)
        other = batch.geometry.nbytes + (batch.columns.nbytes if batch.columns is not None else 0)
        row_bytes = other // max(len(batch.bbox), 1)
        extra = batch.columns.schema if batch.columns is not None else None
        if sample.is_enough:
            break
    vectors, keys = sample.take()
    if len(vectors) == 0:
        raise InputError(
            got="a source without a single valid vector",
            expected="at least one row with data",
            fix="check the source with bocage info; all of it may be nodata",
        )
    code = options.code
    if code == "auto":
        code = default_code(len(vectors), vectors.shape[1])
    codec = make_codec(code, seed=options.seed)
    if codec.distance is None:
        raise ConfigError(
            got=f"codec {options.code!r} for the first stage",
            expected="codes with a distance: balanced_pq16, binary_mean, rabitq, pq64, ...",
            fix="use auto",
        )
    codec.fit(vectors, model=model)
    rerank = Affine("int8", bits=8).fit(sample.least_and_largest[:, : options.rerank_dims])
    row_bytes += codec.code_bytes + vectors.shape[1] + 32
    n_buckets = int(np.clip(source.n_rows * row_bytes / BUCKET_BYTES, 1, MAX_BUCKETS))
    cuts = np.quantile(keys, np.linspace(0, 1, n_buckets + 1)[1:-1])
    return Learned(
        codec=codec,
        rerank=rerank,
        cuts=np.unique(cuts.astype(np.uint64)),
        model=model,
        extra=extra,
    )


class _Sample:
    """Rows drawn evenly from all that were looked at, in bounded memory."""

    def __init__(self, options: IndexOptions) -> None:
        self.options = options
        self.rng = np.random.default_rng(options.seed)
        self.share = 1.0
        self.n_seen = 0
        self.vectors: list[FloatArray] = []
        self.keys: list[NDArray[np.uint64]] = []
        self.least_and_largest: FloatArray = np.zeros((0, 0), np.float32)
        """[2, D], over all rows that were looked at."""

    @property
    def n_rows(self) -> int:
        """Most rows kept."""
        row_bytes = 4 * max(self.least_and_largest.shape[1], 1)
        return min(self.options.sample_rows, int(_SAMPLE_BYTES // row_bytes))

    @property
    def is_enough(self) -> bool:
        """True once enough rows were looked at."""
        return self.n_seen >= _LOOK_AT * self.n_rows

    def add(self, x: FloatArray, keys: NDArray[np.uint64], where: str) -> None:
        """Look at the rows of a batch and keep a share of them."""
        if len(x) == 0:
            return
        ends = np.stack([x.min(axis=0), x.max(axis=0)])
        if self.n_seen:
            known = self.least_and_largest
            if known.shape != ends.shape:
                raise mixed_dimensions(x.shape[1], known.shape[1], where)
            ends = np.stack([np.minimum(known[0], ends[0]), np.maximum(known[1], ends[1])])
        self.least_and_largest = ends
        self.n_seen += len(x)
        chosen = self._draw(len(x), self.share)
        self.vectors.append(x[chosen])
        self.keys.append(keys[chosen])
        while sum(map(len, self.keys)) > self.n_rows:
            self.share /= 2
            for i, kept in enumerate(self.keys):
                half = self._draw(len(kept), 0.5)
                self.keys[i], self.vectors[i] = kept[half], self.vectors[i][half]

    def take(self) -> tuple[FloatArray, NDArray[np.uint64]]:
        """Vectors [n, D] and their places on the curve; the sample is empty afterwards."""
        if not self.n_seen:
            return np.zeros((0, 1), np.float32), np.zeros(0, np.uint64)
        vectors, keys = np.concatenate(self.vectors), np.concatenate(self.keys)
        self.vectors.clear()
        return vectors, keys

    def _draw(self, n: int, share: float) -> NDArray[np.intp]:
        if share == 1:
            return np.arange(n)
        return np.sort(self.rng.choice(n, int(np.ceil(n * share)), replace=False))


def default_code(n_rows: int, dims: int) -> str:
    """Codec of the first stage for a sample of `n_rows` vectors.

    Product codes of a 32nd of the float32 bytes, 64 at most: of equally long codes they lose the
    fewest neighbors. Of a small corpus the second stage sees most rows anyway, and 256 centers
    could not be learned: a bit per dimension.
    """
    if n_rows < _FEW_ROWS or dims < 8:
        return "binary_mean"
    return f"balanced_pq{min(dims // 8, 64)}"


def _check_places(batch: Batch) -> None:
    limit = np.array([180.0, 90.0, 180.0, 90.0]) + 1e-6
    wrong = ~(np.abs(batch.bbox) <= limit).all(axis=1)  # NaN is wrong too
    if wrong.any():
        first = batch.bbox[wrong][0].tolist()
        raise InputError(
            got=f"{int(wrong.sum())} rows of {batch.where} outside the world, such as {first}",
            expected="west, south, east, north in degrees within 180 and 90",
            fix="say the CRS in the table's footer, or convert to EPSG:4326",
        )


def unit_vectors(batch: Batch, *, on_zero: str) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Vectors of length one, and which rows they are; nodata rows are left out."""
    _check_places(batch)
    try:
        x = np.ascontiguousarray(batch.x, np.float32)
        keep = valid_rows(x)
    except InputError as error:
        raise InputError(
            got=f"{error.got} in {batch.where}", expected=error.expected, fix=error.fix
        ) from error
    length = np.sqrt(np.einsum("nd,nd->n", x, x))
    zero = keep & ~(length > 0)
    if zero.any():
        if on_zero == "error":
            raise InputError(
                got=f"{int(zero.sum())} all-zero vectors in {batch.where}",
                expected="vectors with a direction",
                fix="set nodata to NaN in the source, or leave them out with --on-zero drop",
            )
        keep = keep & ~zero
    if not keep.all():
        x, length = x[keep], length[keep]
    unit = np.empty_like(x)
    scale = (1 / length)[:, None].astype(np.float32)
    np.multiply(x, scale, out=unit)
    return unit, keep


def place_keys(bbox: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Positions of the centers of bounds [N, 4] on the Hilbert curve."""
    return hilbert_key((bbox[:, 0] + bbox[:, 2]) / 2, (bbox[:, 1] + bbox[:, 3]) / 2)


def mixed_dimensions(got: int, expected: int, where: str) -> InputError:
    """The refusal of vectors that are longer or shorter than those before."""
    return InputError(
        got=f"vectors of {got} dimensions in {where}",
        expected=f"{expected} dimensions as in the rest of the source",
        fix="index tables of different models separately",
    )
