"""What can be indexed: tables of chips in GeoParquet, grids of embeddings, or arrays in memory.

A source tells its size, gives a sample to fit codecs on, and streams batches; nothing here holds
more than a batch. Batches carry longitude and latitude whatever the source's CRS was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bocage.embeddings.codecs.tables import (
    code_column,
    embedding_column_of,
    import_pyarrow,
    vectors_of,
)
from bocage.errors import InputError, SourceError
from bocage.search.layout import RESERVED, cell_polygons

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray, PathLike

BATCH_ROWS = 16_384

_TABLES = (".parquet", ".geoparquet", ".gpq")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some rows of a source."""

    x: FloatArray
    """Embeddings [n, D]; rows of NaN have no data."""

    bbox: NDArray[np.float64]
    """West, south, east, north in degrees [n, 4]."""

    geometry: Any
    """WKB of each row in lon/lat, a pyarrow binary array."""

    date: NDArray[np.int32] | None = None
    """Days since 1970-01-01, 0 for unknown; None if the source has no dates."""

    columns: Any = None
    """Further columns, a pyarrow table with n rows, or None."""

    where: str = ""
    """File or part of the source, for messages."""


class Source(Protocol):
    """A stream of batches that can be read again."""

    n_rows: int
    model: str

    def batches(self) -> Iterator[Batch]:
        """Every row once, in the source's order."""

    def sample(self, n_rows: int, seed: int) -> Iterator[Batch]:
        """Batches spread over the source that hold about `n_rows` rows."""


def open_source(
    source: PathLike | list[PathLike] | Source,
    *,
    embedding_column: str = "embedding",
    date_column: str | None = None,
    quantization: str | None = None,
) -> Source:
    """Open GeoParquet files, a folder of them, or grids of embeddings (Zarr, COG) for indexing."""
    if not isinstance(source, str | Path | list):
        return source
    for item in source if isinstance(source, list) else [source]:
        if "://" in str(item) and str(item).endswith(_TABLES):
            raise InputError(
                got=f"the remote table {item}",
                expected="local GeoParquet files",
                fix="download it first; a table is read twice from end to end",
            )
    paths = _parquet_files(source)
    if paths:
        return TableSource(
            paths,
            embedding_column=embedding_column,
            date_column=date_column,
            quantization=quantization,
        )
    grids = source if isinstance(source, list) else [source]
    tables = [str(grid) for grid in grids if Path(grid).suffix in _TABLES]
    if tables:
        raise InputError(
            got=f"the table {tables[0]} among grids",
            expected="tables alone, or grids of embeddings alone",
            fix="index them apart",
        )
    if not grids:
        raise InputError(got="no source", expected="embeddings", fix="name at least one")
    from bocage.search.grids import GridSource

    return GridSource(grids)


