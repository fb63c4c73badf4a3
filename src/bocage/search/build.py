"""Building an index: stream a source into Hilbert-ordered shards, in bounded memory.

Two passes. The first encodes each batch and appends its rows to one of at most 64 bucket files, cut
along the Hilbert curve at quantiles of a sample; the second takes one bucket at a time, sorts it
and writes shards. A bucket that came out too large is cut again. Every row ends in exactly one
shard however many inputs cover a place, because shards are numbered once and nothing is named after
a tile.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.atomic import directory_in_place
from bocage.embeddings.codecs import Codec, make_codec, save_codec, signed_power
from bocage.embeddings.codecs.codec import row_blocks, valid_rows
from bocage.embeddings.codecs.floats import fit_gain
from bocage.embeddings.codecs.registry import describe
from bocage.embeddings.codecs.tables import code_column, import_pyarrow
from bocage.errors import ConfigError, InputError
from bocage.progress import Advance, progress
from bocage.search.hilbert import hilbert_key
from bocage.search.layout import (
    CODEC_FOLDER,
    INDEX_FILE,
    MANIFEST_FILE,
    SHARD_FOLDER,
    IndexInfo,
    float32_outward,
)
from bocage.search.shards import shard_schema, write_shard
from bocage.search.sources import Batch, Source, open_source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray, PathLike

_log = logging.getLogger(__name__)

_KEY = "hilbert"
_MAX_BUCKETS = 64
_BUCKET_BYTES = 64 << 20
"""Rows of one bucket in memory; sorting and writing hold about three times as much."""

_SAMPLE_BYTES = 80 << 20
"""Vectors of the sample, 20,000 of 1,024 dimensions; fitting holds four times as much."""


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """How an index is built; the defaults are explained in docs/search-format.md."""

    code: str = "binary_mean"
    """Codec of the first stage: binary*, or rabitq, rabitq2, rabitq4, pq<bytes> (faiss)."""

    rerank_dims: int | None = None
    """Leading dimensions of the int8 vectors; all by default, fewer only for Matryoshka models."""

    rows_per_shard: int = 65_536
    rows_per_group: int = 4096
    """Rows fetched by one range request of the first stage (0.5 MB of 1,024-bit codes)."""

    sample_rows: int = 50_000
    """Rows that codec, gain and cuts are learned from."""

    on_zero: str = "error"
    """What to do with all-zero vectors, which have no direction: "error" or "drop"."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows_per_group < 1 or self.rows_per_shard < self.rows_per_group:
            raise ConfigError(
                got=f"rows_per_shard {self.rows_per_shard}, rows_per_group {self.rows_per_group}",
                expected="rows_per_shard >= rows_per_group >= 1",
                fix="leave both at their defaults",
            )
        if self.rows_per_group > 20_000:
            raise ConfigError(
                got=f"rows_per_group {self.rows_per_group}",
                expected="at most 20,000, so that a column of a group is one page",
                fix="leave rows_per_group at its default",
            )
        if self.on_zero not in ("error", "drop"):
            raise ConfigError(
                got=f"on_zero {self.on_zero!r}",
                expected="error or drop",
                fix="use drop to leave all-zero vectors out",
            )


@dataclass(kw_only=True)
class IndexResult:
    """What was built."""

    path: Path
    n_rows: int = 0
    n_dropped: int = 0
    n_shards: int = 0
    n_groups: int = 0
    n_bytes: int = 0
    info: IndexInfo | None = field(default=None, repr=False)


def index(
    source: PathLike | list[PathLike] | Source,
    out: PathLike,
    *,
    options: IndexOptions | None = None,
    embedding_column: str = "embedding",
    date_column: str | None = None,
    quantization: str | None = None,
    model: str = "",
    show_progress: bool = False,
) -> IndexResult:
    """Turn embeddings into a search index: Hilbert-ordered GeoParquet shards with small codes.

    `source` is a grid (Zarr, COG), GeoParquet files or a folder of them, or a Source. Vectors are
    compared by cosine, so their length is not kept. Rows of NaN are nodata and left out (counted in
    the result); other broken vectors are an InputError. `out` must not exist; it appears whole or
    not at all. Memory stays below 1 GB for any size of source.
    """
    import_pyarrow()
    options = options or IndexOptions()
    if "://" in str(out):
        # A path of it would be a local folder named "s3:".
        raise ConfigError(
            got=f"{out} as the place of a new index",
            expected="a local folder",
            fix="build into a folder and copy it there, index.json last; searches read it in place",
        )
    opened = open_source(
        source,
        embedding_column=embedding_column,
        date_column=date_column,
        quantization=quantization,
    )
    model = model or opened.model
    target = Path(out)
    learned = _learn(opened, options, model)
    with (
        directory_in_place(target) as folder,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        progress("index", 2 * max(opened.n_rows, 1), unit="rows", enabled=show_progress) as advance,
    ):
        build = _Build(folder, Path(scratch), learned, options, advance)
        build.spill(opened)
        return build.write(target)


