"""Open raster files, lent to one thread at a time: GDAL datasets must not be used by two at once.

Opening costs half a millisecond for a local TIFF and a request for a remote one, so datasets wait
here for the next thread that wants their file; only when all of a file are lent is it opened once
more. Failures become SourceError with the file's name, never nodata.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import SourceError

if TYPE_CHECKING:
    from bocage.geo import Grid

_MOST_IDLE = 384
"""Under the usual limit of 1024 open files, with what threads hold beside it."""


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


@dataclass
class _Shelf:
    """Datasets that nobody uses, those put back last at the end."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    idle: OrderedDict[Any, list[Any]] = field(default_factory=OrderedDict)
    count: int = 0

    def take(self, key: Any) -> Any:
        """The dataset of a key that was used last, or None."""
        with self.lock:
            waiting = self.idle.get(key)
            if not waiting:
                return None
            self.count -= 1
            found = waiting.pop()
            if not waiting:
                del self.idle[key]
            return found

    def put(self, key: Any, dataset: Any) -> None:
        """Keep a dataset, and close those that waited longest where there are too many."""
        old = []
        with self.lock:
            self.idle.setdefault(key, []).append(dataset)
            self.idle.move_to_end(key)
            self.count += 1
            while self.count > _MOST_IDLE:
                oldest, waiting = next(iter(self.idle.items()))
                old.append(waiting.pop(0))
                self.count -= 1
                if not waiting:
                    del self.idle[oldest]
        for closing in old:
            closing.close()


_shelves = [_Shelf()]
"""The one in use, and before it those of parent processes."""

if hasattr(os, "register_at_fork"):
    # A child must neither use the file handles of its parent nor close them.
    os.register_at_fork(after_in_child=lambda: _shelves.append(_Shelf()))


@contextmanager
def borrowed(
    path: str,
    stamp: tuple[int, int],
    warp_to: Grid | None = None,
    nodata: float | None = None,
) -> Iterator[Any]:
    """An open dataset of a path for this thread alone, or its nearest-neighbour warp onto a grid.

    ``stamp`` is that of the file when its header was read: a file that was rewritten since is
    opened again. A dataset whose reading failed is not used again.
    """
    key = (path, stamp, warp_to, nodata)
    dataset = _shelves[-1].take(key)
    if dataset is None:
        with source_errors(path, "opened"):
            dataset = _open(path, warp_to, nodata)
    try:
        yield dataset
    except BaseException:
        dataset.close()
        raise
    _shelves[-1].put(key, dataset)


def keep_open(dataset: Any, path: str, stamp: tuple[int, int]) -> None:
    """Hand over an open dataset, for whoever reads its pixels."""
    key = (path, stamp, None, None)
    # One that was read from before has decoded blocks in GDAL's cache.
    known = _shelves[-1].take(key)
    if known is not None:
        dataset.close()
    _shelves[-1].put(key, known or dataset)


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
