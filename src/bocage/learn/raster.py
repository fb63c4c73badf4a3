"""What labels are laid on: Embeddings or a Stack, read one rectangle at a time.

Embeddings give their vectors. A Stack gives the median of its dates, band by band: what a person
would look at, and the baseline that embeddings have to beat.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError
from bocage.geo import Grid

if TYPE_CHECKING:
    import xarray as xr

    from bocage.types import FloatArray

BLOCK_CELLS = 256
"""Side of the rectangles that are read; one stored chunk of our own maps."""


@dataclass(frozen=True, kw_only=True)
class Raster:
    """Features on a grid, read when asked."""

    read: Callable[[int, slice, slice], FloatArray]
    """Year index, rows, columns to [D, h, w]; NaN where there is no data."""

    grid: Grid
    features: tuple[str, ...]
    """Name of each feature."""

    years: tuple[int, ...]
    """0 is an unknown year."""

    attrs: dict[str, Any] = field(default_factory=dict)

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rectangles that cover the grid."""
        rows, cols = self.grid.shape_yx
        for top in range(0, rows, BLOCK_CELLS):
            for left in range(0, cols, BLOCK_CELLS):
                yield (
                    slice(top, min(top + BLOCK_CELLS, rows)),
                    slice(left, min(left + BLOCK_CELLS, cols)),
                )


def raster_of(source: xr.DataArray | xr.Dataset | Raster) -> Raster:
    """Embeddings (DataArray) or a Stack (Dataset) as a Raster."""
    import xarray as xr

    if isinstance(source, Raster):
        return source
    if isinstance(source, xr.DataArray):
        return _of_embeddings(source)
    if isinstance(source, xr.Dataset):
        return _of_stack(source)
    raise InputError(
        got=f"{type(source).__name__} to lay labels on",
        expected="embeddings from open_embeddings or a Stack from open_stack",
        fix="open the file first",
    )


def embeddings_grid(embeddings: xr.DataArray) -> Grid:
    """CRS, transform and shape of Embeddings, also after they were cropped."""
    from bocage.imagery.rasters import crs_name
    from bocage.imagery.stack import transform_of_centers

    attrs = embeddings.coords["spatial_ref"].attrs if "spatial_ref" in embeddings.coords else {}
    wkt = attrs.get("crs_wkt") or attrs.get("spatial_ref")
    if not wkt:
        raise InputError(
            got="embeddings without spatial_ref",
            expected="a CF grid mapping with crs_wkt",
            fix="keep the coordinate spatial_ref, or open them again with open_embeddings",
        )
    y, x = (np.asarray(embeddings[name].values, np.float64) for name in ("y", "x"))
    if len(y) == 1 or len(x) == 1:
        from affine import Affine

        c, a, b, f, d, e = (float(v) for v in str(attrs.get("GeoTransform", "")).split())
        stated = Affine(a, b, c, d, e, f)
        transform = transform_of_centers(y, x, stated)
    else:
        transform = transform_of_centers(y, x)
    return Grid(crs=crs_name(wkt), transform=transform, shape_yx=(len(y), len(x)))


def _of_embeddings(embeddings: xr.DataArray) -> Raster:
    if embeddings.dims != ("time", "band", "y", "x"):
        raise InputError(
            got=f"embeddings with the dimensions {', '.join(map(str, embeddings.dims))}",
            expected="time, band, y, x",
            fix="keep the dimensions when selecting, with isel(time=[0]) instead of isel(time=0)",
        )

    def read(year: int, rows: slice, cols: slice) -> FloatArray:
        return np.asarray(embeddings[year, :, rows, cols].values, np.float32)

    return Raster(
        read=read,
        grid=embeddings_grid(embeddings),
        features=tuple(f"{v}" for v in embeddings["band"].values),
        years=tuple(int(v) for v in embeddings["time"].values),
        attrs=dict(embeddings.attrs),
    )


def _of_stack(stack: xr.Dataset) -> Raster:
    from bocage.imagery import read_window, stack_grid
    from bocage.imagery.stack import stack_sensors

    sensors = stack_sensors(stack)
    names = [f"{sensor}:{band}" for sensor in sensors for band in stack[f"{sensor}_band"].values]
    years = np.unique(stack["time"].values.astype("datetime64[Y]").astype(int) + 1970)
    known = stack.attrs.get("bocage_dates") != "unknown"

    def read(_year: int, rows: slice, cols: slice) -> FloatArray:
        window = read_window(stack, rows, cols)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a pixel without any date is nodata
            parts = [np.nanmedian(window.values[sensor], axis=0) for sensor in sensors]
        return np.asarray(np.concatenate(parts), np.float32)

    return Raster(
        read=read,
        grid=stack_grid(stack),
        features=tuple(names),
        years=(int(years[0]) if known and len(years) == 1 else 0,),
        attrs={
            "sensors": list(sensors),
            "bocage_sources": [str(s) for s in stack.attrs.get("bocage_sources", ())],
            "reading": reading_of(stack),
        },
    )


def reading_of(stack: xr.Dataset) -> str:
    """What of its files a stack holds: other dates or another offset are other values."""
    options = [str(stack.attrs.get(f"bocage_{name}", "")) for name in ("options", "composite")]
    return "; ".join([*options, *np.datetime_as_string(stack["time"].values, "D")])
