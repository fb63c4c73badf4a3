"""Labels as a raster: a land-use map, a water mask, a map of canopy heights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError, SourceError
from bocage.learn.cells import Cells
from bocage.learn.classes import LabelClass, check_classes, make_classes, read_classes
from bocage.learn.labels import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.geo import Grid
    from bocage.types import PathLike

STRIP_CELLS = 512
"""Rows of the map that the mask is laid on at once."""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A raster of labels, read when it is laid on a map."""

    path: Path
    band: int
    task: Task
    classes: tuple[LabelClass, ...]
    counts: tuple[int, ...] = ()
    """Pixels of each class."""

    nodata: float | None
    year: int
    target: str

    def describe(self) -> str:
        """What the file holds."""
        found = ", ".join(f"{c.name} {n}" for c, n in zip(self.classes, self.counts, strict=True))
        nodata = "" if self.nodata is None else f", nodata {self.nodata:g}"
        return f"labels   {self.path.name}, band {self.band} ({found or 'numbers'}{nodata})"

    def cells(self, grid: Grid, year_index: int) -> Cells:
        """Labelled cells of the grid: the most frequent value of each, or the mean number."""
        rows, cols, values = [], [], []
        for top, part in self._strips(grid):
            valid = np.isfinite(part)
            row, col = np.nonzero(valid)
            rows.append(row + top)
            cols.append(col)
            values.append(part[row, col])
        row, col, value = np.concatenate(rows), np.concatenate(cols), np.concatenate(values)
        if not len(row):
            raise InputError(
                got=f"{self.path.name}, which has no label on the map",
                expected="a mask that overlaps the map",
                fix="check the CRS and the nodata value of the mask",
            )
        index: NDArray[Any] = value.astype(np.float32)
        if self.task == "classification":
            index = np.searchsorted([c.value for c in self.classes], value).astype(np.int64)
        return Cells(
            row=row.astype(np.int64),
            col=col.astype(np.int64),
            value=index,
            group=row.astype(np.int64) * grid.shape_yx[1] + col,
            year_index=np.full(len(row), year_index, np.int64),
        )

    def _strips(self, grid: Grid) -> Iterator[tuple[int, NDArray[np.float64]]]:
        import rasterio
        from rasterio.enums import Resampling
        from rasterio.vrt import WarpedVRT

        known = [c.value for c in self.classes]
        mode = Resampling.mode if self.task == "classification" else Resampling.average
        with (
            rasterio.open(self.path) as file,
            WarpedVRT(
                file,
                crs=grid.crs,
                transform=grid.transform,
                height=grid.shape_yx[0],
                width=grid.shape_yx[1],
                resampling=mode,
                add_alpha=False,
                nodata=self.nodata,
                src_nodata=self.nodata,
                dtype="float64",
                init_dest_nodata=True,
            ) as warped,
        ):
            for top in range(0, grid.shape_yx[0], STRIP_CELLS):
                height = min(STRIP_CELLS, grid.shape_yx[0] - top)
                window = rasterio.windows.Window(0, top, grid.shape_yx[1], height)
                part = warped.read(self.band, window=window, masked=True).filled(np.nan)
                if known:
                    part[~np.isin(part, known)] = np.nan
                yield top, part


def read_mask(
    path: PathLike,
    *,
    band: int = 1,
    task: Task | None = None,
    classes: PathLike | Mapping[int, str] | Sequence[LabelClass] | None = None,
    nodata: float | None = None,
    year: int = 0,
) -> Mask:
    """Open a raster of labels and count its values.

    Args:
        path: A raster that GDAL reads, with a CRS.
        band: Which band, from 1.
        task: "classification" (default for whole numbers of 8 or 16 bit) or "regression".
        classes: Names of the values: {1: "water"}, classes, or a class table. Pixels of other
            values are not labels. By default every value but nodata is a class.
        nodata: Value of unlabelled pixels, if the file does not say it.
        year: Year that the mask describes; 0 for unknown.
    """
    import rasterio

    path = Path(path)
    try:
        file = rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise SourceError(
            got=f"{path} ({error})", expected="a raster of labels", fix="check the path"
        ) from error
    with file:
        _check(path, file, band)
        nodata = file.nodata if nodata is None else nodata
        whole = np.dtype(file.dtypes[band - 1]).kind in "iu"
        kind: Task = task or ("classification" if whole else "regression")
        counts = _count(path, file, band, nodata) if kind == "classification" else {}
        tags = file.tags(band)
    table = _table(classes, counts, tags) if kind == "classification" else ()
    if kind == "classification" and sum(counts.get(c.value, 0) > 0 for c in table) < 2:
        raise InputError(
            got=f"{path.name} with {'only one class' if counts else 'no labelled pixel'}"
            f" ({', '.join(map(str, counts)) or 'nothing'})",
            expected="at least two classes",
            fix="check the nodata value: 0 counts as a class unless it is nodata",
        )
    return Mask(
        path=path,
        band=band,
        task=kind,
        classes=table,
        counts=tuple(counts.get(c.value, 0) for c in table),
        nodata=nodata,
        year=year,
        target=path.stem,
    )


def _check(path: Path, file: Any, band: int) -> None:
    if file.crs is None:
        raise InputError(
            got=f"{path.name} without a CRS",
            expected="a raster that says where it lies",
            fix=f"state it, for example: gdal_edit.py -a_srs EPSG:32633 {path.name}",
        )
    if not 1 <= band <= file.count:
        raise InputError(
            got=f"band {band} of {path.name}",
            expected=f"1 to {file.count}",
            fix="check --band",
        )


def _count(path: Path, file: Any, band: int, nodata: float | None) -> dict[int, int]:
    total: dict[int, int] = {}
    for _, window in file.block_windows(band):
        values, counts = np.unique(file.read(band, window=window), return_counts=True)
        for value, n in zip(values, counts, strict=True):
            if nodata is not None and value == nodata:
                continue
            if not np.isfinite(value) or value != round(float(value)):
                raise InputError(
                    got=f"{path.name} with the value {value}",
                    expected="whole numbers as classes",
                    fix="use --task regression",
                )
            total[int(value)] = total.get(int(value), 0) + int(n)
        if len(total) > 255:
            raise InputError(
                got=f"{path.name} with more than 255 values",
                expected="at most 255 classes",
                fix="use --task regression, or group the classes",
            )
    return dict(sorted(total.items()))


def _table(classes: Any, counts: dict[int, int], tags: dict[str, str]) -> tuple[LabelClass, ...]:
    if classes is None:
        names = {v: tags.get(f"class_{v}", str(v)) for v in counts}
        return make_classes(names)
    if isinstance(classes, str | Path):
        return read_classes(classes)
    if isinstance(classes, Mapping):
        return make_classes(classes)
    return check_classes(sorted(classes, key=lambda c: c.value))
