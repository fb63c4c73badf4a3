"""Rasters of classes or of numbers, which are neither embeddings nor a stack.

Which of the two a raster is follows from what it says of itself. A raster of small whole numbers
that says nothing could be either, and the mean of class codes is nonsense: it is refused until
`kind` says.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError, InputError, SourceError
from bocage.zonal.layers import AHEAD, Kind, Layers, unreadable

if TYPE_CHECKING:
    from bocage.types import FloatArray


def open_bands(path: str, kind: Kind | None, classes: Any) -> Layers:
    """Every band of a raster that GDAL reads; see `open_layers`."""
    import rasterio

    from bocage.embeddings.lazy_raster import north_up
    from bocage.imagery.rasters import crs_name

    try:
        with rasterio.open(path) as file:
            if any(np.dtype(d).kind == "c" for d in file.dtypes):
                raise InputError(
                    got=f"{path}, a raster of complex numbers",
                    expected="real numbers",
                    fix="take their size first, for example with gdal_calc",
                )
            if file.crs is None:
                raise InputError(
                    got=f"{path} without a CRS",
                    expected="a georeferenced raster",
                    fix="set it with gdal_edit.py -a_srs EPSG:...",
                )
            grid, bottom_up = north_up(crs_name(file.crs), file.transform, file.shape)
            tags, count, dtype = file.tags(), file.count, np.dtype(file.dtypes[0])
            names = tuple(d or f"band{i}" for i, d in enumerate(file.descriptions, start=1))
            scaled = set(file.scales) != {1.0} or set(file.offsets) != {0.0}
            has_palette = file.colorinterp[0] == rasterio.enums.ColorInterp.palette
    except rasterio.errors.RasterioIOError as error:
        raise unreadable(path, error) from error
    whole = dtype.kind in "iu" and not scaled
    legend = _legend(path, tags, classes) if whole or classes is not None else {}
    found: Kind
    if kind == "values":
        found = "values"
    elif whole and count > 1 and "BOCAGE_CLASSES" in tags:
        found = "presence"
    elif kind == "classes" or legend or (whole and has_palette):
        found = _class_band(path, count, dtype, whole=whole)
    elif whole and dtype.itemsize == 1 and count == 1:
        raise ConfigError(
            got=f"{path}, whole numbers from {np.iinfo(dtype).min} to {np.iinfo(dtype).max} that "
            "do not say whether they are classes",
            expected="to be told: the mean of class codes is nonsense",
            fix="use --kind classes (with --classes names.csv) or --kind values",
        )
    else:
        found = "values"
    return Layers(
        read=_Bands(path, grid.shape_yx[0] if bottom_up else None),
        grid=grid,
        kind=found,
        features=_distinct(names),
        years=(_year(path, tags),),
        name=path,
        n_ahead=AHEAD if "://" in path else 0,
        classes=legend if found == "classes" else {},
    )


def _class_band(path: str, count: int, dtype: np.dtype[Any], *, whole: bool) -> Kind:
    if not whole or count != 1:
        raise ConfigError(
            got=f"{path} with {count} band(s) of {dtype} as a map of classes",
            expected="one band of whole numbers",
            fix="use --kind values, or take the band of classes out with gdal_translate -b",
        )
    return "classes"


_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class _Bands:
    """Numbers of every band with the file's scale and offset; NaN where its mask says no data."""

    path: str
    bottom_up_rows: int | None
    """Height of a raster whose first row is the southern one."""

    def __call__(self, _year: int, rows: slice, cols: slice) -> FloatArray:
        import rasterio
        from rasterio.windows import Window

        n = self.bottom_up_rows
        stored = rows if n is None else slice(n - rows.stop, n - rows.start)
        try:
            with rasterio.open(self.path) as file:
                q = file.read(window=Window.from_slices(stored, cols), masked=True)
                scale, offset = (
                    np.asarray(v, np.float64)[:, None, None] for v in (file.scales, file.offsets)
                )
        except rasterio.errors.RasterioIOError as error:
            raise SourceError(
                got=f"{self.path}, unreadable at rows {rows.start}-{rows.stop} ({error})",
                expected="a complete file",
                fix="copy or make it again",
            ) from error
        x = np.ma.getdata(q)
        if (scale != 1).any() or (offset != 0).any():
            x = x * scale + offset
        # An infinite number has no mean; a division by zero before this leaves such.
        missing = np.ma.getmaskarray(q) | ~np.isfinite(x)
        values = np.where(missing, 0, x)
        if values.size and np.abs(values).max() > _LARGEST:
            raise InputError(
                got=f"{self.path} with numbers beyond {_LARGEST:.3g}",
                expected="numbers that float32 holds",
                fix="set its nodata value, or divide it by a constant",
            )
        values = np.where(missing, np.float32(np.nan), values.astype(np.float32))
        return values if n is None else np.ascontiguousarray(values[:, ::-1])


def _legend(path: str, tags: Mapping[str, str], classes: Any) -> dict[int, str]:
    """Names by value: the user's, ours in the file's metadata, or GDAL's beside it."""
    from bocage.learn.classes import read_classes

    if isinstance(classes, Mapping):
        return {int(v): str(n) for v, n in classes.items()}
    if classes is not None:
        return {c.value: c.name for c in read_classes(classes)}
    if "BOCAGE_CLASSES" in tags:
        return {int(c["value"]): str(c["name"]) for c in json.loads(tags["BOCAGE_CLASSES"])}
    own = {k: v for k, v in tags.items() if re.fullmatch(r"CLASS_\d+", k)}
    if own:
        return {int(k.removeprefix("CLASS_")): v for k, v in sorted(own.items())}
    beside = Path(f"{path}.aux.xml")
    if "://" in path or not beside.exists():
        return {}
    try:
        band = ET.parse(beside).getroot().find("PAMRasterBand/CategoryNames")
    except ET.ParseError as error:
        raise SourceError(
            got=f"{beside} ({error})", expected="GDAL's metadata", fix="delete or repair it"
        ) from error
    return {v: c.text for v, c in enumerate(() if band is None else band) if c.text}


def _year(path: str, tags: Mapping[str, str]) -> int:
    """Of the metadata, or a year that stands alone in the name of the file."""
    if str(tags.get("YEAR", "")).isdigit():
        return int(tags["YEAR"])
    found = re.findall(r"(?<!\d)((?:19|20)\d\d)(?!\d)", Path(path).stem)
    return int(found[0]) if len(found) == 1 else 0


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Band names as words of columns, with numbers where two are the same."""
    words = [re.sub(r"\W+", "_", name).strip("_") or f"band{i}" for i, name in enumerate(names, 1)]
    return tuple(
        word if words.count(word) == 1 else f"{word}_{i}" for i, word in enumerate(words, 1)
    )
