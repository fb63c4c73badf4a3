"""An opened index: its manifest in memory, its rows on disk or behind a server."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs import signed_power
from bocage.embeddings.codecs.registry import restore_codec
from bocage.embeddings.codecs.tables import import_pyarrow
from bocage.errors import InputError, StoreError
from bocage.search.layout import (
    BBOX_FIELDS,
    CODEC_FOLDER,
    GEOMETRY,
    INDEX_FILE,
    MANIFEST_FILE,
    RERANK,
    IndexInfo,
)
from bocage.search.storage import Storage, joined, open_storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.embeddings.codecs import Codec
    from bocage.search.area import Area
    from bocage.types import CodeArray, FloatArray, PathLike

# Rows nearer than this are fetched together: a request costs about as much as 16 kB.
_JOIN_GAP_BYTES = 16 << 10


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of the index: where they are, and what the first stage needs of them."""

    group: NDArray[np.int32]
    """Row group, an index into the manifest."""

    row: NDArray[np.int32]
    """Row inside the group."""

    codes: CodeArray
    bbox: FloatArray
    """West, south, east, north in degrees [n, 4]."""

    date: NDArray[np.int32]
    """Days since 1970-01-01; 0 is unknown."""

    @property
    def lon(self) -> NDArray[np.float64]:
        """Longitude of the centers."""
        return (self.bbox[:, 0].astype(np.float64) + self.bbox[:, 2]) / 2

    @property
    def lat(self) -> NDArray[np.float64]:
        """Latitude of the centers."""
        return (self.bbox[:, 1].astype(np.float64) + self.bbox[:, 3]) / 2

    def __len__(self) -> int:
        return len(self.row)

    def select(self, which: NDArray[Any]) -> Rows:
        """Some of these rows."""
        return Rows(
            group=self.group[which],
            row=self.row[which],
            codes=self.codes[which],
            bbox=self.bbox[which],
            date=self.date[which],
        )


def concatenate(parts: list[Rows]) -> Rows:
    """Several sets of rows as one."""
    return Rows(
        group=np.concatenate([p.group for p in parts]),
        row=np.concatenate([p.row for p in parts]),
        codes=np.concatenate([p.codes for p in parts]),
        bbox=np.concatenate([p.bbox for p in parts]),
        date=np.concatenate([p.date for p in parts]),
    )


