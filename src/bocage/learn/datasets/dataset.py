"""What every labelled set of images is, whatever its files look like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError, SourceError
from bocage.learn.classes import LabelClass
from bocage.learn.labels import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

UNKNOWN_DATE = (1, 6, 2020)
"""Day, month from 0, year of images without dates: the models' own evaluation takes July 2020."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images with labels, all of one size, in memory."""

    name: str
    images: dict[str, FloatArray]
    """Per sensor [n, T, C, H, W] in product units and tensor order; NaN where there is no data."""

    timestamps: NDArray[np.int64]
    """Day 1..31, month 0..11, year [n, T, 3]."""

    y: NDArray[Any]
    """Per image [n], [n, K] of 0/1, or per pixel [n, H, W]; class -1 and NaN are not labelled."""

    task: Task
    classes: tuple[LabelClass, ...] = ()
    lonlat: NDArray[np.float64] | None = None
    """Of each image [n, 2], degrees."""

    corner_xy_m: NDArray[np.float64] | None = None
    """Upper left corner of each image [n, 2] in one projected CRS, for labels per pixel."""

    pixel_m: float = 10.0
    group: NDArray[np.int64] | None = None
    """Images that belong together [n]."""

    split: NDArray[np.str_] | None = None
    """"train", "val" or "test" of each image, where the set has an official split."""

    note: str = ""
    """What a reader of the table has to know: processing level, how many samples."""

    def __post_init__(self) -> None:
        n = len(self.y)
        for sensor, x in self.images.items():
            if x.ndim != 5 or len(x) != n or x.shape[1] != self.timestamps.shape[1]:
                raise InputError(
                    got=f"{self.name}: {sensor} of shape {x.shape} for {n} labels",
                    expected="[n, T, C, H, W]",
                    fix="correct the reader of this data set",
                )

    @property
    def per_pixel(self) -> bool:
        """Whether labels are maps."""
        return self.y.ndim == 3

    @property
    def size_px(self) -> int:
        """Side of an image (the longer one)."""
        return int(max(next(iter(self.images.values())).shape[-2:]))

    @property
    def n_times(self) -> int:
        """Dates of each image."""
        return int(self.timestamps.shape[1])


def same_date(n: int, n_times: int = 1) -> NDArray[np.int64]:
    """Timestamps of images whose dates are not known."""
    return np.broadcast_to(np.array(UNKNOWN_DATE), (n, n_times, 3)).copy()


def need(path: Path, what: str, where: str) -> Path:
    """The path, or one sentence that says where the data come from."""
    if not path.exists():
        raise SourceError(
            got=f"{what}, whose files are not at {path}",
            expected="its files, which are not part of this package",
            fix=f"get them from {where}, and name their folder in the suite",
        )
    return path
