"""One pretraining sample: a square of ground with its sensors over time and its maps.

A ``Sample`` is dense: every modality has every timestep, NaN where there is no data. How samples
are kept (``official_h5``, ``store``) is another matter; the loader asks any ``Samples`` for crops.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bocage.errors import InputError
from bocage.pretrain.modalities import modality

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray, ValidArray

MAX_STEPS = 12
"""Timesteps the models are trained on at most."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A square of ground; check it with ``check_sample``."""

    id: str
    """Name for error reports: file and window, or number."""

    values: dict[str, FloatArray]
    """Modality to [H, W, T, C] in product units, NaN where there is no data; maps have T=1."""

    timestamps: NDArray[np.int64]
    """[T, 3]: day 1..31, month 0..11, year."""

    latlon: tuple[float, float] = (float("nan"), float("nan"))
    """Latitude and longitude of the center in degrees; NaN if unknown."""


class StoredSample(Protocol):
    """A sample that is read piece by piece."""

    @property
    def id(self) -> str:
        """Name for error reports."""

    @property
    def timestamps(self) -> NDArray[np.int64]:
        """[T, 3]: day, month 0..11, year."""

    @property
    def present(self) -> dict[str, ValidArray]:
        """Modality to bool [T] (maps [1]): that timestep is there."""

    def read(self, name: str, rows: slice, cols: slice, steps: tuple[int, ...]) -> FloatArray:
        """Values [H, W, len(steps), C] in product units; NaN where missing."""


class Samples(Protocol):
    """A collection that the loader can draw from."""

    size_px: int
    max_steps: int
    modalities: tuple[str, ...]

    def __len__(self) -> int:
        """How many samples there are."""

    def n_steps(self, index: int) -> int:
        """Timesteps of a sample, or max_steps where that is not known without reading it."""

    def sample_id(self, index: int) -> str:
        """Name of a sample for error reports."""

    def sample(self, index: int) -> AbstractContextManager[StoredSample]:
        """Open a sample; raises a BocageError that names it if it is damaged."""


def present_steps(x: NDArray[Any]) -> ValidArray:
    """Timesteps of [H, W, T, C] with any value at all."""
    finite: ValidArray = np.isfinite(x).any(axis=(0, 1, 3))
    return finite


def check_sample(sample: Sample) -> Sample:
    """The sample itself, or InputError: no modality, wrong shape, nothing but missing data."""
    stamps = np.asarray(sample.timestamps)
    if stamps.ndim != 2 or stamps.shape[1] != 3 or not 1 <= len(stamps) <= MAX_STEPS:
        raise InputError(
            got=f"timestamps of shape {list(stamps.shape)} in {sample.id}",
            expected=f"[T, 3] with day, month 0-11 and year, T from 1 to {MAX_STEPS}",
            fix=f"cut longer series into pieces of {MAX_STEPS} steps",
        )
    if bool((stamps[:, 1] > 11).any() or (stamps < 0).any() or (stamps[:, 0] < 1).any()):
        raise InputError(
            got=f"timestamps {stamps[0].tolist()} in {sample.id}",
            expected="day 1-31, month 0-11, year",
            fix="count months from 0",
        )
    sensors = [name for name in sample.values if not modality(name).is_map]
    if not sensors:
        raise InputError(
            got=f"{sample.id} with {', '.join(sample.values) or 'no modality'}",
            expected="at least one sensor: sentinel2_l2a, sentinel1 or landsat",
            fix="leave the sample out",
        )
    side = np.asarray(sample.values[sensors[0]]).shape[0]
    for name, x in sample.values.items():
        table = modality(name)
        n_times = 1 if table.is_map else len(stamps)
        expected = (side, side, n_times, len(table.bands))
        if np.shape(x) != expected:
            raise InputError(
                got=f"{name} of shape {list(np.shape(x))} in {sample.id}",
                expected=f"{list(expected)}: height, width, timesteps, bands",
                fix="put all modalities on one square 10 m grid, the bands last",
            )
    if not any(present_steps(sample.values[name]).any() for name in sensors):
        raise InputError(
            got=f"{sample.id}, in which all timesteps are missing",
            expected="at least one timestep of one sensor with data",
            fix="leave the sample out",
        )
    return sample