class OpenedIndex:
    """A search index ready for queries; opening reads index.json and the manifest, nothing else."""

    def __init__(self, uri: PathLike) -> None:
        self.storage: Storage = open_storage(uri)
        where = f"{INDEX_FILE} of {self.storage.uri}"
        self.info = IndexInfo.from_json(self.storage.read(INDEX_FILE).decode(), where=where)
        pyarrow = import_pyarrow()
        try:
            stored = pyarrow.parquet.read_table(
                pyarrow.BufferReader(self.storage.read(MANIFEST_FILE))
            )
        except pyarrow.ArrowInvalid as error:
            raise StoreError(
                got=f"an unreadable {MANIFEST_FILE} in {self.storage.uri} ({error})",
                expected="the manifest that bocage index writes",
                fix="copy the index again, or build it again",
            ) from error
        self.manifest: dict[str, Any] = {
            name: stored[name].to_numpy(zero_copy_only=False) for name in stored.column_names
        }
        self.n_groups = len(stored)
        if int(self.manifest["n_rows"].sum()) != self.info.n_rows:
            raise StoreError(
                got=f"a manifest of {int(self.manifest['n_rows'].sum())} rows",
                expected=f"{self.info.n_rows} rows, as {INDEX_FILE} says",
                fix="copy the index again: its files come from two builds",
            )

    @cached_property
    def bounds(self) -> NDArray[np.float64]:
        """Bounds of the row groups [G, 4], w s e n in degrees."""
        names = ("xmin", "ymin", "xmax", "ymax")
        return np.stack([self.manifest[name].astype(np.float64) for name in names], axis=1)

    @cached_property
    def codec(self) -> Codec:
        """Codec of the first stage."""
        described = json.loads(self.storage.read(f"{CODEC_FOLDER}/codec.json"))
        with np.load(io.BytesIO(self.storage.read(f"{CODEC_FOLDER}/codec.npz"))) as stored:
            arrays = {name: stored[name] for name in stored.files}
        return restore_codec(described, arrays, where=self.storage.uri)

    @property
    def n_bits(self) -> int:
        """Bits of one code that carry something."""
        return int(self.info.code["code"]["bits"])

    @property
    def code_bytes(self) -> int:
        """Bytes of one code."""
        return int(self.info.code["code"]["bytes"])

    # -- row groups
    # ---------------------------------------------------------------------------------

    def groups_of(self, area: Area, days: tuple[int, int] | None) -> NDArray[np.intp]:
        """Row groups that could hold rows of an area and of a span of days."""
        chosen = area.touches(self.bounds)
        if days is not None:
            chosen &= (self.manifest["date_last"] >= days[0]) & (
                self.manifest["date_first"] <= days[1]
            )
            chosen &= self.manifest["date_last"] != 0
        return np.flatnonzero(chosen)

    def read_heads(self, group: int) -> Rows:
        """Codes, bounds and dates of a row group: one range request."""
        m = self.manifest
        n = int(m["n_rows"][group])
        first = int(m["code_offset"][group])
        last = int(m["date_offset"][group]) + 4 * n
        (data,) = self.storage.read_ranges(m["file"][group], [(first, last - first)])
        bytes_ = np.frombuffer(data, np.uint8)

        def column(name: str, width: int, dtype: str) -> Any:
            start = int(m[f"{name}_offset"][group]) - first
            return bytes_[start : start + n * width].view(dtype)

        return Rows(
            group=np.full(n, group, np.int32),
            row=np.arange(n, dtype=np.int32),
            codes=bytes_[: n * self.code_bytes].reshape(n, self.code_bytes),
            bbox=np.stack([column(name, 4, "<f4") for name in BBOX_FIELDS], axis=1),
            date=column("date", 4, "<i4"),
        )

    # -- rows
    # -----------------------------------------------------------------------------------------

    def read_vectors(self, group: NDArray[Any], row: NDArray[Any]) -> FloatArray:
        """Vectors of some rows [n, rerank_dims], of length one, from their int8 codes."""
        width = self.info.rerank_dims
        q = np.empty((len(row), width), np.int8)
        offsets = self.manifest[f"{RERANK}_offset"][group] + row.astype(np.int64) * width
        files = self.manifest["file"][group]
        for file in np.unique(files):
            mine = np.flatnonzero(files == file)
            mine = mine[np.argsort(offsets[mine], kind="stable")]
            ranges, places = joined([(int(o), width) for o in offsets[mine]], _JOIN_GAP_BYTES)
            pieces = self.storage.read_ranges(str(file), ranges)
            for i, (piece, start) in zip(mine, places, strict=True):
                q[i] = np.frombuffer(pieces[piece], np.int8, width, start)
        x = signed_power.decode(q)
        x /= np.float32(self.info.gain)
        x += np.asarray(self.info.center, np.float32)
        length = np.linalg.norm(x, axis=1, keepdims=True).astype(np.float32)
        x /= np.maximum(length, np.float32(1e-30))
        return x

    def read_columns(self, group: int, names: list[str]) -> Any:
        """Compressed columns (geometry, carried columns) of one row group, a pyarrow table."""
        pyarrow = import_pyarrow()
        file = str(self.manifest["file"][group])
        source = _RangeFile(self.storage, file, int(self.manifest["file_bytes"][group]))
        try:
            opened = pyarrow.parquet.ParquetFile(pyarrow.PythonFile(source, "r"))
            return opened.read_row_group(int(self.manifest["group"][group]), columns=names)
        except pyarrow.ArrowInvalid as error:
            raise StoreError(
                got=f"an unreadable {file} in {self.storage.uri} ({error})",
                expected="a whole shard",
                fix="copy the index again, or build it again",
            ) from error

    def read_attributes(self, group: NDArray[Any], row: NDArray[Any]) -> Any:
        """Geometry and carried columns of some rows, in their order."""
        import pyarrow as pa

        names = [GEOMETRY, *self.info.columns]
        parts, order = [], []
        for g in np.unique(group):
            mine = np.flatnonzero(group == g)
            parts.append(self.read_columns(int(g), names).take(pa.array(row[mine])))
            order.append(mine)
        table = pa.concat_tables(parts)
        return table.take(pa.array(np.argsort(np.concatenate(order), kind="stable")))

    # -- names of rows
    # --------------------------------------------------------------------------------

    def row_ids(self, group: NDArray[Any], row: NDArray[Any]) -> list[str]:
        """Names of rows, "shard/row": where a row is, so that it is found without an index."""
        files = self.manifest["file"][group]
        rows = self.manifest["first_row"][group] + row
        return [f"{_shard_number(f)}/{int(r)}" for f, r in zip(files, rows, strict=True)]

    def find_row(self, row_id: str) -> tuple[int, int]:
        """Row group and row of a name; InputError if there is no such row."""
        try:
            shard, row = (int(part) for part in row_id.split("/"))
        except ValueError as error:
            raise InputError(
                got=f"row {row_id!r}",
                expected='"shard/row", for example "3/1024", as results carry it',
                fix="copy it from a result, or pass lon, lat or a vector",
            ) from error
        numbers = np.array([_shard_number(f) for f in self.manifest["file"]])
        first, n = self.manifest["first_row"], self.manifest["n_rows"]
        found = np.flatnonzero((numbers == shard) & (first <= row) & (row < first + n))
        if len(found) == 0:
            raise InputError(
                got=f"row {row_id!r}",
                expected=f"one of {self.info.n_rows} rows in {numbers.max() + 1} shards",
                fix="copy it from a result of this index",
            )
        return int(found[0]), int(row - first[found[0]])


class _RangeFile(io.RawIOBase):
    """A file of the storage as Parquet readers want it."""

    def __init__(self, storage: Storage, path: str, size: int) -> None:
        super().__init__()
        self._storage, self._path, self._size, self._at = storage, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, n: int = -1) -> bytes:
        length = self._size - self._at if n is None or n < 0 else min(n, self._size - self._at)
        if length <= 0:
            return b""
        (data,) = self._storage.read_ranges(self._path, [(self._at, length)])
        self._at += length
        return data


def open_index(uri: PathLike) -> OpenedIndex:
    """Open an index made by `index`, in a folder, behind http(s), or in an object store."""
    return OpenedIndex(uri)


def _shard_number(file: str) -> int:
    return int(file.rsplit("/", 1)[-1].removesuffix(".parquet"))
