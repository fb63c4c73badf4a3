"""Reads windows of raster scenes onto the stack's grid, with nodata and clouds as NaN.

Bands keep their native pixels until the last step: a window is read at 10, 20 or 60 m and repeated
to the grid by nearest neighbour (the source pixel that holds the grid pixel's centre), as the models
were trained. Files in another CRS, or rotated, go through GDAL's nearest-neighbour warp.

No data, per group of bands with the same pixels: where any band holds the file's nodata value, NaN, or
a code that is never data; without a declared nodata value, where all bands of the group are zero.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.imagery.clouds import usable
from bocage.imagery.handles import dataset, source_errors
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.geo import Grid
    from bocage.imagery.rasters import BandFile, Scene
    from bocage.types import FloatArray

_NEVER_DATA = {
    # 65535 marks saturated or missing Sentinel-2 pixels; for Landsat it is a bright cloud.
    "sentinel2_l2a": (65535, -9999, -32768, -99999),
    "sentinel1": (65535, -9999, -32768, -99999),
    "landsat": (-9999, -32768, -99999),
}
_ZERO_MEANS_NODATA = ("sentinel2_l2a", "landsat")

_POWER_FLOOR = 1e-10
"""Smallest power before the logarithm, as in the models' training data (-100 dB)."""


@dataclass(frozen=True, kw_only=True)
class RasterReader:
    """One sensor of raster scenes, per time step; a Reader."""

    sensor: str
    grid: Grid
    scenes: tuple[tuple[Scene, ...], ...]
    """Per time step the scenes that mosaic, the top one first."""
    cloud_mask: bool = True

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Times, bands, rows, columns."""
        return (len(self.scenes), len(SENSORS[self.sensor].bands), *self.grid.shape_yx)

    @property
    def present(self) -> tuple[bool, ...]:
        """Per time, whether there is any scene."""
        return tuple(bool(s) for s in self.scenes)

    def read(self, times: Sequence[int], rows: slice, cols: slice) -> FloatArray:
        """Values [len(times), C, rows, cols] in product units."""
        shape = (self.shape[1], rows.stop - rows.start, cols.stop - cols.start)
        x = np.empty((len(times), *shape), dtype=np.float32)
        for out, time in zip(x, times, strict=True):
            self._read_time(time, rows, cols, out)
        return x

    def _read_time(self, time: int, rows: slice, cols: slice, out: FloatArray) -> None:
        filled = False
        for scene in self.scenes[time]:
            if not filled:
                filled = self._read_scene(scene, rows, cols, out)
                continue
            gaps = np.isnan(out)
            if not gaps.any():
                return
            below = np.empty_like(out)
            if self._read_scene(scene, rows, cols, below):
                np.copyto(out, below, where=gaps)
        if not filled:
            out.fill(np.nan)

    def _read_scene(self, scene: Scene, rows: slice, cols: slice, out: FloatArray) -> bool:
        """Fill ``out`` [C, h, w] from one scene; False, and nothing written, if it lies elsewhere."""
        files: dict[Any, list[BandFile]] = {}
        for band in scene.bands.values():
            files.setdefault(band.header.path, []).append(band)
        jobs = list(files.values())
        mask = scene.mask if self.cloud_mask else None
        if mask is not None:
            jobs.append([mask])
        placed = [_place(job[0], self.grid, rows, cols) for job in jobs]
        if all(place is None for place in placed[: len(files)]):
            return False
        todo = [(j, p) for j, p in zip(jobs, placed, strict=True) if p is not None]
        arrays = list(_map(lambda jp: _read_file(jp[0], jp[1], self.grid), todo))
        order = {band.name: i for i, band in enumerate(SENSORS[self.sensor].bands)}
        whole = all(p.covers(out.shape[1:]) for _, p in todo)
        if not (whole and len(scene.bands) == len(order) and len(todo) == len(jobs)):
            out.fill(np.nan)
        groups: dict[Any, list[tuple[BandFile, NDArray[Any]]]] = {}
        places: dict[Any, _Place] = {}
        cloud: tuple[_Place, NDArray[Any]] | None = None
        for (job, place), array in zip(todo, arrays, strict=True):
            if job[0].is_cloud_mask:
                cloud = place, array[0]
                continue
            key = (job[0].header.transform, job[0].header.shape_yx)
            groups.setdefault(key, []).extend(zip(job, array, strict=True))
            places[key] = place
        for key, members in groups.items():
            bad = _nodata(self.sensor, members)
            for band, array in members:
                x = _to_units(array, band)
                if bad is not None:
                    x = np.where(bad, np.float32(np.nan), x)
                places[key].put(x, out[order[band.band]])
        if cloud is not None:
            _mask_clouds(str(mask.band) if mask else "", *cloud, out)
        return True


@dataclass(frozen=True)
class _Place:
    """Where a file's pixels fall in a window of the grid."""

    source_rows: NDArray[np.intp]
    """For each covered window row, the row inside ``window``."""
    source_cols: NDArray[np.intp]
    target: tuple[slice, slice]
    """The covered part of the window."""
    window: tuple[int, int, int, int]
    """Column, row, width, height to read from the file."""

    def covers(self, shape_yx: tuple[int, ...]) -> bool:
        return (len(self.source_rows), len(self.source_cols)) == tuple(shape_yx)

    def put(self, source: NDArray[Any], out: NDArray[Any]) -> None:
        """Repeat the file's pixels to the grid by nearest neighbour."""
        height, width = source.shape
        if (len(self.source_rows), len(self.source_cols)) == (height, width):
            out[self.target] = source
            return
        wide = source if len(self.source_cols) == width else source.take(self.source_cols, axis=1)
        if len(self.source_rows) == height:
            out[self.target] = wide
        elif self.covers(out.shape):
            # Cast the few source rows first; repeating whole rows is then a plain copy.
            np.take(wide.astype(out.dtype), self.source_rows, axis=0, out=out, mode="clip")
        else:
            out[self.target] = wide[self.source_rows]


