"""From stored numbers to a window in product units: placing, nodata, units, clouds.

Bands keep their native pixels until the last step, so a 20 m band costs a quarter. Then each is
repeated to the grid by nearest neighbour: a grid pixel takes the source pixel that holds its
centre, as the models were trained.

No data, per group of bands with the same pixels: where any band holds the declared nodata value,
NaN or a code that is never data; without a declared nodata value, where all bands of the group are
zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bocage.imagery.clouds import usable
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray

    from bocage.geo import Grid
    from bocage.types import FloatArray, ShapeYX

_NEVER_DATA = {
    # 65535 marks saturated or missing Sentinel-2 pixels; for Landsat it is a bright cloud.
    "sentinel2_l2a": (65535, -9999, -32768, -99999),
    "sentinel1": (65535, -9999, -32768, -99999),
    "landsat": (-9999, -32768, -99999),
}
_ZERO_MEANS_NODATA = ("sentinel2_l2a", "landsat")

_DOUBLES = {
    2: (np.uint16, np.uint32, np.uint32(0x1_0001)),
    4: (np.uint32, np.uint64, np.uint64(0x1_0000_0001)),
}
"""Per bytes of a number: its type, that of twice the bytes, and the factor that repeats it."""

_POWER_FLOOR = 1e-10
"""Smallest power before the logarithm, as in the models' training data (-100 dB)."""


class Stored(Protocol):
    """A band as it is stored: what its numbers mean."""

    @property
    def band(self) -> str:
        """Band name of sensors.py, or the name of a quality layer."""

    @property
    def nodata(self) -> float | None:
        """The declared nodata value."""

    @property
    def scale(self) -> float | str:
        """Multiplies first; "db" and "db20" take a logarithm instead."""

    @property
    def offset(self) -> float:
        """Added last, in product units."""


@dataclass(frozen=True)
class Repeats:
    """Source pixels that each come ``times`` times in a row, the first one ``head`` times."""

    head: int
    times: int


@dataclass(frozen=True)
class Place:
    """Where a source's pixels fall in a window of the grid."""

    source_rows: NDArray[np.intp]
    """For each covered row of the window, the row inside ``rows``."""

    source_cols: NDArray[np.intp]
    """For each covered column of the window, the column inside ``cols``."""

    target: tuple[slice, slice]
    """The covered part of the window."""

    rows: slice
    """Rows to read from the source."""

    cols: slice
    """Columns to read from the source."""

    row_repeats: Repeats | None = None
    """The pattern of ``source_rows``, where there is one."""

    col_repeats: Repeats | None = None
    """The pattern of ``source_cols``, where there is one."""

    def put(self, source: NDArray[Any], out: NDArray[Any]) -> None:
        """Repeat source pixels [rows, cols] into a window [h, w]."""
        self.repeat(source, out[self.target])

    def repeat(self, source: NDArray[Any], out: NDArray[Any]) -> None:
        """Repeat source pixels [rows, cols] into the covered part of a window."""
        wide = _repeat_columns(source, self.source_cols, self.col_repeats)
        _repeat_rows(wide, self.source_rows, self.row_repeats, out)

    def blank_around(self, out: NDArray[Any], value: float = np.nan) -> None:
        """Write a value into the part of a window [h, w] that the source does not cover."""
        rows, cols = self.target
        out[: rows.start] = value
        out[rows.stop :] = value
        out[rows, : cols.start] = value
        out[rows, cols.stop :] = value

    def is_one_to_one(self, source: NDArray[Any]) -> bool:
        """Whether the source has the pixels of the grid."""
        return source.shape == (len(self.source_rows), len(self.source_cols))


def _repeat_columns(
    source: NDArray[Any], index: NDArray[np.intp], repeats: Repeats | None
) -> NDArray[Any]:
    if len(index) == source.shape[1]:
        return source
    unsigned = _DOUBLES.get(source.dtype.itemsize)
    if unsigned is None or repeats is None or repeats.times != 2:
        return source.take(index, axis=1)
    # A number beside itself is a number of twice the bytes: a fifth of the time of take().
    narrow, double, factor = unsigned
    twice = source.view(narrow).astype(double)
    twice *= factor
    start = 2 - repeats.head
    return twice.view(source.dtype)[:, start : start + len(index)]


