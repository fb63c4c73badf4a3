"""Scenes of one date that lie side by side become one image: the first on top, gaps from below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from bocage.sensors import SENSORS

if TYPE_CHECKING:
    from bocage.geo import Grid
    from bocage.types import FloatArray

SceneT = TypeVar("SceneT")


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
        self, times: Sequence[int], rows: slice, cols: slice, out: FloatArray | None = None
    ) -> FloatArray:
        """Values [len(times), C, rows, cols] in product units, in ``out`` if given."""
        if out is None:
            shape = (len(times), self.shape[1], rows.stop - rows.start, cols.stop - cols.start)
            out = np.empty(shape, dtype=np.float32)
        for image, time in zip(out, times, strict=True):
            self._read_time(time, rows, cols, image)
        return out

    def _read_time(self, time: int, rows: slice, cols: slice, out: FloatArray) -> None:
        filled = False
        for scene in self.scenes[time]:
            if not filled:
                filled = self.read_scene(scene, rows, cols, out)
                continue
            gaps = np.isnan(out)
            if not gaps.any():
                return
            below = np.empty_like(out)
            if self.read_scene(scene, rows, cols, below):
                np.copyto(out, below, where=gaps)
        if not filled:
            out.fill(np.nan)

    def read_scene(self, scene: Any, rows: slice, cols: slice, out: FloatArray) -> bool:
        """Fill ``out`` [C, h, w] from one scene; False, nothing written, if it lies elsewhere."""
        raise NotImplementedError
