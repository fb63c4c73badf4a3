"""Reads windows of raster files onto the stack's grid.

Files in the grid's CRS are read at their own pixels; files in another CRS, or rotated, go through
GDAL's nearest-neighbour warp.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.imagery.handles import borrowed, source_errors
from bocage.imagery.mosaic import MosaicReader
from bocage.imagery.pixels import Place, fill_window, place
from bocage.imagery.rasters import Scene
from bocage.memory import share_one_arena

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray

    from bocage.geo import Grid
    from bocage.imagery.rasters import BandFile
    from bocage.types import FloatArray, ShapeYX

    _PixelGrid = tuple[Affine, ShapeYX]


@dataclass(frozen=True, kw_only=True)
class RasterReader(MosaicReader[Scene]):
    """One sensor of raster scenes."""

    def read_scene(
        self, scene: Scene, rows: slice, cols: slice, out: FloatArray
    ) -> NDArray[np.bool_] | None:
        """Fill ``out`` [C, h, w] from one scene; see `MosaicReader`."""
        by_file: dict[str, list[BandFile]] = {}
        for band in scene.bands.values():
            by_file.setdefault(band.header.path, []).append(band)
        files = list(by_file.values())
        places: dict[_PixelGrid, Place | None] = {}
        jobs = [job for bands in files if (job := self._job(bands, rows, cols, places))]
        if not jobs:
            return None
        if scene.mask is not None and self.cloud_mask:
            mask_job = self._job([scene.mask], rows, cols, places)
            jobs += [mask_job] if mask_job else []
        pieces, mask = [], None
        for job, arrays in zip(jobs, _map(_read_file, jobs), strict=True):
            if job.bands[0].is_cloud_mask:
                mask = (job.bands[0].band, job.place, arrays[0])
            else:
                pieces += [(b, job.place, a) for b, a in zip(job.bands, arrays, strict=True)]
        return fill_window(self.sensor, pieces, out, mask)

    def _job(
        self,
        bands: Sequence[BandFile],
        rows: slice,
        cols: slice,
        places: dict[_PixelGrid, Place | None],
    ) -> _Job | None:
        """What to read of a file; ``places`` keeps those of the files before, which are few."""
        header = bands[0].header
        warp = needs_warp(bands[0], self.grid)
        source = self.grid if warp else header
        pixels = (source.transform, source.shape_yx)
        if pixels not in places:
            places[pixels] = place(*pixels, self.grid, rows, cols)
        where = places[pixels]
        return _Job(bands, where, self.grid if warp else None) if where else None


@dataclass(frozen=True)
class _Job:
    """Bands of one file to read."""

    bands: Sequence[BandFile]
    place: Place
    warp_to: Grid | None


def needs_warp(band: BandFile, grid: Grid) -> bool:
    """Whether a file must go through GDAL's warp to lie on the grid."""
    return band.header.crs != grid.crs or not band.header.north_up


def _read_file(job: _Job) -> NDArray[Any]:
    from rasterio.windows import Window

    first, where = job.bands[0], job.place
    window = Window.from_slices(where.rows, where.cols)
    path = first.header.path
    nodata = _warp_nodata(first) if job.warp_to else None
    with (
        borrowed(path, first.header.stamp, job.warp_to, nodata) as source,
        source_errors(path, "read"),
    ):
        return np.asarray(source.read([band.index for band in job.bands], window=window))


def _warp_nodata(band: BandFile) -> float:
    if band.nodata is not None:
        return band.nodata
    return float("nan") if band.header.dtype.startswith("float") else 0.0


_pools: dict[int, ThreadPoolExecutor] = {}


def _map(function: Callable[[_Job], NDArray[Any]], jobs: Sequence[_Job]) -> Iterable[NDArray[Any]]:
    """Files side by side: GDAL releases the interpreter while it decodes or waits for a server.

    Where it does neither, passing pieces between threads takes longer than reading them.
    """
    if len(jobs) < 2 or all(j.bands[0].header.is_plain and not j.warp_to for j in jobs):
        return map(function, jobs)
    pid = os.getpid()
    if pid not in _pools:  # Threads do not survive a fork.
        _pools.clear()
        share_one_arena()
        _pools[pid] = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "bocage-read")
    return _pools[pid].map(function, jobs)
