"""Building an index: stream a source into Hilbert-ordered shards, in bounded memory.

Two passes. The first encodes each batch and appends its rows to bucket files along the curve
(buckets.py); the second takes one bucket at a time, sorts it and writes shards. Every row ends in
exactly one shard however many inputs cover a place, because shards are numbered once and nothing is
named after a tile.
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
from bocage.embeddings.codecs import save_codec
from bocage.embeddings.codecs.registry import describe
from bocage.embeddings.codecs.tables import code_column, import_pyarrow
from bocage.errors import ConfigError, InputError
from bocage.progress import Advance, progress
from bocage.search.buckets import KEY, Buckets, sorted_parts
from bocage.search.layout import (
    CODEC_FOLDER,
    INDEX_FILE,
    MANIFEST_FILE,
    SHARD_FOLDER,
    IndexInfo,
    float32_outward,
)
from bocage.search.learned import Learned, learn, mixed_dimensions, place_keys, unit_vectors
from bocage.search.shards import shard_schema, write_shard
from bocage.search.sources import Batch, Source, open_source

if TYPE_CHECKING:
    from bocage.types import PathLike

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """How an index is built; the defaults are explained in docs/search-format.md."""

    code: str = "auto"
    """Codec of the first stage: auto (product codes of a 32nd of the float32 bytes, 64 at most;
    a bit per dimension below 1,000 rows), balanced_pq<bytes>, binary*, rabitq*, pq<bytes>."""

    rerank_dims: int | None = None
    """Leading dimensions of the int8 vectors; all by default, fewer only for Matryoshka models."""

    rows_per_shard: int = 65_536
    rows_per_group: int = 4096
    """Rows fetched by one range request of the first stage (0.5 MB of 1,024-bit codes)."""

    sample_rows: int = 50_000
    """Rows that codes, ranges and cuts are learned from."""

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

    `source` is one or several grids (Zarr, COG; of one model, in any CRS and of any years),
    GeoParquet files or a folder of them, or a Source. Vectors are compared by cosine, so their
    length is not kept. Rows of NaN are nodata and left out (counted in the result); other broken
    vectors are an InputError. `out` must not exist; it appears whole or not at all. Memory stays
    below 1 GB for any size of source.
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
    with (
        directory_in_place(target) as folder,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        progress("index", 2 * max(opened.n_rows, 1), unit="rows", enabled=show_progress) as advance,
    ):
        learned = learn(opened, options, model)
        build = _Build(folder, Path(scratch), learned, options, advance)
        build.spill(opened)
        return build.write(target)


class _Build:
    """One build: the bucket files, then the shards."""

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        learned: Learned,
        options: IndexOptions,
        advance: Advance,
    ) -> None:
        self.folder, self.scratch, self.learned = folder, scratch, learned
        self.options, self.advance = options, advance
        self.dims = learned.codec.dims
        self.rerank_dims = learned.rerank.dims
        self.n_rows = self.n_dropped = 0
        self.bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self.dates = [np.iinfo(np.int32).max, 0]
        self.extra = learned.extra

    # -- first pass -------------------------------------------------------------------------------

    def spill(self, source: Source) -> None:
        """Encode every row and append it to the bucket of its place."""
        buckets = Buckets(self.scratch / "0", self.learned.cuts)
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

        x, keep = unit_vectors(batch, on_zero=self.options.on_zero)
        if x.shape[1] != self.dims:
            raise mixed_dimensions(x.shape[1], self.dims, batch.where)
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
            code_column(self.learned.rerank.encode(x[:, : self.rerank_dims])),
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
        table = table.append_column(KEY, pa.array(place_keys(bbox)))
        return table, int((~keep).sum())

    # -- second pass ------------------------------------------------------------------------------

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
            groups = write_shard(
                shards / f"{n_shards:05d}.parquet", table, info, self.learned.codec
            )
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
        for table in sorted_parts(self.buckets, self.scratch):
            waiting.append(table.drop_columns([KEY]))
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
        rerank = self.learned.rerank
        return IndexInfo(
            n_rows=self.n_rows,
            dims=self.dims,
            code=describe(self.learned.codec),
            rerank_dims=self.rerank_dims,
            # Codes run from -127, the low end, to 127.
            offset=tuple((rerank.low + 127 * rerank.step).tolist()),
            scale=tuple(rerank.step.tolist()),
            bbox_wsen=(west, south, east, north),
            dates=dates,
            model=self.learned.model,
            rows_per_group=self.options.rows_per_group,
            columns=tuple(self.extra.names) if self.extra is not None else (),
            n_dropped=self.n_dropped,
        )
