"""Labels: what people know about places, as points, lines and polygons in files that agree.

One file is read in `label_file.py`; here several become one set with one table of classes. Raster
masks stand in `mask.py`. Files that leave a question open (class names that differ, one class only)
are refused: a probe fitted on half-understood labels looks like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageWarning, InputError
from bocage.learn.classes import LabelClass, check_classes, make_classes, read_classes
from bocage.learn.label_file import LabelFile, Task, read_label_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import PathLike

__all__ = ["Labels", "Task", "read_labels"]


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
    option: str = "--label",
) -> Labels:
    """Read labelled shapes from one file, or from several that agree.

    Args:
        source: GeoParquet, GeoJSON, GeoPackage, Shapefile, CSV (columns lon and lat in degrees), or
            several of them.
        column: Column of the class or number; several columns of 0/1 for labels that can hold
            together. May be left out when the file has one column that is not a date.
        date_column: Column of a year or a date; by default "year" or "date" if there is one.
        layer: Layer of a file that has several.
        task: "classification", "multilabel" or "regression"; by default text, true/false and whole
            numbers are classes, other numbers are numbers.
        classes: The classes to expect, as names or as a class table (`read_classes`). Needed when
            files hold different ones on purpose.
        option: How the user names a column, for messages.

    Raises:
        SourceError: A file cannot be read.
        InputError: No CRS, empty shapes, missing values, one class only, class names that differ
            between the files.
    """
    paths = [source] if isinstance(source, str | Path) else list(source)
    if not paths:
        raise InputError(got="no label file", expected="at least one", fix="name a file of labels")
    table = _table(classes)
    parts = [
        read_label_file(Path(p), column, date_column, layer, task, option=option) for p in paths
    ]
    return _merge(parts, table)


def _table(classes: Any) -> tuple[LabelClass, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, str | Path):
        return read_classes(classes)
    if all(isinstance(c, LabelClass) for c in classes):
        return check_classes(classes)
    return check_classes(make_classes(list(classes)))


def _merge(parts: list[LabelFile], table: tuple[LabelClass, ...] | None) -> Labels:
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
    parts: list[LabelFile], table: tuple[LabelClass, ...] | None
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
        _warn_of_spellings(table)
    index = {_name(c.value): i for i, c in enumerate(table)}
    index |= {_name(c.name): i for i, c in enumerate(table)}
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


def _warn_of_spellings(table: tuple[LabelClass, ...]) -> None:
    by_word: dict[str, list[str]] = {}
    for c in table:
        by_word.setdefault(c.name.casefold(), []).append(c.name)
    for names in by_word.values():
        if len(names) > 1:
            warnings.warn(
                f"the classes {' and '.join(names)} differ in capital letters only and are taken "
                "as different classes; correct the spelling if they are one",
                BocageWarning,
                stacklevel=5,
            )


def _own_table(raw: NDArray[Any]) -> tuple[LabelClass, ...]:
    labels = np.unique(raw)
    whole = raw.dtype.kind in "iuf" and labels.min() >= 0 and labels.max() <= 254
    names = (
        {int(v): _name(v) for v in labels}
        if whole
        else dict(enumerate(sorted({_name(v) for v in labels}), start=1))
    )  # 0 is kept for "no data", which GIS programs take it for
    return make_classes(names)


def _name(value: Any) -> str:
    """A label as people mean it: 3.0 is class 3, and a space too many makes no other class."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return " ".join(str(value).split())


def _count(values: NDArray[Any]) -> str:
    found, counts = np.unique(values, return_counts=True)
    return ", ".join(f"{_name(v)} {n}" for v, n in zip(found, counts, strict=True))
