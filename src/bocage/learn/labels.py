"""Labels: what people know about places, as points, lines and polygons in a file.

GeoParquet, GeoJSON, GeoPackage, or whatever else GDAL reads. Raster masks stand in `mask.py`. A
file that leaves a question open (no CRS, empty shapes, missing values, names that differ) is
refused with the count: a probe fitted on half-understood labels looks like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.learn.classes import LabelClass, check_classes, make_classes, read_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import PathLike

Task = Literal["classification", "multilabel", "regression"]
TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression")

MAX_GUESSED_CLASSES = 64
"""More distinct numbers than this are not taken for classes without being told."""

_DATE_COLUMNS = ("year", "date")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Shapes with a value each."""

    geometry: NDArray[Any]
    """Shapely geometries [n] in `crs`."""

    crs: str
    """EPSG code or WKT."""

    task: Task

    value: NDArray[Any]
    """Index into `classes` int64 [n]; 0/1 bool [n, C] for multilabel; float32 [n] numbers."""

    classes: tuple[LabelClass, ...] = ()
    """Empty for numbers."""

    year: NDArray[np.int32]
    """Calendar year [n]; 0 where it is not known."""

    target: str
    """Column, or columns, that the values come from."""

    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.geometry)

    def describe(self) -> str:
        """What was read, in a few lines: shapes, values with counts, years."""
        import shapely

        kinds = _count(np.array([g.geom_type for g in self.geometry]))
        lines = [f"labels   {len(self)} from {', '.join(self.sources) or 'memory'} ({kinds})"]
        lines.append(f"{self.target:<8} {self.values_text()}")
        if self.year.any():
            lines.append(f"years    {_count(self.year)}")
        west, south, east, north = shapely.total_bounds(self.geometry)
        lines.append(f"place    {west:.6g}, {south:.6g} to {east:.6g}, {north:.6g} in {self.crs}")
        return "\n".join(lines)

    def values_text(self) -> str:
        """Classes with their counts, or the range of the numbers."""
        if self.task == "regression":
            v = self.value
            return f"{v.min():.6g} to {v.max():.6g}, mean {v.mean():.6g}"
        if self.task == "multilabel":
            counts = self.value.sum(axis=0)
        else:
            counts = np.bincount(self.value, minlength=len(self.classes))
        pairs = zip(self.classes, counts, strict=True)
        return ", ".join(f"{c.name} {n}" for c, n in pairs)


