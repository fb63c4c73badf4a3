"""One block: strips of the stack in, vectors of its windows out.

A block is read in strips of whole rows of windows, so that memory is bounded by the strip however
many dates and sensors there are. Windows are batched with others that miss the same things: windows
where nothing is missing go through the model without any mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from bocage.geo import Block, Window
from bocage.mapping.plan import EmbedPlan, WindowEncoder
from bocage.types import FloatArray

if TYPE_CHECKING:
    import xarray as xr

T = TypeVar("T", bound=np.generic)

STRIP_BYTES = 24_000_000
"""Imagery held per strip, as float32; each stream has about one in memory."""


FEW = 4
"""Runs of windows of less than a batch over this share one: a call costs more than a copy."""


@dataclass(frozen=True, kw_only=True)
class StripPlace:
    """Rows of windows of a block, and where the imagery under them lies on the stack's grid."""

    block: Block
    year: int
    number: int
    """Position among the strips of the block."""

    windows: tuple[Window, ...]
    rows: slice
    cols: slice


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Rows of windows with their imagery."""

    place: StripPlace
    values: dict[str, FloatArray]
    """{sensor: [T, C, rows, cols]}, NaN where missing or outside the scene."""

    timestamps: NDArray[np.int64]
    """[T, 3]: day, month from 0, year."""

    gaps: NDArray[np.bool_]
    """Pixels [rows, cols] where a band of any date is missing; what is False is complete."""


def strip_places(stack: xr.Dataset, plan: EmbedPlan, block: Block, year: int) -> list[StripPlace]:
    """The strips of a block, in order."""
    side = plan.layout.window_px
    groups = _group_rows(plan, block, len(dict(plan.steps)[year]), _n_bands(stack))
    return [
        StripPlace(
            block=block,
            year=year,
            number=number,
            windows=windows,
            rows=slice(windows[0].row_px, max(w.row_px for w in windows) + side),
            cols=slice(min(w.col_px for w in windows), max(w.col_px for w in windows) + side),
        )
        for number, windows in enumerate(groups)
    ]


def read_strip(stack: xr.Dataset, plan: EmbedPlan, place: StripPlace) -> Strip:
    """The imagery of a strip; SourceError when a file cannot be read."""
    from bocage.imagery import read_window, timestamps

    times = dict(plan.steps)[place.year]
    read = read_window(stack, place.rows, place.cols, times=times)
    return Strip(place=place, values=read.values, timestamps=timestamps(read.dates), gaps=read.gaps)


def batches(strip: Strip, plan: EmbedPlan) -> list[list[Window]]:
    """The windows of a strip as the model takes them; those without any data are left out."""
    groups = _group_by_missing(strip, plan.layout.window_px)
    return [batch for group in groups for batch in _split(group, plan.batch_size)]


def encode_batch(
    strip: Strip, windows: list[Window], plan: EmbedPlan, encoder: WindowEncoder
) -> FloatArray:
    """Vectors [B, h, w, D] of windows of a strip."""
    side = plan.layout.window_px
    values = {
        sensor: _gather(values, strip, windows, side) for sensor, values in strip.values.items()
    }
    return encoder(values, np.repeat(strip.timestamps[None], len(windows), axis=0))


def _split(windows: list[Window], n: int) -> list[list[Window]]:
    """Batches of at most ``n``: evenly spaced windows, which need no copy, and the rest."""
    batches, rest = [], []
    for run in _even_runs(windows):
        if len(run) * FEW < n:
            rest += run
        else:
            batches += _pieces(run, n)
    return batches + _pieces(rest, n)


def _pieces(windows: list[Window], n: int) -> list[list[Window]]:
    """Pieces of about equal length, at most ``n``."""
    n_pieces = -(-len(windows) // n)
    edges = [len(windows) * k // n_pieces for k in range(n_pieces + 1)] if n_pieces else []
    return [windows[start:stop] for start, stop in pairwise(edges)]


def _even_runs(windows: list[Window]) -> list[list[Window]]:
    """Consecutive windows with one step between them."""
    runs: list[list[Window]] = []
    for window in windows:
        run = runs[-1] if runs else []
        if len(run) > 1 and _step(*run[-2:]) != _step(run[-1], window):
            # Two windows are a run with any step: the second may begin a longer one.
            runs.append([run.pop(), window] if len(run) == 2 else [window])
        elif run:
            run.append(window)
        else:
            runs.append([window])
    return runs


def _step(a: Window, b: Window) -> tuple[int, int]:
    return b.row_px - a.row_px, b.col_px - a.col_px


def _group_by_missing(strip: Strip, side: int) -> list[list[Window]]:
    """Windows that miss the same bands and dates together; windows without data left out.

    A model can drop what a whole batch misses, and needs no mask where nothing is missing.
    """
    incomplete = strip.gaps[None, None]
    groups: dict[bytes, list[Window]] = {}
    for window in strip.place.windows:
        key = b""
        if _cut(incomplete, strip, window, side).any():
            gaps = [np.isnan(_cut(x, strip, window, side)) for x in strip.values.values()]
            absent = np.concatenate([gap.all(axis=(2, 3)).ravel() for gap in gaps])
            if absent.all():
                continue
            some = np.concatenate([gap.any(axis=(2, 3)).ravel() for gap in gaps])
            key = absent.tobytes() + (b"p" if (some & ~absent).any() else b"")
            key = key if any(key) else b""
        groups.setdefault(key, []).append(window)
    return list(groups.values())


def _gather(
    values: NDArray[np.float32], strip: Strip, windows: list[Window], side: int
) -> NDArray[np.float32]:
    """A batch of windows [B, T, C, side, side], which is not to be written to.

    Evenly spaced windows are a view of the strip, and nothing is copied.
    """
    steps = {_step(a, b) for a, b in pairwise(windows)}
    if len(steps) > 1:
        return np.stack([_cut(values, strip, window, side) for window in windows])
    down, across = steps.pop() if steps else (0, 0)
    first = _cut(values, strip, windows[0], side)
    stride = down * values.strides[2] + across * values.strides[3]
    return as_strided(first, (len(windows), *first.shape), (stride, *first.strides))


def _n_bands(stack: xr.Dataset) -> int:
    return sum(int(array.shape[1]) for array in stack.data_vars.values())


def _group_rows(
    plan: EmbedPlan, block: Block, n_steps: int, n_bands: int
) -> list[tuple[Window, ...]]:
    windows = list(plan.layout.windows(block))
    rows: dict[int, list[Window]] = {}
    for window in windows:
        rows.setdefault(window.core_row_px, []).append(window)
    width_px = block.shape_yx[1] + 2 * plan.layout.window_px
    bytes_per_row = 4 * n_steps * n_bands * width_px * plan.layout.core_px
    per_strip = max(1, STRIP_BYTES // bytes_per_row)
    keys = sorted(rows)
    return [
        tuple(w for key in keys[i : i + per_strip] for w in rows[key])
        for i in range(0, len(keys), per_strip)
    ]


def _cut(values: NDArray[T], strip: Strip, window: Window, side: int) -> NDArray[T]:
    row, col = window.row_px - strip.place.rows.start, window.col_px - strip.place.cols.start
    return values[:, :, row : row + side, col : col + side]
