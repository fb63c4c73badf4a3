"""What is summed up under the zones: embeddings, a map of classes, or bands of numbers.

Which of the three a raster is follows from what it says of itself. A raster of small whole numbers
that says nothing could be either of the last two, and the mean of class codes is nonsense: it is
refused until `kind` says.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bocage.errors import ConfigError, InputError, SourceError
from bocage.geo import Grid

if TYPE_CHECKING:
    import xarray as xr

    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.types import FloatArray, PathLike

Kind = Literal["embeddings", "classes", "presence", "values"]
KINDS: tuple[Kind, ...] = ("embeddings", "classes", "values")
"""Kinds that a user may state; presence (one band of 0 and 1 per class) is a class map of ours."""

Read = Callable[[int, slice, slice], "FloatArray"]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A raster of one or several years, read one rectangle at a time."""

    read: Read
    """Position of the year, rows, columns to [C, h, w] float32; NaN where there is no data."""

    grid: Grid
    kind: Kind
    features: tuple[str, ...]
    """Name of each band: 000, 001, ... of embeddings."""

    years: tuple[int, ...]
    """0 is an unknown year."""

    name: str
    """As given by the user."""

    classes: Mapping[int, str] = field(default_factory=dict)
    """Names of class values, as far as the file says."""

    attrs: Mapping[str, Any] = field(default_factory=dict)


