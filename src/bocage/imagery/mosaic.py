"""Scenes of one date that lie side by side become one image: the first on top, gaps from below."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from bocage.imagery.dates import UNKNOWN_DATE
from bocage.sensors import SENSORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bocage.geo import Grid
    from bocage.types import FloatArray

SceneT = TypeVar("SceneT")


@dataclass(frozen=True)
class Found(Generic[SceneT]):
    """A scene of a source, and what has to be known to put it in its place."""

    sensor: str
    date: np.datetime64 | None
    bands: Collection[str]
    scene: SceneT

    @property
    def step(self) -> np.datetime64:
        """The date that stands for the scene in a stack."""
        return UNKNOWN_DATE if self.date is None else self.date


@dataclass(frozen=True, kw_only=True)
class MosaicReader(Generic[SceneT]):
    """A Reader of one sensor whose dates consist of scenes; kinds of source say how to read one."""

    sensor: str
    """One of sensors.py."""

    grid: Grid
    """The stack's grid."""

    scenes: tuple[tuple[SceneT, ...], ...]
    """Per time step the scenes that mosaic, the top one first."""

    cloud_mask: bool = True
    """Whether quality layers turn clouds into NaN."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Times, bands, rows, columns."""
        return (len(self.scenes), len(SENSORS[self.sensor].bands), *self.grid.shape_yx)

    @property
    def present(self) -> tuple[bool, ...]:
        """Per time, whether there is any scene."""
        return tuple(bool(scenes) for scenes in self.scenes)

    def read(
        self,
        times: Sequence[int],
        rows: slice,
        cols: slice,
        out: FloatArray | None = None,
        gaps: NDArray[np.bool_] | None = None,
    ) -> FloatArray:
        """Values [len(times), C, rows, cols] in product units; see `Reader`."""
        if out is None:
            shape = (len(times), self.shape[1], rows.stop - rows.start, cols.stop - cols.start)
            out = np.empty(shape, dtype=np.float32)
        for image, time in zip(out, times, strict=True):
            here = self._read_time(time, rows, cols, image)
            if gaps is not None:
                gaps |= here
        return out

    def _read_time(
        self, time: int, rows: slice, cols: slice, out: FloatArray
    ) -> NDArray[np.bool_] | bool:
        """Fill ``out`` [C, h, w]; where a band is missing [h, w], or True for all of it."""
        gaps: NDArray[np.bool_] | None = None
        for scene in self.scenes[time]:
            if gaps is None:
                gaps = self.read_scene(scene, rows, cols, out)
            elif not gaps.any():
                break
            else:
                below = np.empty_like(out)
                theirs = self.read_scene(scene, rows, cols, below)
                if theirs is not None:
                    np.copyto(out, below, where=np.isnan(out))
                    gaps &= theirs
        if gaps is None:
            out.fill(np.nan)
            return True
        return gaps

    def read_scene(
        self, scene: Any, rows: slice, cols: slice, out: FloatArray
    ) -> NDArray[np.bool_] | None:
        """Fill ``out`` [C, h, w] from one scene, and say where a band is missing [h, w].

        None, nothing written, if the scene lies elsewhere.
        """
        raise NotImplementedError


def readers_of(
    found: Sequence[Found[SceneT]], kind: Callable[..., MosaicReader[SceneT]], **options: Any
) -> tuple[list[np.datetime64], dict[str, Any], dict[str, list[str]]]:
    """The dates of scenes, a reader per sensor, and the bands that each sensor lacks everywhere.

    Scenes of one sensor and date mosaic in the order given; those without bands (a cloud mask
    alone) count for the dates only. ``options`` go to every reader.
    """
    steps = sorted({one.step for one in found})
    readers: dict[str, Any] = {}
    missing: dict[str, list[str]] = {}
    for sensor, table in SENSORS.items():
        mine = [one for one in found if one.sensor == sensor and one.bands]
        if not mine:
            continue
        at: dict[np.datetime64, list[SceneT]] = {step: [] for step in steps}
        for one in mine:
            at[one.step].append(one.scene)
        scenes = tuple(tuple(at[step]) for step in steps)
        readers[sensor] = kind(sensor=sensor, scenes=scenes, **options)
        have = {name for one in mine for name in one.bands}
        missing[sensor] = [name for name in table.band_names if name not in have]
    return steps, readers, missing