class TableSource:
    """GeoParquet files with one embedding and one geometry per row."""

    def __init__(
        self,
        paths: list[Path],
        *,
        embedding_column: str = "embedding",
        date_column: str | None = None,
        quantization: str | None = None,
    ) -> None:
        self._files = [_open_parquet(path) for path in paths]
        self._paths = paths
        self._date_column = date_column
        self._quantization = quantization
        names = self._files[0].schema_arrow.names
        self._embedding_column = embedding_column_of(names, embedding_column)
        self.n_rows = sum(f.metadata.num_rows for f in self._files)
        self.model = ""
        for path, file in zip(paths, self._files, strict=True):
            self._check_columns(path, file.schema_arrow.names)
        self._dims = 0

    def batches(self) -> Iterator[Batch]:
        """Every row once, in order."""
        for path, file in zip(self._paths, self._files, strict=True):
            for i, rows in enumerate(file.iter_batches(batch_size=BATCH_ROWS)):
                yield self._batch(path, file, rows, i * BATCH_ROWS)

    def sample(self, n_rows: int, seed: int) -> Iterator[Batch]:
        """Row groups drawn at random."""
        groups = [(f, g) for f in range(len(self._files)) for g in range(self._groups(f))]
        order = np.random.default_rng(seed).permutation(len(groups))
        found = 0
        for i in order:
            file, group = groups[i]
            rows = self._files[file].read_row_group(group).to_batches(max_chunksize=BATCH_ROWS)
            for batch in rows[: max(1, len(rows))]:
                yield self._batch(self._paths[file], self._files[file], batch, 0)
                found += batch.num_rows
            if found >= n_rows:
                return

    def _groups(self, file: int) -> int:
        return int(self._files[file].metadata.num_row_groups)

    def _check_columns(self, path: Path, names: list[str]) -> None:
        wanted = [self._embedding_column, *([self._date_column] if self._date_column else [])]
        missing = [name for name in wanted if name not in names]
        if missing:
            raise InputError(
                got=f"{path} with columns {', '.join(names)}",
                expected=f"column {missing[0]!r}",
                fix="name the column with embedding_column= or date_column=",
            )

    def _batch(self, path: Path, file: Any, rows: Any, first: int) -> Batch:
        import pyarrow as pa

        table = pa.Table.from_batches([rows])
        x = vectors_of(
            table[self._embedding_column], where=str(path), quantization=self._quantization
        )
        if self._dims and x.shape[1] != self._dims:
            raise InputError(
                got=f"vectors of {x.shape[1]} dimensions in {path}",
                expected=f"{self._dims} dimensions as in the files before it",
                fix="index tables of different models separately",
            )
        self._dims = x.shape[1]
        geometry_column, crs = _primary_geometry(path, file)
        geometry, bbox = _geometries(path, table[geometry_column], crs)
        date = None
        if self._date_column:
            date = _days(path, table[self._date_column])
        dropped = {self._embedding_column, geometry_column, *RESERVED}
        kept = [name for name in table.column_names if name not in dropped]
        return Batch(
            x=x,
            bbox=bbox,
            geometry=geometry,
            date=date,
            columns=table.select(kept),
            where=f"{path} from row {first}",
        )