def read_labels(
    source: PathLike | Sequence[PathLike],
    *,
    column: str | Sequence[str] | None = None,
    date_column: str | None = None,
    layer: str | None = None,
    task: Task | None = None,
    classes: PathLike | Sequence[LabelClass] | Sequence[str] | None = None,
) -> Labels:
    """Read labelled shapes from one file, or from several that agree.

    Args:
        source: GeoParquet, GeoJSON, GeoPackage, Shapefile, or several of them.
        column: Column of the class or number; several columns of 0/1 for labels that can hold
            together. May be left out when the file has one column that is not a date.
        date_column: Column of a year or a date; by default "year" or "date" if there is one.
        layer: Layer of a file that has several.
        task: "classification", "multilabel" or "regression"; by default text, true/false and whole
            numbers are classes, other numbers are numbers.
        classes: The classes to expect, as names or as a class table (`read_classes`). Needed when
            files hold different ones on purpose.

    Raises:
        SourceError: A file cannot be read.
        InputError: No CRS, empty shapes, missing values, one class only, class names that differ
            between the files.
    """
    paths = [source] if isinstance(source, str | Path) else list(source)
    if not paths:
        raise InputError(got="no label file", expected="at least one", fix="name a file of labels")
    table = _table(classes)
    parts = [_read(Path(p), column, date_column, layer, task) for p in paths]
    return _merge(parts, table)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One file: raw values before they become indices of classes."""

    path: Path
    geometry: NDArray[Any]
    crs: Any
    task: Task
    raw: NDArray[Any]
    names: tuple[str, ...]
    year: NDArray[np.int32]
    target: str


def _read(
    path: Path,
    column: str | Sequence[str] | None,
    date_column: str | None,
    layer: str | None,
    task: Task | None,
) -> _Part:
    frame = _open(path, layer)
    if not len(frame):
        raise InputError(
            got=f"{path.name} without a single shape",
            expected="labelled points, lines or polygons",
            fix="check the layer and any filter",
        )
    if frame.crs is None:
        raise InputError(
            got=f"{path.name} without a CRS",
            expected="a file that says which coordinates it uses",
            fix=f"state it, for example: ogr2ogr -a_srs EPSG:4326 fixed.gpkg {path.name}",
        )
    geometry = _shapes(path, np.asarray(frame.geometry.values, dtype=object))
    columns = _columns(path, frame, column)
    dates = date_column or next((c for c in _DATE_COLUMNS if c in frame.columns), None)
    if dates in columns:
        dates = date_column
    raw, kind = _values(path, frame, columns, task)
    names = tuple(columns) if kind == "multilabel" else ()
    return _Part(
        path=path,
        geometry=geometry,
        crs=frame.crs,
        task=kind,
        raw=raw,
        names=names,
        year=_years(path, frame, dates),
        target=",".join(columns),
    )


def _open(path: Path, layer: str | None) -> Any:
    geopandas = import_geopandas()
    if not path.exists():
        raise SourceError(
            got=f"{path}, which does not exist", expected="a file of labels", fix="check the path"
        )
    try:
        if path.suffix.lower() in {".parquet", ".geoparquet", ".gpq"}:
            return geopandas.read_parquet(path)
        return geopandas.read_file(path, **({} if layer is None else {"layer": layer}))
    except (OSError, ValueError, RuntimeError) as error:
        # pyogrio's errors are RuntimeErrors, pyarrow's are ValueErrors.
        raise SourceError(
            got=f"{path} ({str(error).splitlines()[0]})",
            expected="GeoParquet, GeoJSON, GeoPackage or another vector file",
            fix="check that the file is whole and, if it has layers, name one",
        ) from error


def _shapes(path: Path, geometry: NDArray[Any]) -> NDArray[Any]:
    """Shapes that can be laid on a grid; empty ones are refused, crossing ones repaired."""
    import shapely

    empty = shapely.is_missing(geometry) | shapely.is_empty(geometry)
    # A bow tie has no area until it is repaired; a sliver has none ever.
    broken = ~shapely.is_valid(geometry) & ~empty
    is_area = shapely.get_dimensions(geometry) == 2
    if broken.any():
        geometry = geometry.copy()
        geometry[broken] = shapely.make_valid(geometry[broken])
    empty |= is_area & (shapely.area(geometry) == 0)
    if empty.any():
        rows = ", ".join(map(str, np.flatnonzero(empty)[:5]))
        raise InputError(
            got=f"{path.name} with {empty.sum()} of {len(geometry)} shapes empty (rows {rows}"
            f"{', ...' if empty.sum() > 5 else ''})",
            expected="points, lines or polygons with an extent",
            fix="delete these rows",
        )
    n_far = int((~np.isfinite(shapely.bounds(geometry)).all(axis=1)).sum())
    if n_far:
        raise InputError(
            got=f"{path.name} with {n_far} shapes at infinite coordinates",
            expected="finite coordinates",
            fix="delete these rows",
        )
    if broken.any():
        warnings.warn(
            f"{path.name}: {int(broken.sum())} polygons cross themselves and were repaired; "
            "check that they still cover what was meant",
            BocageWarning,
            stacklevel=4,
        )
    return geometry


def _columns(path: Path, frame: Any, column: str | Sequence[str] | None) -> list[str]:
    available = [str(c) for c in frame.columns if c != frame.geometry.name]
    if column is None:
        found = [c for c in available if c not in _DATE_COLUMNS and c != "id"]
        if len(found) != 1:
            raise ConfigError(
                got=f"{path.name} with the columns {', '.join(available) or '(none)'}",
                expected="to be told which one holds the labels",
                fix=f"use --label {found[0] if found else 'NAME'}",
            )
        return found
    columns = [column] if isinstance(column, str) else list(column)
    missing = [c for c in columns if c not in available]
    if missing:
        raise InputError(
            got=f"{path.name} without the column {', '.join(missing)}",
            expected=f"one of {', '.join(available) or '(no columns)'}",
            fix="check --label",
        )
    return columns


def _values(
    path: Path, frame: Any, columns: list[str], task: Task | None
) -> tuple[NDArray[Any], Task]:
    if task is not None and task not in TASKS:
        raise ConfigError(
            got=f"task {task!r}", expected=f"one of {', '.join(TASKS)}", fix="check --task"
        )
    for name in columns:
        n_missing = int(frame[name].isna().sum())
        if n_missing:
            raise InputError(
                got=f"{path.name} with {n_missing} of {len(frame)} values of {name!r} missing",
                expected="a value in every row",
                fix="fill them in or delete these rows",
            )
    if len(columns) > 1 and task == "regression":
        raise ConfigError(
            got=f"--task regression with the columns {', '.join(columns)}",
            expected="one column of numbers",
            fix=f"fit one probe per column, first --label {columns[0]}",
        )
    if len(columns) > 1 or task == "multilabel":
        return _flags(path, frame, columns), "multilabel"
    values = np.asarray(frame[columns[0]])
    kind = task or _guess(path, columns[0], values)
    if kind == "classification":
        return values, kind
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            got=f"{path.name}, whose column {columns[0]!r} holds text such as {values[0]!r}",
            expected="numbers for a regression",
            fix="use --task classification, or another column",
        ) from error
    n_infinite = int((~np.isfinite(numbers)).sum())
    if n_infinite:
        raise InputError(
            got=f"{path.name} with {n_infinite} of {len(numbers)} values of {columns[0]!r} not "
            "finite",
            expected="a number in every row",
            fix="delete these rows",
        )
    return numbers.astype(np.float32), kind


def _guess(path: Path, column: str, values: NDArray[Any]) -> Task:
    if values.dtype.kind not in "iuf":
        return "classification"
    if values.dtype.kind == "f" and (values != np.round(values)).any():
        return "regression"
    if len(np.unique(values)) > MAX_GUESSED_CLASSES:
        raise ConfigError(
            got=f"{path.name}, whose column {column!r} has {len(np.unique(values))} distinct whole "
            "numbers",
            expected="to be told whether they are classes or numbers",
            fix="use --task classification or --task regression",
        )
    return "classification"


def _flags(path: Path, frame: Any, columns: list[str]) -> NDArray[np.bool_]:
    flags = np.stack([np.asarray(frame[c]) for c in columns], axis=1)
    if not np.isin(flags, [0, 1]).all():
        raise InputError(
            got=f"{path.name}, whose columns {', '.join(columns)} hold more than 0 and 1",
            expected="one column of 0/1 or false/true per label",
            fix="use one --label column for classes that exclude each other",
        )
    return flags.astype(bool)


def _years(path: Path, frame: Any, column: str | None) -> NDArray[np.int32]:
    if column is None:
        return np.zeros(len(frame), np.int32)
    if column not in frame.columns:
        raise InputError(
            got=f"{path.name} without the column {column!r}",
            expected="a column of years or dates",
            fix="check --date-column",
        )
    import pandas

    values = frame[column]
    numbers = pandas.to_numeric(values, errors="coerce")
    if values.dtype.kind != "M" and numbers.notna().all() and numbers.between(1900, 2100).all():
        return np.asarray(numbers, np.int32)
    dates = pandas.to_datetime(values, errors="coerce", utc=True, format="mixed")
    n_bad = int(dates.isna().sum())
    if n_bad:
        raise InputError(
            got=f"{path.name} with {n_bad} values of {column!r} that are no year and no date, "
            f"such as {values[dates.isna()].iloc[0]!r}",
            expected="2024 or 2024-07-01",
            fix="correct them, or name another --date-column",
        )
    return np.asarray(dates.dt.year, np.int32)


def _table(classes: Any) -> tuple[LabelClass, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, str | Path):
        return read_classes(classes)
    if all(isinstance(c, LabelClass) for c in classes):
        return check_classes(classes)
    return check_classes(make_classes(list(classes)))


def _merge(parts: list[_Part], table: tuple[LabelClass, ...] | None) -> Labels:
    import geopandas

    first = parts[0]
    for part in parts[1:]:
        if part.task != first.task:
            raise InputError(
                got=f"{first.path.name} for {first.task} and {part.path.name} for {part.task}",
                expected="files of one kind",
                fix="use --task, or one file at a time",
            )
    shapes = [first.geometry]
    for part in parts[1:]:
        if part.crs == first.crs:
            shapes.append(part.geometry)
        else:
            moved = geopandas.GeoSeries(part.geometry, crs=part.crs).to_crs(first.crs)
            shapes.append(np.asarray(moved.values, dtype=object))
    value, classes = _classes(parts, table)
    authority = first.crs.to_authority()
    return Labels(
        geometry=np.concatenate(shapes),
        crs=":".join(authority) if authority else first.crs.to_wkt(),
        task=first.task,
        value=value,
        classes=classes,
        year=np.concatenate([p.year for p in parts]),
        target=first.target,
        sources=tuple(p.path.name for p in parts),
    )


def _classes(
    parts: list[_Part], table: tuple[LabelClass, ...] | None
) -> tuple[NDArray[Any], tuple[LabelClass, ...]]:
    task = parts[0].task
    raw = np.concatenate([p.raw for p in parts])
    if task == "regression":
        return raw, ()
    if task == "multilabel":
        return raw, table or make_classes(parts[0].names)
    seen = [{_name(v) for v in np.unique(p.raw)} for p in parts]
    everything = set.union(*seen)
    if table is None:
        for part, names in zip(parts, seen, strict=True):
            if names != everything:
                raise InputError(
                    got=f"{part.path.name} without the class "
                    f"{', '.join(sorted(everything - names))} of the other files",
                    expected="the same class names in every file",
                    fix="correct the spelling, or name all classes with --classes",
                )
        table = _own_table(raw)
    index = {_name(c.value): i for i, c in enumerate(table)}
    index |= {c.name: i for i, c in enumerate(table)}
    unknown = sorted(everything - index.keys())
    if unknown:
        raise InputError(
            got=f"class {', '.join(unknown[:5])} in {', '.join(p.path.name for p in parts)}",
            expected=f"one of {', '.join(c.name for c in table)}",
            fix="correct the labels or the class table",
        )
    labels, inverse = np.unique(raw, return_inverse=True)
    value = np.array([index[_name(v)] for v in labels], np.int64)[inverse.reshape(-1)]
    if len(np.unique(value)) < 2:
        raise InputError(
            got=f"only the class {table[int(value[0])].name!r} in "
            f"{', '.join(p.path.name for p in parts)}",
            expected="at least two classes",
            fix="add labels of what is not that class",
        )
    return value, table


def _own_table(raw: NDArray[Any]) -> tuple[LabelClass, ...]:
    labels = np.unique(raw)
    whole = raw.dtype.kind in "iuf" and labels.min() >= 0 and labels.max() <= 254
    names = (
        {int(v): _name(v) for v in labels}
        if whole
        else dict(enumerate((_name(v) for v in labels), start=1))
    )  # 0 is kept for "no data", which GIS programs take it for
    return make_classes(names)


def _name(value: Any) -> str:
    """A label as people write it: 3.0 in a column with decimals is class 3."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _count(values: NDArray[Any]) -> str:
    found, counts = np.unique(values, return_counts=True)
    return ", ".join(f"{_name(v)} {n}" for v, n in zip(found, counts, strict=True))


def with_classes(labels: Labels, classes: Sequence[LabelClass]) -> Labels:
    """The same labels with names and colors from elsewhere, in the same order."""
    return replace(labels, classes=check_classes(classes))


def import_geopandas() -> Any:
    """The package geopandas, or how to install it."""
    try:
        import geopandas
    except ImportError as error:
        raise ConfigError(
            got="labels without the package geopandas",
            expected="the extra learn",
            fix='pip install "bocage[learn]"',
        ) from error
    return geopandas
