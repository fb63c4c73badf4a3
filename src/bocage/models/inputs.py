"""Checks of what a user passes to ``encode``: arrays, grid, patch size and dates.

Axes: B batch, H W pixels, T timesteps, C bands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bocage.errors import ConfigError, InputError
from bocage.models.config import ModelConfig
from bocage.sensors import sensor

YEARS = (1970, 2100)
"""Plausible years; the models were trained on 2016 to 2024."""


def read_array(name: str, data: Any, known: tuple[str, ...]) -> Tensor:
    """The values of a sensor as a tensor [B, H, W, T, C], sharing memory where possible."""
    bands = sensor(name).band_names
    if name not in known:
        raise InputError(
            got=f"sensor {name}",
            expected=f"one of {', '.join(known)}, which the model reads",
            fix=f"leave {name} out",
        )
    if isinstance(data, Tensor) and not data.is_complex():
        tensor = data
    else:
        try:
            x = np.asarray(data)
        except ValueError:  # a list of arrays of unequal shapes
            x = np.asarray(None)
        if x.dtype.kind not in "fiu":
            raise InputError(
                got=f"{name} of type {x.dtype}",
                expected="one array of numbers",
                fix="pass a float32 array with NaN where there is no data",
            )
        # torch takes neither flipped nor read-only arrays without trouble.
        plain = x.flags.writeable and min(x.strides, default=0) >= 0
        tensor = torch.from_numpy(x.astype(np.float32, copy=not plain))
    if tensor.ndim != 5 or tensor.shape[-1] != len(bands) or 0 in tensor.shape:
        raise InputError(
            got=f"{name} of shape {list(tensor.shape)}",
            expected=f"[batch, height, width, time, {len(bands)}], bands {' '.join(bands)}",
            fix="put the band axis last, with NaN for bands you do not have",
        )
    return tensor


def check_patch_size(patch_size: Any, base: int) -> None:
    """A whole number of pixels from 1 to the base patch size, or InputError."""
    if not isinstance(patch_size, int | np.integer) or not 1 <= patch_size <= base:
        raise InputError(
            got=f"patch_size={patch_size!r}",
            expected=f"a whole number of pixels from 1 to {base}",
            fix="pass patch_size=4, or 1 to 2 for finer maps at higher cost",
        )


def check_query_size(query_size: int | None, patch_size: int, config: ModelConfig) -> None:
    """A divisor of the patch size and a model with location tokens, or ConfigError."""
    if query_size is None:
        return
    if config.pooler is None:
        raise ConfigError(
            got=f"location_query_patch_size={query_size} for {config.release}",
            expected="a model with location tokens (v1.3)",
            fix="leave location_query_patch_size out",
        )
    if query_size < 1 or patch_size % query_size:
        divisors = [n for n in range(1, patch_size + 1) if patch_size % n == 0]
        raise ConfigError(
            got=f"location_query_patch_size={query_size} with patch_size={patch_size}",
            expected="a divisor of the patch size",
            fix=f"pass one of {divisors}",
        )


def check_grid(
    arrays: Mapping[str, Tensor], stamps: Tensor, patch_size: int, config: ModelConfig
) -> None:
    """One grid and one list of dates for all sensors, cut to whole patches, or InputError."""
    shapes = {name: tuple(x.shape[:4]) for name, x in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(
            got=f"sensors of different [batch, height, width, time]: {shapes}",
            expected="one grid and one list of dates for all sensors",
            fix="put all on one 10 m grid and fill the dates a sensor lacks with NaN",
        )
    n_batch, rows, cols, times = next(iter(shapes.values()))
    if stamps.shape[:2] != (n_batch, times):
        raise InputError(
            got=f"timestamps of shape {list(stamps.shape)} for {n_batch} samples of {times} "
            "timesteps",
            expected=f"shape [{n_batch}, {times}, 3]",
            fix="pass one (day, month, year) per sample and timestep",
        )
    if rows % patch_size or cols % patch_size:
        raise InputError(
            got=f"crops of {rows} x {cols} pixels with patch_size={patch_size}",
            expected="sides that are multiples of the patch size",
            fix="pad with NaN or crop to a multiple",
        )
    if config.square_only and rows != cols:
        raise InputError(
            got=f"crops of {rows} x {cols} pixels",
            expected=f"squares: the position table of {config.release} is square",
            fix="pad with NaN to a square, or use a v1.2 or v1.3 model",
        )


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