def _place(band: BandFile, grid: Grid, rows: slice, cols: slice) -> _Place | None:
    header = band.header
    if needs_warp(band, grid):
        transform, shape = grid.transform, grid.shape_yx
    else:
        transform, shape = header.transform, header.shape_yx
    g = grid.transform
    found = []
    for start, stop, grid_edge, grid_step, edge, step, size in (
        (rows.start, rows.stop, g.f, g.e, transform.f, transform.e, shape[0]),
        (cols.start, cols.stop, g.c, g.a, transform.c, transform.a, shape[1]),
    ):
        centers = grid_edge + (np.arange(start, stop) + 0.5) * grid_step
        # The tiny shift settles centres that lie on an edge against rounding.
        index = np.floor((centers - edge) / step + 1e-6).astype(np.intp)
        inside = np.flatnonzero((index >= 0) & (index < size))
        if not inside.size:
            return None
        target = slice(int(inside[0]), int(inside[-1]) + 1)
        index = index[target]
        found.append((index - index[0], target, int(index[0]), int(index[-1] - index[0]) + 1))
    (source_rows, target_rows, row, height), (source_cols, target_cols, col, width) = found
    return _Place(source_rows, source_cols, (target_rows, target_cols), (col, row, width, height))


def needs_warp(band: BandFile, grid: Grid) -> bool:
    """Whether a file must go through GDAL's warp to lie on the grid."""
    return band.header.crs != grid.crs or not band.header.north_up


def _read_file(job: Sequence[BandFile], place: _Place, grid: Grid) -> NDArray[Any]:
    from rasterio.windows import Window

    first = job[0]
    if needs_warp(first, grid):
        source = dataset(first.header.path, grid, _warp_nodata(first))
    else:
        source = dataset(first.header.path)
    with source_errors(first.header.path, "read"):
        read = source.read([band.index for band in job], window=Window(*place.window))
    return np.asarray(read)


def _warp_nodata(band: BandFile) -> float | None:
    if band.nodata is not None:
        return band.nodata
    return float("nan") if band.header.dtype.startswith("float") else 0.0


def _nodata(
    sensor: str, members: Sequence[tuple[BandFile, NDArray[Any]]]
) -> NDArray[np.bool_] | None:
    """Where a group of bands with the same pixels has no data, or None if nowhere."""
    bad: NDArray[np.bool_] | None = None
    for band, array in members:
        for code in {band.nodata, *_NEVER_DATA[sensor]}:
            here = _equals(array, code)
            if here is not None:
                bad = here if bad is None else bad | here
    if sensor in _ZERO_MEANS_NODATA and all(band.nodata is None for band, _ in members):
        zero: NDArray[np.bool_] | None = None
        for _, array in members:
            zero = array == 0 if zero is None else zero & (array == 0)
            if not zero.any():
                return bad
        if zero is not None:
            bad = zero if bad is None else bad | zero
    return bad


def _equals(array: NDArray[Any], code: float | None) -> NDArray[np.bool_] | None:
    """Where the array has a code, or None if nowhere; codes outside the type cost nothing."""
    if code is None:
        return None
    if np.isnan(code):
        if array.dtype.kind != "f":
            return None
        here = np.isnan(array)
    else:
        if array.dtype.kind in "iu":
            limits = np.iinfo(array.dtype)
            if not limits.min <= code <= limits.max:
                return None
        here = array == array.dtype.type(code)
    return here if here.any() else None


def _to_units(array: NDArray[Any], band: BandFile) -> FloatArray:
    """Stored numbers to product units; still at native pixels, so 20 m bands cost a quarter."""
    if band.scale == 1.0 and band.offset == 0.0:
        return array  # type: ignore[return-value]  # cast to float32 by the copy that follows
    return to_units(array.astype(np.float32), band.sensor, band.scale, band.offset)


def to_units(x: FloatArray, sensor: str, scale: float | str, offset: float) -> FloatArray:
    """Apply a scale ("db": 10 log10, "db20": 20 log10, or a factor) and then an offset.

    Sentinel-2 is cut at 0 where an offset was removed: the archives the models were trained on are
    unsigned.
    """
    if isinstance(scale, str):
        factor = 10.0 if scale == "db" else 20.0
        with np.errstate(invalid="ignore"):
            x = np.float32(factor) * np.log10(np.maximum(x, np.float32(_POWER_FLOOR)))
    elif scale != 1.0:
        x = x * np.float32(scale)
    if offset:
        x = x + np.float32(offset)
        if sensor == "sentinel2_l2a" and offset < 0:
            x = np.maximum(x, np.float32(0))
    return x


def _mask_clouds(layer: str, place: _Place, codes: NDArray[Any], out: FloatArray) -> None:
    clear = usable(layer, codes)
    if clear.all():
        return
    full = np.ones(out.shape[1:], dtype=bool)
    place.put(clear, full)
    out[:, ~full] = np.nan


_pools: dict[int, ThreadPoolExecutor] = {}


def _map(function: Any, jobs: Sequence[Any]) -> Any:
    """Files side by side: GDAL releases the interpreter while it decodes or waits for a server."""
    if len(jobs) < 2:
        return map(function, jobs)
    pid = os.getpid()
    if pid not in _pools:  # Threads do not survive a fork.
        _pools.clear()
        _pools[pid] = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "bocage-read")
    return _pools[pid].map(function, jobs)