def _repeat_rows(
    wide: NDArray[Any], index: NDArray[np.intp], repeats: Repeats | None, out: NDArray[Any]
) -> None:
    if len(index) == len(wide):
        out[...] = wide
        return
    if repeats is None:
        out[...] = wide[index]
        return
    head, times = repeats.head, repeats.times
    groups = (len(out) - head) // times
    tail = head + groups * times
    out[:head] = wide[0]
    # Splitting the rows of an array never copies it, so this writes into the window.
    out[head:tail].reshape(groups, times, out.shape[1])[...] = wide[1 : 1 + groups, None]
    out[tail:] = wide[-1]


def place(
    transform: Affine, shape_yx: ShapeYX, grid: Grid, rows: slice, cols: slice
) -> Place | None:
    """The place of a north-up source in a window of the grid, or None if it lies elsewhere."""
    g = grid.transform
    down = _along(rows.start, rows.stop, g.f, g.e, transform.f, transform.e, shape_yx[0])
    across = _along(cols.start, cols.stop, g.c, g.a, transform.c, transform.a, shape_yx[1])
    if down is None or across is None:
        return None
    return Place(
        source_rows=down.index,
        source_cols=across.index,
        target=(down.target, across.target),
        rows=down.read,
        cols=across.read,
        row_repeats=down.repeats,
        col_repeats=across.repeats,
    )


@dataclass(frozen=True)
class _Along:
    """A place along one axis."""

    index: NDArray[np.intp]
    target: slice
    read: slice
    repeats: Repeats | None


@lru_cache(maxsize=128)
def _along(  # noqa: PLR0917 - the same six numbers of each axis
    start: int,
    stop: int,
    grid_edge: float,
    grid_step: float,
    edge: float,
    step: float,
    size: int,
) -> _Along | None:
    """Where pixels start to stop of the grid find themselves among ``size`` pixels of a source.

    Kept, because bands share their pixels and the windows of a row or column their edges.
    """
    centers = grid_edge + (np.arange(start, stop) + 0.5) * grid_step
    # The tiny shift settles centres that lie on an edge against rounding.
    index = np.floor((centers - edge) / step + 1e-6).astype(np.intp)
    inside = np.flatnonzero((index >= 0) & (index < size))
    if not inside.size:
        return None
    target = slice(int(inside[0]), int(inside[-1]) + 1)
    index = index[target]
    first, last = int(index[0]), int(index[-1])
    index -= first
    return _Along(index, target, slice(first, last + 1), _repeats(index))