def open_layers(
    source: PathLike | xr.DataArray | Sequence[PathLike],
    *,
    kind: Kind | None = None,
    classes: PathLike | Mapping[int, str] | None = None,
    dims: int | None = None,
    years: Sequence[int] | None = None,
) -> Layers:
    """Open what statistics are made of; nothing is read but headers.

    Args:
        source: Embeddings (anything `open_embeddings` reads, or what it returned), a map of classes
            or of numbers (anything GDAL reads), or several rasters of one grid, one per year.
        kind: "embeddings", "classes" or "values", where the file does not say.
        classes: Names of class values: a class table (JSON, CSV), or {1: "water"}.
        dims: The first so many values of embeddings.
        years: Keep these years only, in this order.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(
            got=f"kind {kind!r}", expected=f"one of {', '.join(KINDS)}", fix="check --kind"
        )
    if classes is not None and kind not in {None, "classes"}:
        raise ConfigError(
            got=f"class names with kind {kind}",
            expected="class names for a map of classes",
            fix="leave --classes out",
        )
    if isinstance(source, (str, Path)):
        found = [_open_path(str(source), kind, classes, dims)]
    elif isinstance(source, Sequence):
        found = [_open_path(str(path), kind, classes, dims) for path in source]
    else:
        found = [_of_array(source, dims)]
    if not found:
        raise ConfigError(got="no raster", expected="one at least", fix="name a raster")
    return _choose(found[0] if len(found) == 1 else _one_per_year(found), years)


def _of_array(source: Any, dims: int | None) -> Layers:
    from bocage.learn.raster import raster_of

    raster = raster_of(source if dims is None else source.isel(band=slice(dims)))
    return Layers(
        read=raster.read,
        grid=raster.grid,
        kind="embeddings",
        features=_numbered(len(raster.features)),
        years=raster.years,
        name=str(raster.attrs.get("model") or "the embeddings"),
        attrs=raster.attrs,
    )


def _open_path(path: str, kind: Kind | None, classes: Any, dims: int | None) -> Layers:
    from bocage.embeddings.open import open_raster
    from bocage.embeddings.zarr_layout import is_zarr

    if "://" not in path and not Path(path).exists():
        raise SourceError(
            got=f"{path}, which does not exist",
            expected="embeddings, a map of classes or of numbers",
            fix="check the path",
        )
    if is_zarr(path) or kind == "embeddings" or (kind is None and _says_embeddings(path)):
        if kind in {"classes", "values"} or classes is not None:
            raise ConfigError(
                got=f"{path}, a store of embeddings, as {kind or 'classes'}",
                expected="a GeoTIFF of classes or numbers",
                fix="map the classes first with bocage predict, or leave --kind and --classes out",
            )
        return _of_embeddings(open_raster(path, dims=dims), path)
    if dims is not None:
        raise ConfigError(
            got=f"--dims {dims} with {path}, which holds no embeddings",
            expected="a store or raster of embeddings",
            fix="leave --dims out",
        )
    return _of_bands(path, kind, classes)


def _says_embeddings(path: str) -> bool:
    from rasterio.errors import RasterioIOError

    from bocage.embeddings.cog_layout import (
        ALPHAEARTH_BANDS,
        QUANTIZATION_TAG,
        open_quietly,
        read_provenance,
    )

    try:
        with open_quietly(path) as file:
            tags, names = file.tags(), tuple(d or "" for d in file.descriptions)
    except RasterioIOError as error:
        raise _unreadable(path, error) from error
    return bool(
        QUANTIZATION_TAG in tags or read_provenance(tags).get("model") or names == ALPHAEARTH_BANDS
    )


def _of_embeddings(lazy: LazyRaster, path: str) -> Layers:
    from bocage.embeddings.cog import own_grid

    return Layers(
        read=lambda year, rows, cols: lazy[year, :, rows, cols],
        grid=own_grid(lazy),
        kind="embeddings",
        features=_numbered(lazy.shape[1]),
        years=lazy.years,
        name=path,
        attrs=dict(lazy.attrs),
    )


def _of_bands(path: str, kind: Kind | None, classes: Any) -> Layers:
    import rasterio

    from bocage.embeddings.lazy_raster import north_up
    from bocage.imagery.rasters import crs_name

    try:
        with rasterio.open(path) as file:
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
        raise _unreadable(path, error) from error
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
        missing = np.ma.getmaskarray(q)
        values = np.where(missing, np.float32(np.nan), x.astype(np.float32, copy=False))
        # An infinite number has no mean; GDAL writes such where a division by zero went before.
        values[np.isinf(values)] = np.nan
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


def _one_per_year(found: list[Layers]) -> Layers:
    """Rasters of one grid as one raster of several years."""
    first = found[0]
    for other in found[1:]:
        same = (
            other.kind == first.kind
            and other.grid.shape_yx == first.grid.shape_yx
            and other.grid.crs == first.grid.crs
            and other.grid.transform.almost_equals(first.grid.transform)
            and len(other.features) == len(first.features)
            and other.classes == first.classes
            and other.attrs.get("weights_id") == first.attrs.get("weights_id")
        )
        if not same:
            raise InputError(
                got=f"{first.name} ({_describe(first)}) and {other.name} ({_describe(other)})",
                expected="rasters that differ in their year only: one grid, the same classes, "
                "bands, model and weights",
                fix="make one table for each",
            )
    years = [year for layers in found for year in layers.years]
    if len(set(years)) < len(years) or 0 in years:
        raise InputError(
            got=f"{', '.join(f.name for f in found)} of the years "
            f"{', '.join(str(y or 'unknown') for y in years)}",
            expected="one raster for each year",
            fix="put the year into the names (map_2024.tif), or into the metadata: gdal_edit.py "
            "-mo YEAR=2024",
        )
    places = [(layers, i) for layers in found for i in range(len(layers.years))]

    def read(year: int, rows: slice, cols: slice) -> FloatArray:
        layers, position = places[year]
        return layers.read(position, rows, cols)

    names = ", ".join(f.name for f in found)
    return replace(first, read=read, years=tuple(years), name=names)


def _choose(layers: Layers, years: Sequence[int] | None) -> Layers:
    if years is None:
        return layers
    unknown = [y for y in years if y not in layers.years]
    if unknown or not years or len(set(years)) < len(years):
        raise InputError(
            got=f"the years {', '.join(map(str, years)) or '(none)'} of {layers.name}",
            expected="years it has, each once: "
            + ", ".join(str(y or "unknown") for y in layers.years),
            fix="check --years",
        )
    places = [layers.years.index(y) for y in years]
    inner = layers.read
    return replace(
        layers,
        read=lambda year, rows, cols: inner(places[year], rows, cols),
        years=tuple(years),
    )


def _year(path: str, tags: Mapping[str, str]) -> int:
    """Of the metadata, or a year that stands alone in the name of the file."""
    if str(tags.get("YEAR", "")).isdigit():
        return int(tags["YEAR"])
    found = re.findall(r"(?<!\d)((?:19|20)\d\d)(?!\d)", Path(path).stem)
    return int(found[0]) if len(found) == 1 else 0


def _numbered(n: int) -> tuple[str, ...]:
    width = max(3, len(str(n - 1)))
    return tuple(f"{i:0{width}d}" for i in range(n))


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Band names as words of columns, with numbers where two are the same."""
    words = [re.sub(r"\W+", "_", name).strip("_") or f"band{i}" for i, name in enumerate(names, 1)]
    return tuple(
        word if words.count(word) == 1 else f"{word}_{i}" for i, word in enumerate(words, 1)
    )


def _describe(layers: Layers) -> str:
    rows, cols = layers.grid.shape_yx
    bands = f"{len(layers.features)} bands"
    if layers.kind == "classes":
        bands = "classes " + ", ".join(list(layers.classes.values())[:6])
    return f"{layers.kind}, {cols} x {rows} cells in {layers.grid.crs[:40]}, {bands}"


def _unreadable(path: str, error: Exception) -> SourceError:
    return SourceError(
        got=f"{path}, which GDAL cannot open ({error})",
        expected="embeddings, or a raster of classes or numbers",
        fix="check the path, and that the file is complete",
    )
