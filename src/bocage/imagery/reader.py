"""What every kind of source gives: a Reader of one sensor on the stack's grid.

A Stack is a plain xarray Dataset on dask. Its dask arrays wrap Readers, and ``reader_of`` finds the
Reader again from the array's name, so that ``read_window`` can read exactly the wanted pixels
without a task graph. An array that was changed in any way has another name, and is then computed by
dask like any other: slower, never wrong.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from bocage.types import FloatArray


class Reader(Protocol):
    """One sensor of a stack: values in product units, NaN where there is no usable data."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Times, bands, rows, columns."""

    @property
    def present(self) -> tuple[bool, ...]:
        """Per time, whether the sensor has anything there; elsewhere all is NaN unread."""

    def read(
        self,
        times: Sequence[int],
        rows: slice,
        cols: slice,
        out: FloatArray | None = None,
        gaps: NDArray[np.bool_] | None = None,
    ) -> FloatArray:
        """Values [len(times), C, rows, cols] inside the scene; SourceError on failure.

        They are written into ``out`` if it is given: part of a larger array, for example. ``gaps``
        [rows, cols], if given, becomes True wherever one of them is NaN, and seldom elsewhere: who
        reads the numbers knows that without looking at all of them again.
        """


GAP_ROWS = 16
"""Rows of pixels that are added up over bands and dates together: their sums stay in the cache."""


def mark_gaps(x: FloatArray, gaps: NDArray[np.bool_]) -> None:
    """Write True into ``gaps`` [H, W] where values [T, C, H, W] are NaN or infinite."""
    # A sum is finite unless something in it is missing.
    with np.errstate(invalid="ignore", over="ignore"):
        for top in range(0, x.shape[2], GAP_ROWS):
            rows = slice(top, top + GAP_ROWS)
            gaps[rows] |= ~np.isfinite(x[:, :, rows].sum(axis=(0, 1)))


_LAZY: WeakValueDictionary[str, LazyArray] = WeakValueDictionary()
_LAZY_LOCK = threading.Lock()


class LazyArray:
    """A Reader that dask can slice; registers itself so that reader_of finds it."""

    dtype = np.dtype(np.float32)
    ndim = 4

    def __init__(self, reader: Reader, name: str) -> None:
        self.reader = reader
        self.name = name
        self.shape = reader.shape
        with _LAZY_LOCK:
            _LAZY[name] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyArray, (self.reader, self.name)

    def __getitem__(self, key: tuple[Any, ...]) -> FloatArray:
        # dask fuses selections into the read, so a key may hold numbers, steps and lists too.
        picks = [np.arange(n)[k] for k, n in zip(key, self.shape, strict=True)]
        times, bands, rows, cols = (np.atleast_1d(pick) for pick in picks)
        shape = (len(times), len(bands), len(rows), len(cols))
        if 0 in shape:
            x = np.empty(shape, np.float32)
        else:
            down, across = (slice(int(r.min()), int(r.max()) + 1) for r in (rows, cols))
            x = self.reader.read([int(t) for t in times], down, across)
            for axis, wanted in ((1, bands), (2, rows - rows.min()), (3, cols - cols.min())):
                if not np.array_equal(wanted, np.arange(x.shape[axis])):
                    x = x.take(wanted, axis=axis)
        return x[tuple(0 if pick.ndim == 0 else slice(None) for pick in picks)]


_CHUNK = 512
"""Pixels per side of a dask chunk: 12 bands of one date are 12.6 MB."""

_MANY_CHUNKS = 20_000
"""Beyond this a task graph costs seconds before anything is read, so chunks grow."""


def lazy_array(reader: Reader, label: str) -> Any:
    """A dask array [T, C, H, W] over a Reader, one chunk per date and square of pixels."""
    import dask.array as da

    times, bands, height, width = reader.shape
    chunk = _CHUNK
    while times * -(-height // chunk) * -(-width // chunk) > _MANY_CHUNKS and chunk < 4096:
        chunk *= 2
    name = f"stack-{label}-{uuid.uuid4().hex}"
    return da.from_array(
        LazyArray(reader, name),
        chunks=(1, bands, chunk, chunk),
        name=name,
        asarray=False,
        inline_array=True,
        meta=np.empty((0, 0, 0, 0), np.float32),
    )


def reader_of(variable: xr.DataArray) -> Reader:
    """The Reader behind a stack's variable, or one that computes the variable with dask."""
    name = getattr(variable.variable._data, "name", None)
    with _LAZY_LOCK:
        lazy = _LAZY.get(name) if isinstance(name, str) else None
    if lazy is not None and lazy.shape == variable.shape:
        return lazy.reader
    return ArrayReader(variable)


class ArrayReader:
    """Reads from the values of an xarray variable [T, C, H, W], whatever holds them."""

    def __init__(self, variable: xr.DataArray) -> None:
        self.variable = variable
        times, bands, rows, cols = variable.shape
        self.shape: tuple[int, int, int, int] = (times, bands, rows, cols)
        self.present: tuple[bool, ...] = (True,) * times

    def read(
        self,
        times: Sequence[int],
        rows: slice,
        cols: slice,
        out: FloatArray | None = None,
        gaps: NDArray[np.bool_] | None = None,
    ) -> FloatArray:
        """Values [len(times), C, rows, cols], in ``out`` if given; see `Reader` for ``gaps``."""
        time, _, y, x = self.variable.dims
        part = self.variable.isel({time: list(times), y: rows, x: cols}).values
        if out is None:
            out = np.asarray(part, dtype=np.float32)
        else:
            out[...] = part
        if gaps is not None:
            mark_gaps(out, gaps)
        return out


@dataclass(frozen=True)
class SubsetReader:
    """Some dates and a rectangle of another Reader."""

    parent: Reader
    times: tuple[int, ...]
    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Times, bands, rows, columns."""
        return (
            len(self.times),
            self.parent.shape[1],
            self.rows.stop - self.rows.start,
            self.cols.stop - self.cols.start,
        )

    @property
    def present(self) -> tuple[bool, ...]:
        """As in the parent."""
        return tuple(self.parent.present[t] for t in self.times)

    def read(
        self,
        times: Sequence[int],
        rows: slice,
        cols: slice,
        out: FloatArray | None = None,
        gaps: NDArray[np.bool_] | None = None,
    ) -> FloatArray:
        """Values [len(times), C, rows, cols] of the parent, shifted, in ``out`` if given."""
        return self.parent.read(
            [self.times[t] for t in times],
            slice(rows.start + self.rows.start, rows.stop + self.rows.start),
            slice(cols.start + self.cols.start, cols.stop + self.cols.start),
            out,
            gaps,
        )
