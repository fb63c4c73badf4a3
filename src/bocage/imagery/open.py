"""open_stack: from any source of imagery to a Stack."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import SourceError
from bocage.imagery.checks import check_opened
from bocage.imagery.opened import Opened, OpenOptions
from bocage.sensors import sensor as sensor_table

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger(__name__)


def open_stack(
    source: Any,
    *,
    sensor: str | None = None,
    bands: Any = None,
    date: Any = None,
    crs: str | None = None,
    resolution_m: float = 10.0,
    bbox: tuple[float, float, float, float] | None = None,
    bbox_crs: str = "EPSG:4326",
    scale: Any = None,
    offset: Any = None,
    cloud_mask: bool = True,
    level: str | None = None,
) -> xr.Dataset:
    """Open satellite imagery as a Stack, lazily: one 10 m grid, product units, NaN for no data.

    ``source`` is a folder, a raster file or a list of them. TODO
    """
    if sensor is not None:
        sensor_table(sensor)
    options = OpenOptions(
        sensor=sensor,
        bands=bands,
        date=date,
        crs=crs,
        resolution_m=resolution_m,
        bbox=bbox,
        bbox_crs=bbox_crs,
        scale=scale,
        offset=offset,
        cloud_mask=cloud_mask,
        level=level,
    )
    opened = _open(source, options)
    if bbox is not None:
        opened = _crop(opened, options)
    check_opened(opened, options)
    from bocage.imagery.stack import make_stack

    return make_stack(
        opened.readers,
        grid=opened.grid,
        dates=opened.dates,
        sources=opened.sources,
        dates_known=opened.dates_known,
    )


def _open(source: Any, options: OpenOptions) -> Opened:
    from bocage.imagery.folder import list_rasters, open_rasters

    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            return open_rasters(list_rasters(str(path)), options, roots=[str(path)])
        return open_rasters([str(source)], options, roots=[str(path.parent)])
    if isinstance(source, Sequence):
        dates = options.date if isinstance(options.date, list | tuple) else None
        single = replace(options, date=None) if dates is not None else options
        return open_rasters([str(p) for p in source], single, dates=dates)
    raise SourceError(
        got=f"a source of type {type(source).__name__}",
        expected="a path, a list of paths, an xarray Dataset or STAC items",
        fix="see help(bocage.open_stack)",
    )


def _crop(opened: Opened, options: OpenOptions) -> Opened:
    from bocage.imagery.reader import SubsetReader
    from bocage.imagery.reference import crop_ranges

    assert options.bbox is not None
    rows, cols = crop_ranges(opened.grid, options.bbox, options.bbox_crs)
    times = tuple(range(len(opened.dates)))
    return replace(
        opened,
        grid=opened.grid.crop(rows, cols),
        readers={name: SubsetReader(r, times, rows, cols) for name, r in opened.readers.items()},
    )
