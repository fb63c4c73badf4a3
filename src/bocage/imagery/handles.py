"""Open raster files, kept per thread: GDAL datasets must not be shared between threads.

Opening costs milliseconds for a local TIFF and a request for a remote one, so each thread keeps the
files it used last. Failures become SourceError with the file's name, never nodata.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import SourceError

if TYPE_CHECKING:
    from bocage.geo import Grid

_KEPT_PER_THREAD = 96
"""Under the usual limit of 1024 open files, also with ten reading threads."""

_local = threading.local()


@contextmanager
def source_errors(path: str, doing: str) -> Iterator[None]:
    """Turn what rasterio raises into a SourceError that names the file."""
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise SourceError(
            got=f"{path}, which cannot be {doing} ({reason})",
            expected="a complete, readable raster",
            fix="fetch or copy the file again, or leave it out",
        ) from error


@contextmanager
def quiet_gdal() -> Iterator[None]:
    """No warning for files without a georeference: bocage says it in its own words."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def file_stamp(path: str) -> tuple[int, int]:
    """Size and time of a local file, (0, 0) of others: tells a rewritten file from the open one."""
    try:
        status = Path(path).stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def dataset(
    path: str,
    stamp: tuple[int, int],
    warp_to: Grid | None = None,
    nodata: float | None = None,
) -> Any:
    """The open dataset of a path in this thread, or its nearest-neighbour warp onto a grid."""
    cache = _cache()
    key = (path, stamp, warp_to, nodata)
    if key in cache:
        cache.move_to_end(key)
        return cache[key]
    with source_errors(path, "opened"):
        opened = _open(path, warp_to, nodata)
    cache[key] = opened
    while len(cache) > _KEPT_PER_THREAD:
        _, old = cache.popitem(last=False)
        old.close()
    return opened


def _open(path: str, warp_to: Grid | None, nodata: float | None) -> Any:
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    # Listing a remote folder costs a request per file and helps nobody.
    options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if "://" in path else {}
    with rasterio.Env(**options):
        source = rasterio.open(path)
    if warp_to is None:
        return source
    rows, cols = warp_to.shape_yx
    return WarpedVRT(
        source,
        crs=warp_to.crs,
        transform=warp_to.transform,
        width=cols,
        height=rows,
        resampling=Resampling.nearest,
        src_nodata=nodata,
        nodata=nodata,
    )


def _cache() -> OrderedDict[Any, Any]:
    # A forked child must not use the parent's file handles.
    if getattr(_local, "pid", None) != os.getpid():
        _local.pid = os.getpid()
        _local.cache = OrderedDict()
    cache: OrderedDict[Any, Any] = _local.cache
    return cache
