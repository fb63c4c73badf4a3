"""Open what statistics are made of: embeddings, a map of classes or of numbers, year by year."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import ConfigError, InputError, SourceError
from bocage.zonal.bands import open_bands
from bocage.zonal.layers import AHEAD, KINDS, Kind, Layers, unreadable

if TYPE_CHECKING:
    import xarray as xr

    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.types import FloatArray, PathLike

_SAME = ("model", "weights_id", "patch_size")
"""Attributes without which vectors of two years have nothing in common."""


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
        years: Keep these years only; they come in the order of time.
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
    if is_zarr(path) or kind == "embeddings" or _says_embeddings(path):
        if kind in {"classes", "values"} or classes is not None:
            raise ConfigError(
                got=f"{path}, which holds embeddings, as {kind or 'classes'}",
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
    return open_bands(path, kind, classes)


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
        raise unreadable(path, error) from error
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
        n_ahead=AHEAD if "://" in path else 0,
        attrs=dict(lazy.attrs),
    )


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
            and all(other.attrs.get(key) == first.attrs.get(key) for key in _SAME)
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
    """The years asked for, or all, from the earliest on: a difference is to the year before."""
    if years is None:
        years = layers.years
    unknown = [y for y in years if y not in layers.years]
    if unknown or not years or len(set(years)) < len(years):
        raise InputError(
            got=f"the years {', '.join(map(str, years)) or '(none)'} of {layers.name}",
            expected="years it has, each once: "
            + ", ".join(str(y or "unknown") for y in layers.years),
            fix="check --years",
        )
    years = sorted(years)
    places = [layers.years.index(y) for y in years]
    inner = layers.read
    return replace(
        layers,
        read=lambda year, rows, cols: inner(places[year], rows, cols),
        years=tuple(years),
    )


def _numbered(n: int) -> tuple[str, ...]:
    width = max(3, len(str(n - 1)))
    return tuple(f"{i:0{width}d}" for i in range(n))


def _describe(layers: Layers) -> str:
    rows, cols = layers.grid.shape_yx
    bands = f"{len(layers.features)} bands"
    if layers.kind == "classes":
        bands = "classes " + ", ".join(list(layers.classes.values())[:6])
    return f"{layers.kind}, {cols} x {rows} cells in {layers.grid.crs[:40]}, {bands}"