@dataclass(kw_only=True)
class _Learned:
    """What the sample taught."""

    codec: Codec
    gain: float
    center: FloatArray
    cuts: NDArray[np.uint64]
    model: str
    extra: Any


def _learn(source: Source, options: IndexOptions, model: str) -> _Learned:
    vectors: list[FloatArray] = []
    keys: list[NDArray[np.uint64]] = []
    extra: Any = None
    row_bytes = 0
    n_sampled = 0
    for batch in source.sample(options.sample_rows, options.seed):
        x, _ = _unit_vectors(batch, on_zero=options.on_zero)
        n_sampled += len(x)
        if vectors and n_sampled * x.shape[1] * 4 > _SAMPLE_BYTES:
            break
        if vectors and x.shape[1] != vectors[0].shape[1]:
            raise _mixed(x.shape[1], vectors[0].shape[1], batch.where)
        vectors.append(x)
        keys.append(_keys(batch.bbox))
        extra = batch.columns.schema if batch.columns is not None else None
        other = batch.geometry.nbytes + (batch.columns.nbytes if batch.columns is not None else 0)
        row_bytes = other // max(len(batch.bbox), 1)
    sample = np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)
    if len(sample) == 0:
        raise InputError(
            got="a source without a single valid vector",
            expected="at least one row with data",
            fix="check the source with bocage info; all of it may be nodata",
        )
    codec = make_codec(options.code, seed=options.seed)
    if codec.distance is None:
        raise ConfigError(
            got=f"codec {options.code!r} for the first stage",
            expected="codes with a distance: binary, binary_mean, binary_itq, rabitq, pq64, ...",
            fix="use binary_mean",
        )
    codec.fit(sample, model=model)
    center = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    row_bytes += codec.code_bytes + sample.shape[1] + 32
    n_buckets = int(np.clip(source.n_rows * row_bytes / _BUCKET_BYTES, 1, _MAX_BUCKETS))
    cuts = np.quantile(np.concatenate(keys), np.linspace(0, 1, n_buckets + 1)[1:-1])
    return _Learned(
        codec=codec,
        gain=fit_gain(sample - center),
        center=center,
        cuts=np.unique(cuts.astype(np.uint64)),
        model=model,
        extra=extra,
    )


