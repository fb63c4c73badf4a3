"""One file of labels: shapes that can be laid on a grid, with a value and a year each.

GeoParquet, GeoJSON, GeoPackage, CSV with lon and lat, or whatever else GDAL reads. A file that
leaves a question open (no CRS, empty shapes, missing values) is refused with the count.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bocage.errors import BocageWarning, ConfigError, InputError, SourceError
from bocage.learn.vector_file import import_geopandas, read_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

Task = Literal["classification", "multilabel", "regression"]
TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression")

MAX_GUESSED_CLASSES = 64
"""More distinct numbers than this are not taken for classes without being told."""

_DATE_COLUMNS = ("year", "date")


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """What one file holds: raw values, before they become indices of classes."""

    path: Path
    geometry: NDArray[Any]
    crs: Any
    task: Task
    raw: NDArray[Any]
    names: tuple[str, ...]
    year: NDArray[np.int32]
    target: str


def read_label_file(
    path: Path,
    column: str | Sequence[str] | None,
    date_column: str | None,
    layer: str | None,
    task: Task | None,
    *,
    option: str = "--label",
) -> LabelFile:
    """Read and check one file; see `read_labels`."""
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
    columns = _columns(path, frame, column, option)
    dates = date_column or next((c for c in _DATE_COLUMNS if c in frame.columns), None)
    if dates in columns:
        dates = date_column
    raw, kind = _values(path, frame, columns, task)
    names = tuple(columns) if kind == "multilabel" else ()
    return LabelFile(
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
    if path.suffix.lower() == ".csv" and path.exists():
        return _open_csv(path)
    return read_shapes(str(path), layer, what="labelled points, lines or polygons")


def _open_csv(path: Path) -> Any:
    """A table of places: columns lon and lat in degrees, as spreadsheets and apps write them."""
    import pandas

    geopandas = import_geopandas()
    try:
        # Spreadsheets mark UTF-8 with three bytes, and some separate by semicolons.
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            separator = max(",;\t", key=header.count)
            file.seek(0)
            frame = pandas.read_csv(file, sep=separator)
    except UnicodeDecodeError as error:
        raise SourceError(
            got=f"{path.name}, which is not in UTF-8",
            expected="a table in UTF-8",
            fix='save it as "CSV UTF-8", or as GeoPackage',
        ) from error
    except (OSError, ValueError) as error:
        raise SourceError(
            got=f"{path} ({str(error).splitlines()[0]})",
            expected="a table with a header and columns lon and lat",
            fix="check that the file is whole",
        ) from error
    lower = {str(c).strip().lower(): c for c in reversed(frame.columns)}
    found = [next((lower[n] for n in names if n in lower), None) for names in _PLACE_COLUMNS]
    if None in found:
        raise InputError(
            got=f"{path.name} with the columns {', '.join(map(str, frame.columns))}",
            expected="longitude and latitude in degrees, in columns lon and lat",
            fix="rename the columns, or save the places as GeoPackage with their CRS",
        )
    lon, lat = (
        pandas.to_numeric(
            # Where semicolons separate, commas are decimal.
            frame[name].astype(str).str.replace(",", ".") if separator == ";" else frame[name],
            errors="coerce",
        )
        for name in found
    )
    wrong = ~(lon.abs().le(180) & lat.abs().le(90))
    if wrong.any():
        first = frame.loc[wrong, found].iloc[0]
        raise InputError(
            got=f"{path.name} with {int(wrong.sum())} of {len(frame)} places that are no degrees, "
            f"such as {found[0]} {first.iloc[0]}, {found[1]} {first.iloc[1]}",
            expected="longitude -180 to 180 and latitude -90 to 90, with a decimal point",
            fix="correct these rows, or save places in another CRS as GeoPackage",
        )
    rest = frame.drop(columns=found)
    return geopandas.GeoDataFrame(rest, geometry=geopandas.points_from_xy(lon, lat), crs=4326)


_PLACE_COLUMNS = (("lon", "longitude", "long", "lng"), ("lat", "latitude"))


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


def column_names(path: Path, layer: str | None = None) -> list[str]:
    """Columns of a file of labels, without the shapes."""
    return _without_shapes(_open(path, layer))


def _without_shapes(frame: Any) -> list[str]:
    return [str(c) for c in frame.columns if c != frame.geometry.name]


def _columns(path: Path, frame: Any, column: str | Sequence[str] | None, option: str) -> list[str]:
    available = _without_shapes(frame)
    if column is None:
        found = [c for c in available if c not in _DATE_COLUMNS and c != "id"]
        if len(found) != 1:
            raise ConfigError(
                got=f"{path.name} with the columns {', '.join(available) or '(none)'}",
                expected="to be told which one holds the labels",
                fix=f"use {option} {found[0] if found else 'NAME'}",
            )
        return found
    columns = [column] if isinstance(column, str) else list(column)
    missing = [c for c in columns if c not in available]
    if missing:
        raise InputError(
            got=f"{path.name} without the column {', '.join(missing)}",
            expected=f"one of {', '.join(available) or '(no columns)'}",
            fix=f"check {option}",
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
        missing = frame[name].isna()
        if frame[name].dtype == object or str(frame[name].dtype).startswith(("str", "category")):
            missing |= frame[name].astype(str).str.strip() == ""
        n_missing = int(missing.sum())
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
