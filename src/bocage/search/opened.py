"""An opened index: its manifest in memory, its rows on disk or behind a server."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs.registry import restore_codec
from bocage.embeddings.codecs.tables import import_pyarrow
from bocage.errors import InputError, StoreError
from bocage.search.layout import (
    BBOX_FIELDS,
    CODE,
    CODEC_FOLDER,
    DATE,
    GEOMETRY,
    INDEX_FILE,
    MANIFEST_FILE,
    RERANK,
    UNKNOWN_DATE,
    IndexInfo,
)
from bocage.search.storage import Storage, joined, open_storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.embeddings.codecs import Codec
    from bocage.search.area import Area
    from bocage.types import CodeArray, FloatArray, PathLike, ValidArray

# Rows nearer than this are fetched together: a request costs about as much as 16 kB.
_JOIN_GAP_BYTES = 16 << 10

# Columns of one group follow each other with only a page header between them.
_PAGE_HEADER_BYTES = 1024


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of the index: where they are stored, and their codes."""

    group: NDArray[np.int32]
    """Row group, an index into the manifest."""

    row: NDArray[np.int32]
    """Row inside the group."""

    codes: CodeArray

    def __len__(self) -> int:
        return len(self.row)

    def select(self, which: NDArray[Any]) -> Rows:
        """Some of these rows."""
        return Rows(group=self.group[which], row=self.row[which], codes=self.codes[which])


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where and when the rows of a group are."""

    bbox: FloatArray
    """West, south, east, north in degrees [n, 4]."""

    date: NDArray[np.int32]
    """Days since 1970-01-01; 0 is unknown."""

    @property
    def lonlat(self) -> NDArray[np.float64]:
        """Centers [n, 2]."""
        return centers(self.bbox)


def centers(bbox: FloatArray) -> NDArray[np.float64]:
    """Longitude and latitude [n, 2] of the middle of bounds [n, 4]."""
    return (bbox[:, :2].astype(np.float64) + bbox[:, 2:]) / 2


def concatenate(parts: list[Rows]) -> Rows:
    """Several sets of rows as one."""
    return Rows(
        group=np.concatenate([p.group for p in parts]),
        row=np.concatenate([p.row for p in parts]),
        codes=np.concatenate([p.codes for p in parts]),
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
        self._footers: dict[str, Any] = {}
        self._offset = np.asarray(self.info.offset, np.float32)
        self._scale = np.asarray(self.info.scale, np.float32)
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
    def compares_bits(self) -> bool:
        """True if codes are compared by Hamming distance, False if a vector is, with codes."""
        return str(self.info.code["codec"]).startswith("binary")

    @property
    def n_bits(self) -> int:
        """Bits of one code that carry something."""
        return int(self.info.code["code"]["bits"])

    @property
    def code_bytes(self) -> int:
        """Bytes of one code."""
        return int(self.info.code["code"]["bytes"])

    # -- row groups -------------------------------------------------------------------------------

    def groups_of(self, area: Area, days: tuple[int, int] | None) -> NDArray[np.intp]:
        """Row groups that could hold rows of an area and of a span of days."""
        chosen = area.touches(self.bounds)
        if days is not None:
            chosen &= (self.manifest["date_last"] >= days[0]) & (
                self.manifest["date_first"] <= days[1]
            )
            chosen &= self.manifest["date_last"] != 0
        return np.flatnonzero(chosen)

    def read_inside(self, group: int, area: Area, days: tuple[int, int] | None) -> Rows:
        """Rows of a group that lie in an area and a span of days.

        Codes alone are read where the manifest shows that all rows do; bounds, or dates, only where
        it leaves a doubt.
        """
        m = self.manifest
        one = slice(group, group + 1)
        names = []
        in_doubt = not area.covers(self.bounds[one])[0]
        if in_doubt:
            names += list(BBOX_FIELDS)
        if days is not None and not (
            m["n_undated"][group] == 0
            and days[0] <= m["date_first"][group]
            and m["date_last"][group] <= days[1]
        ):
            names.append(DATE)
        columns = self._columns(group, [CODE, *names])
        n = int(m["n_rows"][group])
        rows = Rows(
            group=np.full(n, group, np.int32),
            row=np.arange(n, dtype=np.int32),
            codes=columns[CODE].reshape(n, self.code_bytes),
        )
        inside: ValidArray = np.ones(n, np.bool_)
        if in_doubt:
            at = centers(np.stack([columns[name] for name in BBOX_FIELDS], axis=1))
            inside &= area.contains(at[:, 0], at[:, 1])
        if days is not None and DATE in names:
            date = columns[DATE]
            inside &= (date >= days[0]) & (date <= days[1]) & (date != UNKNOWN_DATE)
        return rows if inside.all() else rows.select(inside)

    def read_places(self, group: int) -> Places:
        """Bounds and dates of all rows of a group: one range request."""
        columns = self._columns(group, [*BBOX_FIELDS, DATE])
        bbox = np.stack([columns[name] for name in BBOX_FIELDS], axis=1)
        return Places(bbox=bbox, date=columns[DATE])

    def read_codes(self, group: int) -> CodeArray:
        """Codes of all rows of a group [n, bytes]."""
        codes: CodeArray = self._columns(group, [CODE])[CODE].reshape(-1, self.code_bytes)
        return codes

    def _columns(self, group: int, names: list[str]) -> dict[str, Any]:
        """Columns of fixed width of a group, by range; neighbors in the file come together."""
        m = self.manifest
        n = int(m["n_rows"][group])
        widths = {CODE: self.code_bytes, DATE: 4, **dict.fromkeys(BBOX_FIELDS, 4)}
        kinds = {CODE: "u1", DATE: "<i4", **dict.fromkeys(BBOX_FIELDS, "<f4")}
        wanted = [(int(m[f"{name}_offset"][group]), n * widths[name]) for name in names]
        ranges, places = joined(wanted, _PAGE_HEADER_BYTES)
        pieces = self.storage.read_ranges(str(m["file"][group]), ranges)
        return {
            name: np.frombuffer(pieces[piece], np.uint8, n * widths[name], start).view(kinds[name])
            for name, (piece, start) in zip(names, places, strict=True)
        }

    # -- rows -------------------------------------------------------------------------------------

    def read_vectors(self, group: NDArray[Any], row: NDArray[Any]) -> FloatArray:
        """Vectors of some rows [n, rerank_dims], of length one, from their int8 codes."""
        x = self._values(RERANK, group, row, self.info.rerank_dims).view(np.int8).astype(np.float32)
        x *= self._scale
        x += self._offset
        length = np.linalg.norm(x, axis=1, keepdims=True).astype(np.float32)
        x /= np.maximum(length, np.float32(1e-30))
        return x

    def read_row_codes(self, group: NDArray[Any], row: NDArray[Any]) -> CodeArray:
        """Codes of some rows [n, bytes]."""
        return self._values(CODE, group, row, self.code_bytes)

    def read_dates(self, group: NDArray[Any], row: NDArray[Any]) -> NDArray[np.int32]:
        """Days since 1970-01-01 of some rows; nothing is read of groups with a single date."""
        m = self.manifest
        date: NDArray[np.int32] = m["date_first"][group].astype(np.int32)
        several = (m["date_first"] != m["date_last"]) | (m["n_undated"] > 0)
        several &= m["date_last"] != UNKNOWN_DATE
        mine = np.flatnonzero(several[group])
        if len(mine):
            date[mine] = self._values(DATE, group[mine], row[mine], 4).view("<i4")[:, 0]
        return date

    def _values(
        self, column: str, group: NDArray[Any], row: NDArray[Any], width: int
    ) -> NDArray[np.uint8]:
        """Values of a column of fixed width [n, bytes], by range."""
        found = np.empty((len(row), width), np.uint8)
        offsets = self.manifest[f"{column}_offset"][group] + row.astype(np.int64) * width
        files = self.manifest["file"][group]
        for file in np.unique(files):
            mine = np.flatnonzero(files == file)
            mine = mine[np.argsort(offsets[mine], kind="stable")]
            ranges, places = joined([(int(o), width) for o in offsets[mine]], _JOIN_GAP_BYTES)
            pieces = self.storage.read_ranges(str(file), ranges)
            for i, (piece, start) in zip(mine, places, strict=True):
                found[i] = np.frombuffer(pieces[piece], np.uint8, width, start)
        return found

    def read_columns(self, group: int, names: list[str]) -> Any:
        """Compressed columns (geometry, carried columns) of one row group, a pyarrow table."""
        pyarrow = import_pyarrow()
        file = str(self.manifest["file"][group])
        source = _RangeFile(self.storage, file, int(self.manifest["file_bytes"][group]))
        try:
            opened = pyarrow.parquet.ParquetFile(
                pyarrow.PythonFile(source, "r"), metadata=self._footers.get(file)
            )
            self._footers[file] = opened.metadata
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

    # -- names of rows ----------------------------------------------------------------------------

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