class ArraySource:
    """Arrays in memory: vectors [N, D] at lon/lat [N, 2], each a small square around its point."""

    def __init__(
        self,
        x: FloatArray,
        lonlat: NDArray[np.float64],
        *,
        date: NDArray[np.int32] | None = None,
        columns: Any = None,
        size_deg: float = 1e-4,
        model: str = "",
    ) -> None:
        if len(x) != len(lonlat):
            raise InputError(
                got=f"{len(x)} vectors and {len(lonlat)} places",
                expected="one place for each vector",
                fix="pass lon, lat as an array [N, 2]",
            )
        if not np.isfinite(lonlat).all():
            raise InputError(
                got="places that hold NaN or infinity",
                expected="longitude and latitude of every vector",
                fix="drop the rows without a place",
            )
        self._x, self._lonlat, self._date, self._columns = x, lonlat, date, columns
        self._half = size_deg / 2
        self.n_rows = len(x)
        self.model = model

    def batches(self) -> Iterator[Batch]:
        """Every row once, in order."""
        for start in range(0, self.n_rows, BATCH_ROWS):
            yield self._rows(slice(start, min(start + BATCH_ROWS, self.n_rows)))

    def sample(self, n_rows: int, seed: int) -> Iterator[Batch]:
        """Blocks of rows drawn at random."""
        starts = np.arange(0, self.n_rows, BATCH_ROWS)
        chosen = np.random.default_rng(seed).permutation(starts)[: -(-n_rows // BATCH_ROWS)]
        for start in chosen:
            yield self._rows(slice(int(start), min(int(start) + BATCH_ROWS, self.n_rows)))

    def _rows(self, rows: slice) -> Batch:
        import pyarrow as pa

        at, h = self._lonlat[rows], self._half
        corners = at[:, None, :] + h * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        return Batch(
            x=self._x[rows],
            bbox=np.concatenate([at - h, at + h], axis=1),
            geometry=code_column(cell_polygons(corners)).cast(pa.binary()),
            date=None if self._date is None else self._date[rows],
            columns=None if self._columns is None else self._columns.slice(rows.start, len(at)),
            where=f"rows {rows.start} to {rows.stop}",
        )


def _parquet_files(source: PathLike | list[PathLike]) -> list[Path]:
    if isinstance(source, list):
        paths = [Path(p) for p in source]
        return paths if paths and all(p.suffix in _TABLES for p in paths) else []
    path = Path(source)
    if path.suffix in _TABLES and path.is_file():
        return [path]
    if path.is_dir() and not (path / "zarr.json").exists():
        return sorted(p for p in path.rglob("*") if p.suffix in _TABLES and p.is_file())
    return []


def _open_parquet(path: Path) -> Any:
    pyarrow = import_pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise SourceError(
            got=f"{path}, which is not a readable Parquet file ({error})",
            expected="GeoParquet",
            fix="check the path, or download the file again",
        ) from error


def _primary_geometry(path: Path, file: Any) -> tuple[str, Any]:
    import json

    stored = (file.schema_arrow.metadata or {}).get(b"geo")
    if stored is None:
        raise InputError(
            got=f"{path} without the footer key geo",
            expected="GeoParquet, which says where each row lies",
            fix="write it with geopandas' to_parquet, or index arrays with ArraySource",
        )
    geo = json.loads(stored)
    name = geo["primary_column"]
    column = geo["columns"][name]
    if column.get("encoding") != "WKB":
        raise InputError(
            got=f"geometry encoding {column.get('encoding')} in {path}",
            expected="WKB",
            fix="write it with geopandas' to_parquet",
        )
    return name, column.get("crs", "OGC:CRS84")


def _geometries(path: Path, column: Any, crs: Any) -> tuple[Any, NDArray[np.float64]]:
    import json

    import pyarrow as pa
    import shapely

    shapes = shapely.from_wkb(column.to_numpy())
    if crs is not None and not _is_lonlat(crs):
        from pyproj import CRS, Transformer

        source = CRS.from_user_input(json.dumps(crs) if isinstance(crs, dict) else crs)
        to_lonlat = Transformer.from_crs(source, "OGC:CRS84", always_xy=True)
        shapes = shapely.transform(
            shapes, lambda xy: np.stack(to_lonlat.transform(xy[:, 0], xy[:, 1]), axis=1)
        )
        wkb = pa.array(shapely.to_wkb(shapes), pa.binary())
    else:
        wkb = column.combine_chunks().cast(pa.binary())
        if isinstance(wkb, pa.ChunkedArray):
            wkb = pa.concat_arrays(wkb.chunks)
    bbox = shapely.bounds(shapes)
    if not np.isfinite(bbox).all():
        raise InputError(
            got=f"{int((~np.isfinite(bbox).all(axis=1)).sum())} rows without a geometry in {path}",
            expected="a place for every row",
            fix="drop those rows",
        )
    return wkb, bbox


def _is_lonlat(crs: Any) -> bool:
    if isinstance(crs, dict):
        return crs.get("id", {}).get("code") in ("CRS84", 4326)
    return crs in ("OGC:CRS84", "EPSG:4326")


def _days(path: Path, column: Any) -> NDArray[np.int32]:
    import pyarrow as pa

    try:
        days = column.cast(pa.date32()) if not pa.types.is_integer(column.type) else None
    except pa.ArrowInvalid as error:
        raise InputError(
            got=f"dates of type {column.type} in {path}",
            expected="dates, timestamps, ISO text, or years as integers",
            fix="convert the column with pandas.to_datetime",
        ) from error
    if days is None:
        years = column.fill_null(0).to_numpy()
        return np.array([year_days(int(y)) if y else 0 for y in years], np.int32)
    values: NDArray[np.int32] = days.cast(pa.int32()).fill_null(0).to_numpy().astype(np.int32)
    return values


def year_days(year: int) -> int:
    """The first of January of a year, in days since 1970-01-01."""
    return int(np.datetime64(f"{year:04d}-01-01", "D").astype(np.int64))
