"""A piece of a Stack in memory, as the models take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bocage.errors import InputError
from bocage.imagery.reader import reader_of
from bocage.imagery.stack import stack_sensors

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from bocage.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Window:
    """Values and dates of a rectangle of a Stack."""

    values: dict[str, FloatArray]
    """Per sensor [T, C, H, W] in product units; NaN where there is no usable data."""

    dates: NDArray[np.datetime64]
    """Days [T]."""

    gaps: NDArray[np.bool_]
    """Pixels [H, W] where a value of any sensor and date is NaN; seldom more, never fewer."""


def read_window(
    stack: xr.Dataset, rows: slice, cols: slice, *, times: Sequence[int] | None = None
) -> Window:
    """Load pixels of all sensors; NaN outside the scene, where ranges may reach (halo).

    ``rows`` and ``cols`` count from the stack's upper left pixel; a negative start is outside, not
    from the end. ``times`` are indices of dates, None for all: faster than a stack of some dates,
    which xarray reads through a task graph. Only the wanted pixels are read. Raises SourceError
    when a file cannot be read.
    """
    sensors = stack_sensors(stack)
    height, width = stack.sizes["y"], stack.sizes["x"]
    wanted = []
    for name, part, size in (("rows", rows, height), ("cols", cols, width)):
        start = 0 if part.start is None else int(part.start)
        stop = size if part.stop is None else int(part.stop)
        if part.step not in (None, 1) or stop <= start:
            raise InputError(
                got=f"{name}={part}",
                expected="a range start < stop with step 1",
                fix="read the whole range and subset it afterwards",
            )
        wanted.append((start, stop, max(start, 0), min(stop, size)))
    (r0, r1, top, bottom), (c0, c1, left, right) = wanted
    times = range(stack.sizes["time"]) if times is None else times
    values: dict[str, FloatArray] = {}
    gaps = np.ones((r1 - r0, c1 - c0), bool)
    known = gaps[max(0, top - r0) : max(0, bottom - r0), max(0, left - c0) : max(0, right - c0)]
    known[...] = False
    for sensor in sensors:
        reader = reader_of(stack[sensor])
        inside = top < bottom and left < right
        if inside and (top, bottom, left, right) == (r0, r1, c0, c1):
            values[sensor] = reader.read(times, slice(top, bottom), slice(left, right), gaps=known)
            continue
        shape = (len(times), reader.shape[1], r1 - r0, c1 - c0)
        x = np.empty(shape, dtype=np.float32)
        if inside:
            x[:, :, : top - r0] = np.nan
            x[:, :, bottom - r0 :] = np.nan
            x[:, :, :, : left - c0] = np.nan
            x[:, :, :, right - c0 :] = np.nan
            scene = x[:, :, top - r0 : bottom - r0, left - c0 : right - c0]
            reader.read(times, slice(top, bottom), slice(left, right), scene, known)
        else:
            x.fill(np.nan)
        values[sensor] = x
    dates = stack["time"].values[list(times)].astype("datetime64[D]")
    return Window(values=values, dates=dates, gaps=gaps)
