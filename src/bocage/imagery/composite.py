"""One image per period: the median of its dates, or the least cloudy one.

The models were trained on 30-day mosaics stamped with the first day of the period; composites are
stamped the same way, and all sensors share the periods.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError
from bocage.imagery.checks import sample
from bocage.imagery.reader import Reader, mark_gaps, reader_of
from bocage.imagery.stack import make_stack, stack_grid, stack_sensors

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from bocage.types import FloatArray

METHODS = ("median", "least_cloudy")


def composite(stack: xr.Dataset, *, period: str = "month", method: str = "median") -> xr.Dataset:
    """Reduce a Stack's dates to one per period, lazily; the stamp is the period's first day.

    ``period`` is "month", "year" or a number of days such as "30d", counted from the first date.
    ``method`` "median" takes per pixel and band the median of the usable values; "least_cloudy"
    takes the date with the most usable pixels (judged on a sample of the whole scene, so that
    windows agree) and fills its gaps from the next best. Periods without any date do not appear;
    a sensor without data in a period is NaN there. Raises ConfigError for other words.
    """
    if method not in METHODS:
        raise ConfigError(
            got=f"method={method!r}", expected=" or ".join(METHODS), fix="choose one of these"
        )
    sensors = stack_sensors(stack)
    dates = stack["time"].values.astype("datetime64[D]")
    starts = period_starts(dates, period)
    steps = np.unique(starts)
    groups = tuple(tuple(int(i) for i in np.flatnonzero(starts == step)) for step in steps)
    readers = {s: CompositeReader(reader_of(stack[s]), groups, method) for s in sensors}
    attrs = {
        k: v
        for k, v in stack.attrs.items()
        if k == "bocage_options" or not str(k).startswith("bocage_")
    }
    return make_stack(
        readers,
        grid=stack_grid(stack),
        dates=steps,
        sources=list(stack.attrs.get("bocage_sources", [])),
        dates_known=stack.attrs.get("bocage_dates") != "unknown",
        attrs={**attrs, "bocage_composite": f"{method} per {period}"},
    )


def period_starts(dates: NDArray[np.datetime64], period: str) -> NDArray[np.datetime64]:
    """The first day of the period of each date; ConfigError for an unknown period."""
    days = dates.astype("datetime64[D]")
    if period in ("month", "year"):
        return days.astype(f"datetime64[{'M' if period == 'month' else 'Y'}]").astype(days.dtype)
    match = re.fullmatch(r"([1-9]\d*)\s*d(ays?)?", period.strip().lower())
    if match is None:
        raise ConfigError(
            got=f"period={period!r}",
            expected='"month", "year" or a number of days such as "30d"',
            fix='pass period="month" (--composite month)',
        )
    length = np.timedelta64(int(match.group(1)), "D")
    first = days.min()
    result: NDArray[np.datetime64] = first + (days - first) // length * length
    return result


@dataclass(frozen=True)
class CompositeReader:
    """Groups of dates of another Reader as one image each."""

    parent: Reader
    groups: tuple[tuple[int, ...], ...]
    method: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Periods, bands, rows, columns."""
        return (len(self.groups), *self.parent.shape[1:])

    @property
    def present(self) -> tuple[bool, ...]:
        """Per period, whether any date has anything."""
        return tuple(any(self.parent.present[t] for t in group) for group in self.groups)

    def read(
        self,
        times: Sequence[int],
        rows: slice,
        cols: slice,
        out: FloatArray | None = None,
        gaps: NDArray[np.bool_] | None = None,
    ) -> FloatArray:
        """Values [len(times), C, rows, cols], in ``out`` if given; see `Reader` for ``gaps``."""
        if out is None:
            shape = (len(times), self.shape[1], rows.stop - rows.start, cols.stop - cols.start)
            out = np.empty(shape, dtype=np.float32)
        for image, time in zip(out, times, strict=True):
            group = [t for t in self.groups[time] if self.parent.present[t]]
            if len(group) == 1:
                self.parent.read(group, rows, cols, image[None], gaps)
                continue
            if group and self.method == "median":
                image[...] = nan_median(self.parent.read(group, rows, cols))
            else:
                image.fill(np.nan)
                order = self._clearest_first(time) if group else ()
                self._fill_in_order(order, rows, cols, image)
            if gaps is not None:
                mark_gaps(image[None], gaps)
        return out

    def _fill_in_order(
        self, group: Sequence[int], rows: slice, cols: slice, out: FloatArray
    ) -> None:
        for t in group:
            missing = np.isnan(out)
            if not missing.any():
                return
            np.copyto(out, self.parent.read([t], rows, cols)[0], where=missing)

    def _clearest_first(self, time: int) -> tuple[int, ...]:
        known: dict[int, tuple[int, ...]] = self.__dict__.setdefault("_order", {})
        if time not in known:
            group = [t for t in self.groups[time] if self.parent.present[t]]
            share = {t: float(np.isfinite(sample(self.parent, t)).mean()) for t in group}
            known[time] = tuple(sorted(group, key=lambda t: (-share[t], t)))
        return known[time]


def nan_median(x: FloatArray) -> FloatArray:
    """Median over the first axis of the finite values; NaN where there is none.

    As numpy.nanmedian, several times faster for few dates: NaN sorts to the end.
    """
    ordered = np.sort(x, axis=0)
    count = np.isfinite(x).sum(axis=0)
    if (count == len(x)).all():
        low, high = ordered[(len(x) - 1) // 2], ordered[len(x) // 2]
        return np.asarray((low + high) * np.float32(0.5))
    low_at, high_at = np.maximum(count - 1, 0) // 2, np.maximum(count, 1) // 2
    high_at = np.minimum(high_at, len(x) - 1)
    low = np.take_along_axis(ordered, low_at[None], axis=0)[0]
    high = np.take_along_axis(ordered, high_at[None], axis=0)[0]
    middle: Any = (low + high) * np.float32(0.5)
    return np.asarray(np.where(count == 0, np.float32(np.nan), middle))
