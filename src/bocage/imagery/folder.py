"""Folders and lists of raster files: GeoTIFF, JPEG 2000, VRT, ENVI and the like."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import InputError, SourceError
from bocage.imagery.mosaic import Found, readers_of
from bocage.imagery.opened import Opened, OpenOptions
from bocage.imagery.raster_reader import RasterReader
from bocage.imagery.rasters import find_bands, make_scenes, read_header
from bocage.imagery.reference import check_compact, choose_grid

if TYPE_CHECKING:
    from bocage.imagery.rasters import RasterHeader

log = logging.getLogger(__name__)

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".j2k")


def list_rasters(folder: str) -> list[str]:
    """All raster files in and under a folder, in name order; InputError if there is none."""
    found = sorted(
        str(p)
        for p in Path(folder).rglob("*")
        if p.suffix.lower() in RASTER_SUFFIXES
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )
    if not found:
        raise InputError(
            got=f"folder {folder} without raster files",
            expected=f"files ending in {', '.join(RASTER_SUFFIXES)}",
            fix="pass the folder that holds the band files, or a list of files",
        )
    return found


def open_rasters(
    paths: Sequence[str],
    options: OpenOptions,
    *,
    roots: Sequence[str] = (),
    dates: Sequence[Any] | None = None,
) -> Opened:
    """Readers over raster files, one per sensor found in them."""
    headers = _readable(paths)
    if dates is not None and len(dates) != len(headers):
        raise InputError(
            got=f"{len(dates)} dates for {len(headers)} files",
            expected="one date, or one per file in the same order",
            fix="pass date= (--date) once, or as a list as long as the files",
        )
    found, level_1c = find_bands(headers, options, roots=roots, dates=dates)
    if options.sensor is not None:
        found = [band for band in found if band.sensor == options.sensor]
    scenes = make_scenes(found)
    # The finest band says where a scene lies; coarser ones may reach further or less far.
    finest = list(dict.fromkeys(scene.finest.header for scene in scenes))
    grid = choose_grid(finest, crs=options.crs, resolution_m=options.resolution_m)
    if options.bbox is None:
        check_compact(finest, grid)
    known = all(scene.date is not None for scene in scenes)
    if not known and any(scene.date is not None for scene in scenes):
        missing = next(s for s in scenes if s.date is None).finest.header.path
        raise InputError(
            got=f"files with and without dates ({missing} has none)",
            expected="a date for every file, or for none",
            fix="pass date= (--date) with one date per file, or put dates in the names",
        )
    steps, readers, missing_bands = readers_of(
        [Found(s.sensor, s.date, s.bands, s) for s in scenes],
        RasterReader,
        grid=grid,
        cloud_mask=options.cloud_mask,
    )
    return Opened(
        readers=readers,
        grid=grid,
        dates=steps,
        dates_known=known,
        sources=list(dict.fromkeys(band.header.path for band in found)),
        missing_bands=missing_bands,
        level_1c=level_1c,
        offset_settled=all(
            b.offset_settled
            for s in scenes
            if s.sensor == "sentinel2_l2a"
            for b in s.bands.values()
        ),
        masks={s.sensor: s.mask.band for s in scenes if s.mask and options.cloud_mask},
    )


def _readable(paths: Sequence[str]) -> list[RasterHeader]:
    if not paths:
        raise SourceError(got="no files", expected="at least one raster file", fix="check the list")
    return [read_header(str(path)) for path in paths]