class _Build:
    """One build: the bucket files, then the shards."""

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        learned: _Learned,
        options: IndexOptions,
        advance: Advance,
    ) -> None:
        self.folder, self.scratch, self.learned = folder, scratch, learned
        self.options, self.advance = options, advance
        self.dims = learned.codec.dims
        self.rerank_dims = min(options.rerank_dims or self.dims, self.dims)
        self.n_rows = self.n_dropped = 0
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self.dates = [np.iinfo(np.int32).max, 0]
        self.extra = learned.extra

    # -- first pass -------------------------------------------------------------------------------

    def spill(self, source: Source) -> None:
        """Encode every row and append it to the bucket of its place."""
        buckets = _Buckets(self.scratch / "0", self.learned.cuts)
        for batch in source.batches():
            table, n_dropped = self._encode(batch)
            self.n_dropped += n_dropped
            self.n_rows += len(table)
            buckets.add(table)
            self.advance(len(batch.bbox))
        self.buckets = buckets.close()
        if self.n_rows == 0:
            raise InputError(
                got="a source without a single valid vector",
                expected="at least one row with data",
                fix="check the source with bocage info; all of it may be nodata",
            )

    def _encode(self, batch: Batch) -> tuple[Any, int]:
        import pyarrow as pa

        x, keep = _unit_vectors(batch, on_zero=self.options.on_zero)
        if x.shape[1] != self.dims:
            raise _mixed(x.shape[1], self.dims, batch.where)
        bbox = batch.bbox[keep]
        if len(bbox):
            self.bounds[:2] = np.minimum(self.bounds[:2], bbox[:, :2].min(axis=0))
            self.bounds[2:] = np.maximum(self.bounds[2:], bbox[:, 2:].max(axis=0))
        date = np.zeros(len(x), np.int32) if batch.date is None else batch.date[keep]
        known = date[date != 0]
        if len(known):
            self.dates = [
                min(self.dates[0], int(known.min())),
                max(self.dates[1], int(known.max())),
            ]
        codes = self.learned.codec.encode(x)
        schema = shard_schema(codes.shape[1], self.rerank_dims, self.extra)
        boxes = float32_outward(bbox)
        box_type = schema.field("bbox").type
        columns = [
            code_column(codes),
            pa.StructArray.from_arrays(
                [pa.array(np.ascontiguousarray(boxes[:, i])) for i in range(4)],
                fields=list(box_type),
            ),
            pa.array(date, pa.int32()).cast(pa.date32()),
            code_column(self._rerank(x)),
            batch.geometry.filter(pa.array(keep)) if not keep.all() else batch.geometry,
        ]
        if batch.columns is not None and self.extra is not None:
            carried = batch.columns.filter(pa.array(keep)) if not keep.all() else batch.columns
            for name in self.extra.names:
                if name not in carried.column_names:
                    raise InputError(
                        got=f"{batch.where} without column {name!r}",
                        expected="the same columns in every file",
                        fix="add the column, or index the files separately",
                    )
                columns.append(carried[name].cast(self.extra.field(name).type))
        table = pa.Table.from_arrays(columns, schema=schema)
        table = table.append_column(_KEY, pa.array(_keys(bbox)))
        return table, int((~keep).sum())

    def _rerank(self, x: FloatArray) -> NDArray[np.int8]:
        q = np.empty((len(x), self.rerank_dims), np.int8)
        center = self.learned.center[: self.rerank_dims]
        for rows in row_blocks(len(x), x.shape[1]):
            rest = x[rows, : self.rerank_dims] - center
            rest *= np.float32(self.learned.gain)
            signed_power.encode(rest, out=q[rows])
        return q

    # -- second pass
    # --------------------------------------------------------------------------------

    def write(self, target: Path) -> IndexResult:
        """Sort bucket by bucket into shards; write manifest, codec and index.json last."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        info = self._info()
        shards = self.folder / SHARD_FOLDER
        shards.mkdir()
        manifest: list[Any] = []  # as tables: a billion rows have 250,000 row groups
        n_shards = 0
        for table in self._shard_tables():
            groups = write_shard(shards / f"{n_shards:05d}.parquet", table, info)
            manifest.append(pa.Table.from_pylist(groups))
            n_shards += 1
            self.advance(len(table))
        table = pa.concat_tables(manifest)
        pq.write_table(table, self.folder / MANIFEST_FILE, compression="zstd")
        save_codec(self.learned.codec, self.folder / CODEC_FOLDER)
        (self.folder / INDEX_FILE).write_text(info.to_json())
        n_bytes = sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
        _log.info("%s: %d rows in %d shards", target, self.n_rows, n_shards)
        return IndexResult(
            path=target,
            n_rows=self.n_rows,
            n_dropped=self.n_dropped,
            n_shards=n_shards,
            n_groups=len(table),
            n_bytes=n_bytes,
            info=info,
        )

    def _shard_tables(self) -> Iterator[Any]:
        """Tables of rows_per_shard rows along the curve, across bucket borders."""
        import pyarrow as pa

        waiting: list[Any] = []
        n_waiting = 0
        for table in _sorted_parts(self.buckets, self.scratch):
            waiting.append(table.drop_columns([_KEY]))
            n_waiting += len(table)
            while n_waiting >= self.options.rows_per_shard:
                joined = pa.concat_tables(waiting)
                yield joined.slice(0, self.options.rows_per_shard).combine_chunks()
                waiting = [joined.slice(self.options.rows_per_shard)]
                n_waiting -= self.options.rows_per_shard
        if n_waiting:
            yield pa.concat_tables(waiting).combine_chunks()

    def _info(self) -> IndexInfo:
        dates = None
        if self.dates[1]:
            first, last = (str(np.datetime64(d, "D")) for d in self.dates)
            dates = (first, last)
        west, south, east, north = (float(v) for v in self.bounds)
        return IndexInfo(
            n_rows=self.n_rows,
            dims=self.dims,
            code=describe(self.learned.codec),
            rerank_dims=self.rerank_dims,
            gain=self.learned.gain,
            center=tuple(float(v) for v in self.learned.center[: self.rerank_dims]),
            bbox_wsen=(west, south, east, north),
            dates=dates,
            model=self.learned.model,
            rows_per_group=self.options.rows_per_group,
            columns=tuple(self.extra.names) if self.extra is not None else (),
            n_dropped=self.n_dropped,
        )


class _Buckets:
    """Files of rows, one per stretch of the Hilbert curve."""

    def __init__(self, folder: Path, cuts: NDArray[np.uint64]) -> None:
        folder.mkdir(parents=True)
        self.folder, self.cuts = folder, cuts
        self.writers: dict[int, Any] = {}

    def add(self, table: Any) -> None:
        import pyarrow as pa

        bucket = np.searchsorted(self.cuts, table[_KEY].to_numpy(), side="right")
        order = np.argsort(bucket, kind="stable")
        starts = np.searchsorted(bucket[order], np.arange(len(self.cuts) + 2))
        for i in np.unique(bucket):
            rows = order[starts[i] : starts[i + 1]]
            part = table if len(rows) == len(table) else table.take(pa.array(rows))
            if i not in self.writers:
                self.writers[i] = pa.ipc.new_file(self.folder / f"{i}.arrow", table.schema)
            self.writers[i].write_table(part)

    def close(self) -> list[Path]:
        for writer in self.writers.values():
            writer.close()
        return [self.folder / f"{i}.arrow" for i in sorted(self.writers)]


def _sorted_parts(paths: list[Path], scratch: Path) -> Iterator[Any]:
    """The rows of bucket files in order of the curve, in tables of bounded size."""
    import pyarrow as pa

    for path in paths:
        n_bytes = path.stat().st_size
        with pa.memory_map(str(path)) as mapped:
            stored = pa.ipc.open_file(mapped)
            batches = (stored.get_batch(i) for i in range(stored.num_record_batches))
            if n_bytes <= 2 * _BUCKET_BYTES:
                table = pa.Table.from_batches(list(batches))
                order = np.argsort(table[_KEY].to_numpy(), kind="stable")
                yield table.take(pa.array(order))
                del table
            else:
                yield from _split(list(batches), n_bytes, scratch)
        path.unlink()


def _split(batches: list[Any], n_bytes: int, scratch: Path) -> Iterator[Any]:
    """Cut a bucket that is too large again, at exact quantiles; one place only needs no sorting."""
    import pyarrow as pa

    keys = np.concatenate([np.asarray(b[_KEY]) for b in batches])
    if keys.min() == keys.max():
        for batch in batches:
            yield pa.Table.from_batches([batch])
        return
    n_parts = int(np.clip(-(-n_bytes // _BUCKET_BYTES), 2, _MAX_BUCKETS))
    cuts = np.unique(np.quantile(keys, np.linspace(0, 1, n_parts + 1)[1:-1]).astype(np.uint64))
    # The middle between the extremes parts at least one row off, whatever the quantiles were.
    cuts = np.unique(np.append(cuts, keys.min() + (keys.max() - keys.min()) // 2 + 1))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        parts = _Buckets(Path(folder) / "parts", cuts)
        for batch in batches:
            parts.add(pa.Table.from_batches([batch]))
        yield from _sorted_parts(parts.close(), Path(folder))


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


def _unit_vectors(batch: Batch, *, on_zero: str) -> tuple[FloatArray, NDArray[np.bool_]]:
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
                fix='set nodata to NaN in the source, or pass on_zero="drop"',
            )
        keep = keep & ~zero
    if not keep.all():
        x, length = x[keep], length[keep]
    unit = np.empty_like(x)
    scale = (1 / length)[:, None].astype(np.float32)
    np.multiply(x, scale, out=unit)
    return unit, keep


def _keys(bbox: NDArray[np.float64]) -> NDArray[np.uint64]:
    return hilbert_key((bbox[:, 0] + bbox[:, 2]) / 2, (bbox[:, 1] + bbox[:, 3]) / 2)


def _mixed(got: int, expected: int, where: str) -> InputError:
    return InputError(
        got=f"vectors of {got} dimensions in {where}",
        expected=f"{expected} dimensions as in the rest of the source",
        fix="index tables of different models separately",
    )
