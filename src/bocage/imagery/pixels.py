"""From stored numbers to a window in product units: placing, nodata, units, clouds.

Bands keep their native pixels until the last step, so a 20 m band costs a quarter. Then each is
repeated to the grid by nearest neighbour: a grid pixel takes the source pixel that holds its
centre, as the models were trained.

No data, per group of bands with the same pixels: where any band holds the declared nodata value,
NaN or a code that is never data; without a declared nodata value, where all bands of the group are
zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

    def covers(self, shape_yx: ShapeYX) -> bool:
        """Whether the source fills the whole window."""
        return (len(self.source_rows), len(self.source_cols)) == shape_yx

    def put(self, source: NDArray[Any], out: NDArray[Any]) -> None:
        """Repeat source pixels [rows, cols] into a window [h, w]."""
        height, width = source.shape
        if (len(self.source_rows), len(self.source_cols)) == (height, width):
            out[self.target] = source
            return
        wide = source if len(self.source_cols) == width else source.take(self.source_cols, axis=1)
        if len(self.source_rows) == height:
            out[self.target] = wide
        elif self.covers((out.shape[0], out.shape[1])):
            # Cast the few source rows first; repeating whole rows is then a plain copy.
            np.take(wide.astype(out.dtype), self.source_rows, axis=0, out=out, mode="clip")
        else:
            out[self.target] = wide[self.source_rows]


def place(
    transform: Affine, shape_yx: ShapeYX, grid: Grid, rows: slice, cols: slice
) -> Place | None:
    """The place of a north-up source in a window of the grid, or None if it lies elsewhere."""
    g = grid.transform
    found = []
    for window, grid_edge, grid_step, edge, step, size in (
        (rows, g.f, g.e, transform.f, transform.e, shape_yx[0]),
        (cols, g.c, g.a, transform.c, transform.a, shape_yx[1]),
    ):
        centers = grid_edge + (np.arange(window.start, window.stop) + 0.5) * grid_step
        # The tiny shift settles centres that lie on an edge against rounding.
        index = np.floor((centers - edge) / step + 1e-6).astype(np.intp)
        inside = np.flatnonzero((index >= 0) & (index < size))
        if not inside.size:
            return None
        target = slice(int(inside[0]), int(inside[-1]) + 1)
        index = index[target]
        first, last = int(index[0]), int(index[-1])
        found.append((index - first, target, slice(first, last + 1)))
    (source_rows, target_rows, read_rows), (source_cols, target_cols, read_cols) = found
    return Place(source_rows, source_cols, (target_rows, target_cols), read_rows, read_cols)


def fill_window(
    sensor: str,
    pieces: Sequence[tuple[Stored, Place, NDArray[Any]]],
    out: FloatArray,
    mask: tuple[str, Place, NDArray[Any]] | None = None,
) -> None:
    """Write bands [rows, cols] at native pixels into a window ``out`` [C, h, w] in product units.

    ``mask`` is a quality layer: its name, place and codes. Bands without a piece become NaN.
    """
    order = {name: i for i, name in enumerate(SENSORS[sensor].band_names)}
    window = (out.shape[1], out.shape[2])
    if len(pieces) < len(order) or not all(where.covers(window) for _, where, _ in pieces):
        out.fill(np.nan)
    groups: dict[Any, list[tuple[Stored, Place, NDArray[Any]]]] = {}
    for piece in pieces:
        where = piece[1]
        key = (where.rows.start, where.cols.start, piece[2].shape, len(where.source_rows))
        groups.setdefault(key, []).append(piece)
    for members in groups.values():
        bad = _nodata(sensor, members)
        for band, where, array in members:
            x = array
            if (band.scale, band.offset) != (1.0, 0.0):
                x = to_units(array.astype(np.float32), sensor, band.scale, band.offset)
            if bad is not None:
                x = np.where(bad, np.float32(np.nan), x)
            where.put(x, out[order[band.band]])
    if mask is not None:
        name, where, codes = mask
        clear = usable(name, codes)
        if not clear.all():
            full = np.ones(window, dtype=bool)
            where.put(clear, full)
            out[:, ~full] = np.nan


def to_units(x: FloatArray, sensor: str, scale: float | str, offset: float) -> FloatArray:
    """Apply a scale and then an offset.

    "db" is 10 log10 of power and "db20" 20 log10 of amplitude; zero, which is what products write
    where there is no echo, becomes NaN. Sentinel-2 is cut at 0 where an offset is removed: the
    archives the models were trained on are unsigned.
    """
    if isinstance(scale, str):
        factor = np.float32(10 if scale == "db" else 20)
        none = x == 0
        x = factor * np.log10(np.maximum(x, np.float32(_POWER_FLOOR)))
        x[none] = np.nan
    elif scale != 1.0:
        x = x * np.float32(scale)
    if offset:
        x = x + np.float32(offset)
        if sensor == "sentinel2_l2a" and offset < 0:
            x = np.maximum(x, np.float32(0))
    return x


def _nodata(
    sensor: str, members: Sequence[tuple[Stored, Place, NDArray[Any]]]
) -> NDArray[np.bool_] | None:
    """Where a group of bands with the same pixels has no data, or None if nowhere."""
    bad: NDArray[np.bool_] | None = None
    for band, _, array in members:
        codes = {float(code) for code in (band.nodata, *_NEVER_DATA[sensor]) if code is not None}
        for here in (_equals(array, code) for code in codes):
            if here is not None:
                bad = here if bad is None else bad | here
        if array.dtype.kind == "f" and np.isnan(array).any():
            bad = np.isnan(array) if bad is None else bad | np.isnan(array)
    if sensor not in _ZERO_MEANS_NODATA or any(band.nodata is not None for band, _, _ in members):
        return bad
    zero = members[0][2] == 0
    for _, _, array in members[1:]:
        if not zero.any():
            break
        zero &= array == 0
    if zero.any():
        bad = zero if bad is None else bad | zero
    return bad


def _equals(array: NDArray[Any], code: float) -> NDArray[np.bool_] | None:
    """Where the array has a code, or None if nowhere; codes outside the type cost nothing."""
    if np.isnan(code):
        return None
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        if not limits.min <= code <= limits.max:
            return None
    here: NDArray[np.bool_] = array == array.dtype.type(code)
    return here if here.any() else None
