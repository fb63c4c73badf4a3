"""Cubes: the bands of one sensor as arrays [time, y, x], and readers over them.

What an array says of itself (names, units, dates, CRS) is found in xarray_source and stac; here
cubes come onto one grid and one time axis. Values stay where they are (file, Zarr, dask) until a
window is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageError, InputError, SourceError
from bocage.imagery.mosaic import Found, MosaicReader, readers_of
from bocage.imagery.opened import Opened, OpenOptions
from bocage.imagery.pixels import fill_window, place
from bocage.imagery.reference import choose_grid

if TYPE_CHECKING:
    import xarray as xr
    from affine import Affine
    from numpy.typing import NDArray

    from bocage.geo import Grid
    from bocage.types import FloatArray, ShapeYX


@dataclass(frozen=True, kw_only=True)
class ArrayBand:
    """One band of a cube [time, y, x], with what brings its numbers to product units."""

    values: xr.DataArray
    """Dims time, y, x; y falls, x grows."""

    band: str
    nodata: float | None = None
    scale: float | str = 1.0
    offset: float = 0.0
    is_cloud_mask: bool = False


@dataclass(kw_only=True)
class Cube:
    """The bands of one sensor in one Dataset."""

    name: str
    """Where it comes from, for messages."""

    sensor: str
    crs: str
    transform: Affine
    shape_yx: ShapeYX
    dates: list[np.datetime64 | None]
    bands: dict[str, ArrayBand] = field(default_factory=dict)
    mask: ArrayBand | None = None
    offset_settled: bool = False

    @property
    def path(self) -> str:
        """For messages about grids."""
        return self.name

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Outer edges in the cube's CRS."""
        t, (rows, cols) = self.transform, self.shape_yx
        return t.c, t.f + rows * t.e, t.c + cols * t.a, t.f

    @property
    def resolution(self) -> float:
        """Side of a pixel in CRS units."""
        return float(self.transform.a)

    @property
    def north_up(self) -> bool:
        """Always, by construction."""
        return True


@dataclass(frozen=True)
class CubeStep:
    """One time step of a cube."""

    cube: Cube
    index: int


@dataclass(frozen=True, kw_only=True)
class CubeReader(MosaicReader[CubeStep]):
    """One sensor of cubes."""

    def read_scene(
        self, scene: CubeStep, rows: slice, cols: slice, out: FloatArray
    ) -> NDArray[np.bool_] | None:
        """Fill ``out`` [C, h, w] from one step of a cube; see `MosaicReader`."""
        cube = scene.cube
        where = place(cube.transform, cube.shape_yx, self.grid, rows, cols)
        if where is None:
            return None
        wanted = list(cube.bands.values())
        if cube.mask is not None and self.cloud_mask:
            wanted.append(cube.mask)
        parts = [band.values.isel(time=scene.index, y=where.rows, x=where.cols) for band in wanted]
        arrays = _load(parts, cube.name)
        mask = None
        if wanted and wanted[-1].is_cloud_mask:
            mask = (wanted.pop().band, where, arrays.pop())
        pieces = [(band, where, array) for band, array in zip(wanted, arrays, strict=True)]
        return fill_window(self.sensor, pieces, out, mask)


def _load(parts: Sequence[xr.DataArray], name: str) -> list[Any]:
    """Values of all parts, together where dask holds them; SourceError on failure."""
    import dask

    try:
        lazy = [part.variable._data for part in parts]
        if any(dask.is_dask_collection(data) for data in lazy):
            return [np.asarray(x) for x in dask.compute(*lazy, scheduler="threads")]
        return [np.asarray(part.values) for part in parts]
    except BocageError:
        raise
    except Exception as error:
        # Backends raise whatever their format's library raises; all of it means unreadable.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SourceError(
            got=f"{name}, which cannot be read ({reason})",
            expected="a complete, readable source",
            fix="fetch the data again, or leave this input out",
        ) from error


def open_cubes(
    cubes: Sequence[Cube],
    options: OpenOptions,
    *,
    level_1c: str = "",
    sources: Sequence[str] = (),
) -> Opened:
    """Readers over cubes that share a CRS, or are warped to one."""
    grid = choose_grid(cubes, crs=options.crs, resolution_m=options.resolution_m)
    cubes = [_onto_crs(cube, grid) for cube in cubes]
    dates = [date for cube in cubes for date in cube.dates]
    known = all(date is not None for date in dates)
    if not known and any(date is not None for date in dates):
        missing = next(cube.name for cube in cubes if None in cube.dates)
        raise InputError(
            got=f"inputs with and without dates ({missing} has none)",
            expected="a date for every input, or for none",
            fix="pass date= (--date), or give the Dataset a time coordinate",
        )
    found = [
        Found(cube.sensor, date, cube.bands, CubeStep(cube, index))
        for cube in cubes
        for index, date in enumerate(cube.dates)
    ]
    steps, readers, missing_bands = readers_of(
        found, CubeReader, grid=grid, cloud_mask=options.cloud_mask
    )
    return Opened(
        readers=readers,
        grid=grid,
        dates=steps,
        dates_known=known,
        sources=list(sources) or list(dict.fromkeys(cube.name for cube in cubes)),
        missing_bands=missing_bands,
        level_1c=level_1c,
        offset_settled=all(c.offset_settled for c in cubes if c.sensor == "sentinel2_l2a"),
        masks={c.sensor: c.mask.band for c in cubes if c.mask and options.cloud_mask},
    )


def _onto_crs(cube: Cube, grid: Grid) -> Cube:
    """The cube itself, or its nearest-neighbour warp onto the grid, as lazy as it was."""
    if cube.crs == grid.crs:
        return cube
    from odc.geo.geobox import GeoBox
    from odc.geo.xr import xr_reproject

    target = GeoBox(grid.shape_yx, grid.transform, grid.crs)
    chunk = {"time": 1, "y": 2048, "x": 2048}

    def warp(band: ArrayBand) -> ArrayBand:
        values = band.values.drop_vars(["spatial_ref", "crs"], errors="ignore").chunk(chunk)
        values = values.odc.assign_crs(cube.crs)
        floating = values.dtype.kind == "f"
        fill = band.nodata if band.nodata is not None else (float("nan") if floating else 0)
        warped = xr_reproject(
            values, target, resampling="nearest", dst_nodata=fill, chunks=(1024, 1024)
        )
        return ArrayBand(
            values=warped.rename(
                {a: b for a, b in zip(warped.dims[-2:], ("y", "x"), strict=True) if a != b}
            ),
            band=band.band,
            nodata=band.nodata,
            scale=band.scale,
            offset=band.offset,
            is_cloud_mask=band.is_cloud_mask,
        )

    return Cube(
        name=cube.name,
        sensor=cube.sensor,
        crs=grid.crs,
        transform=grid.transform,
        shape_yx=grid.shape_yx,
        dates=cube.dates,
        bands={name: warp(band) for name, band in cube.bands.items()},
        mask=warp(cube.mask) if cube.mask else None,
        offset_settled=cube.offset_settled,
    )
