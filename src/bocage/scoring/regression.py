"""Scores of numbers: R2, MAE, RMSE, bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError
from bocage.scoring.accumulator import N_SLOTS, Accumulator, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from numpy.typing import ArrayLike, NDArray


class Regression(Accumulator):
    """Predicted against true numbers: r2, mae (L1), rmse, bias (mean of prediction - target)."""

    def __init__(self, *, center: float = 0.0, n_slots: int = N_SLOTS) -> None:
        # R2 subtracts two sums of squares; a center near the targets keeps digits for numbers that
        # are large and vary little (dates, elevations).
        self.center = center
        names = ("error", "absolute", "squared", "y", "y2")
        super().__init__({f"sum_{name}": () for name in names}, n_slots)

    def update(
        self,
        prediction: ArrayLike,
        target: ArrayLike,
        *,
        block: ArrayLike | None = None,
        ignore_nan: bool = False,
    ) -> Self:
        """Add numbers: samples [n], one map [H, W], or images [B, H, W].

        `block` as in Confusion.update. NaN among targets is refused unless `ignore_nan`; NaN among
        predictions of a known target always is.
        """
        p, t = np.asarray(prediction), np.asarray(target)
        if p.shape != t.shape or t.ndim == 0 or not {p.dtype.kind, t.dtype.kind} <= set("biuf"):
            raise InputError(
                got=f"predictions {p.shape} of {p.dtype} and targets {t.shape} of {t.dtype}",
                expected="one number predicted for each target",
                fix="squeeze the band axis, and pass the same pixels",
            )
        if t.size == 0:
            return self
        n_items = 1 if t.ndim == 2 else len(t)
        given = None if block is None else np.asarray(block)
        if given is not None and given.size == t.size and t.ndim > 1 and t.size > 1:
            n_items, given = t.size, given.reshape(-1)
        slots = np.asarray(self._slots(n_items, given))
        p, t = p.reshape(n_items, -1), t.reshape(n_items, -1)
        step = max(1, (1 << 17) // max(t.shape[1], 1))  # a megabyte of float64 at a time
        for start in range(0, n_items, step):
            rows = slice(start, start + step)
            self._add(
                p[rows].astype(np.float64), t[rows].astype(np.float64), slots[rows], ignore_nan
            )
        return self

    def _add(
        self,
        p: NDArray[np.float64],
        t: NDArray[np.float64],
        slots: NDArray[np.int64],
        ignore_nan: bool,
    ) -> None:
        known = ~np.isnan(t)
        if not (ignore_nan or known.all()) or not np.isfinite(p[known]).all():
            bad = "targets" if not (ignore_nan or known.all()) else "predictions of known targets"
            raise InputError(
                got=f"NaN or infinity among {bad}",
                expected="finite numbers",
                fix="drop samples without a value, or pass ignore_nan=True for maps with nodata",
            )
        error = np.where(known, p - t, 0)
        y = np.where(known, t - self.center, 0)
        parts = {
            "n": known.sum(axis=1),
            "sum_error": error.sum(axis=1),
            "sum_absolute": np.abs(error).sum(axis=1),
            "sum_squared": (error**2).sum(axis=1),
            "sum_y": y.sum(axis=1),
            "sum_y2": (y**2).sum(axis=1),
        }
        for name, part in parts.items():
            added = np.bincount(slots, part, minlength=self.n_slots)
            self._sums[name] += added.astype(self._sums[name].dtype)

    def _scores(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        n = sums["n"]
        spread = sums["sum_y2"] - ratio(sums["sum_y"] ** 2, n)
        return {
            "r2": 1 - ratio(sums["sum_squared"], np.maximum(spread, 0)),
            "mae": ratio(sums["sum_absolute"], n),
            "rmse": np.sqrt(ratio(sums["sum_squared"], n)),
            "bias": ratio(sums["sum_error"], n),
        }