def _repeats(index: NDArray[np.intp]) -> Repeats | None:
    """The pattern of 0 0 1 1 1 2 2 2 3 ...; None where counts differ, or there is one pixel."""
    head, second = (int(n) for n in np.searchsorted(index, (1, 2)))
    times = second - head
    if not head <= times:
        return None
    follows: bool = np.array_equal(index, (np.arange(len(index)) + times - head) // times)
    return Repeats(head, times) if follows else None


def fill_window(
    sensor: str,
    pieces: Sequence[tuple[Stored, Place, NDArray[Any]]],
    out: FloatArray,
    mask: tuple[str, Place, NDArray[Any]] | None = None,
) -> NDArray[np.bool_]:
    """Write bands [rows, cols] at native pixels into a window ``out`` [C, h, w] in product units.

    ``mask`` is a quality layer: its name, place and codes. Bands without a piece become NaN.
    Returns where a band is NaN [h, w].
    """
    order = {name: i for i, name in enumerate(SENSORS[sensor].band_names)}
    absent = order.keys() - {band.band for band, _, _ in pieces}
    for name in absent:
        out[order[name]] = np.nan
    gaps = np.full(out.shape[1:], bool(absent))
    groups: dict[Any, list[tuple[Stored, Place, NDArray[Any]]]] = {}
    for piece in pieces:
        where = piece[1]
        key = (where.rows.start, where.cols.start, piece[2].shape, len(where.source_rows))
        groups.setdefault(key, []).append(piece)
    for members in groups.values():
        for band, where, array in members:
            into = out[order[band.band]]
            where.blank_around(into)
            where.blank_around(gaps, value=True)
            if (band.scale, band.offset) == (1.0, 0.0):
                where.put(array, into)
            elif where.is_one_to_one(array):
                to_units(array, sensor, band.scale, band.offset, out=into[where.target])
            else:
                where.put(to_units(array, sensor, band.scale, band.offset), into)
            if isinstance(band.scale, str):  # A logarithm finds more that is no data.
                gaps |= np.isnan(into)
        bad = _nodata(sensor, members)
        if bad is not None:
            # Bands that share the pixels read may still lie a fraction of a pixel apart.
            for where in {id(where): where for _, where, _ in members}.values():
                mine = [out[order[band.band]] for band, place, _ in members if place is where]
                _blank(bad, where, mine, gaps)
    if mask is not None:
        layer, where, codes = mask
        clear = usable(layer, codes)
        if not clear.all():
            _blank(~clear, where, out, gaps)
    return gaps


def _blank(
    bad: NDArray[np.bool_], where: Place, bands: Iterable[FloatArray], gaps: NDArray[np.bool_]
) -> None:
    """Write NaN into windows [h, w] where a source pixel is bad, and note it."""
    holes = np.empty((len(where.source_rows), len(where.source_cols)), bool)
    where.repeat(bad, holes)
    rows = np.flatnonzero(holes.any(axis=1))
    if not rows.size:
        return  # a grid coarser than the source passes pixels over
    some = slice(int(rows[0]), int(rows[-1]) + 1)
    gaps[where.target][some] |= holes[some]
    # The maximum with -inf is the value itself, with NaN it is NaN: a masked copy takes as long
    # for one hole and ten times as long for many small ones.
    floor = np.where(holes[some], np.float32(np.nan), np.float32(-np.inf))
    for band in bands:
        part = band[where.target][some]
        np.maximum(part, floor, out=part)


def to_units(
    x: NDArray[Any], sensor: str, scale: float | str, offset: float, out: FloatArray | None = None
) -> FloatArray:
    """Stored numbers as float32 with a scale and then an offset applied, in ``out`` if given.

    "db" is 10 log10 of power and "db20" 20 log10 of amplitude; zero, which is what products write
    where there is no echo, becomes NaN. Sentinel-2 is cut at 0 where an offset is removed: the
    archives the models were trained on are unsigned.
    """
    out = np.empty(x.shape, np.float32) if out is None else out
    out[...] = x
    if isinstance(scale, str):
        none = out == 0
        np.maximum(out, np.float32(_POWER_FLOOR), out=out)
        np.log10(out, out=out)
        out *= np.float32(10 if scale == "db" else 20)
        out[none] = np.nan
    elif scale != 1.0:
        out *= np.float32(scale)
    if offset:
        out += np.float32(offset)
        if sensor == "sentinel2_l2a" and offset < 0:
            np.maximum(out, np.float32(0), out=out)
    return out


def _nodata(
    sensor: str, members: Sequence[tuple[Stored, Place, NDArray[Any]]]
) -> NDArray[np.bool_] | None:
    """Where a group of bands with the same pixels has no data, or None if nowhere."""
    bad: NDArray[np.bool_] | None = None
    # Least and greatest values take a tenth of the time of looking for each code.
    with np.errstate(invalid="ignore"):
        spans = [(array.min().item(), array.max().item()) for _, _, array in members]
    for (band, _, array), span in zip(members, spans, strict=True):
        codes = {float(code) for code in (band.nodata, *_NEVER_DATA[sensor]) if code is not None}
        here = [found for code in codes if (found := _equals(array, code, span)) is not None]
        if array.dtype.kind == "f" and np.isnan(span[0]):
            here.append(np.isnan(array))
        for found in here:
            bad = found if bad is None else bad | found
    if sensor not in _ZERO_MEANS_NODATA or any(band.nodata is not None for band, _, _ in members):
        return bad
    if any(least > 0 or greatest < 0 for least, greatest in spans):
        return bad
    zero = members[0][2] == 0
    for _, _, array in members[1:]:
        if not zero.any():
            break
        zero &= array == 0
    if zero.any():
        bad = zero if bad is None else bad | zero
    return bad


def _equals(array: NDArray[Any], code: float, span: tuple[Any, Any]) -> NDArray[np.bool_] | None:
    """Where an array of known least and greatest values has a code, or None if nowhere."""
    if np.isnan(code):
        return None
    value = code if array.dtype.kind in "iu" else array.dtype.type(code).item()
    if value < span[0] or value > span[1]:
        return None  # not where an end is NaN
    here: NDArray[np.bool_] = array == array.dtype.type(code)
    return here if here.any() else None
