"""Checks of the (day, month, year) stamps that the models take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bocage.errors import InputError

YEARS = (1970, 2100)
"""Plausible years; the models were trained on 2016 to 2024."""


def check_timestamps(timestamps: Any) -> Tensor:
    """Stamps as int64 [B, T, 3]: day 1-31, month 0-11, year; InputError says what is off."""
    stamps = np.asarray(timestamps)
    if stamps.ndim != 3 or stamps.shape[-1] != 3:
        raise _error(
            f"timestamps of shape {list(stamps.shape)}",
            "pass an array [batch, time, 3] of day, month and year",
        )
    if stamps.dtype.kind not in "iu" and not (
        stamps.dtype.kind == "f" and np.array_equal(stamps, np.round(stamps))
    ):
        raise _error(
            f"timestamps of type {stamps.dtype} that are not whole numbers",
            "pass integers, split from the dates",
        )
    stamps = stamps.astype(np.int64)
    day, month, year = (stamps[..., i] for i in range(3))
    if _outside(year, *YEARS):
        fix = "put the year last" if not _outside(day, *YEARS) else "pass real dates"
        raise _error(f"year {_first_outside(year, *YEARS)} in timestamps", fix)
    if _outside(month, 0, 11):
        raise _error(
            f"month {_first_outside(month, 0, 11)} in timestamps",
            "count months from 0: January is 0, December is 11",
        )
    if _outside(day, 1, 31):
        raise _error(
            f"day {_first_outside(day, 1, 31)} in timestamps", "count days of the month from 1"
        )
    return torch.from_numpy(stamps)


def _outside(x: np.ndarray[Any, Any], low: int, high: int) -> bool:
    return bool(((x < low) | (x > high)).any())


def _first_outside(x: np.ndarray[Any, Any], low: int, high: int) -> int:
    return int(x[(x < low) | (x > high)][0])


def _error(got: str, fix: str) -> InputError:
    return InputError(
        got=got,
        expected=f"(day 1-31, month 0-11, year {YEARS[0]}-{YEARS[1]}) per sample and timestep",
        fix=fix,
    )
