"""Overlapping windows into one map: weights, the sums of a block, its border with its neighbours.

A window's cells count fully inside its core and fade out over the halo on both sides of the core's
border, so neighbouring windows pass into each other instead of meeting at a step. Near the border
of a block the windows of its neighbours count too: a block's sums within a halo of its border are
kept in a **part** file until all its neighbours have theirs, and only then is its shard written.
Sums are added in a fixed order, so neither the order of the blocks nor the number of workers
changes a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.atomic import naming_failures
from bocage.embeddings.codecs import signed_power
from bocage.geo import Block, Layout, Window
from bocage.types import CodeArray, FloatArray, ShapeYX


@dataclass(frozen=True, kw_only=True)
class Region:
    """Rows and columns of output cells; ends are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape_yx(self) -> ShapeYX:
        """Rows and columns; never negative."""
        return max(0, self.bottom - self.top), max(0, self.right - self.left)

    def within(self, other: Region) -> tuple[slice, slice]:
        """Where this region lies in an array that covers ``other``."""
        return (
            slice(self.top - other.top, self.bottom - other.top),
            slice(self.left - other.left, self.right - other.left),
        )

    def meet(self, other: Region) -> Region:
        """What two regions share; may be empty."""
        return Region(
            top=max(self.top, other.top),
            left=max(self.left, other.left),
            bottom=min(self.bottom, other.bottom),
            right=min(self.right, other.right),
        )

    def grow(self, cells: int) -> Region:
        """The region with a margin on every side; negative shrinks."""
        return Region(
            top=self.top - cells,
            left=self.left - cells,
            bottom=self.bottom + cells,
            right=self.right + cells,
        )


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The layout counted in output cells instead of pixels."""

    layout: Layout
    cell_px: int

    @property
    def halo(self) -> int:
        """Cells over which a window fades into its neighbours, on each side of a border."""
        return self.layout.halo_px // self.cell_px

    def image(self) -> Region:
        """The whole output."""
        rows, cols = (n // self.cell_px for n in self.layout.shape_yx)
        return Region(top=0, left=0, bottom=rows, right=cols)

    def territory(self, block: Block) -> Region:
        """What a block's shard covers."""
        return self._region(block.row_px, block.col_px, block.shape_yx)

    def reach(self, block: Block) -> Region:
        """What the windows of a block contribute to: its territory and a halo around it."""
        return self.territory(block).grow(self.halo).meet(self.image())

    def own(self, block: Block) -> Region:
        """Where no other block contributes."""
        inner, image = self.territory(block).grow(-self.halo), self.image()
        outer = self.territory(block)
        return Region(
            top=outer.top if outer.top == image.top else inner.top,
            left=outer.left if outer.left == image.left else inner.left,
            bottom=outer.bottom if outer.bottom == image.bottom else inner.bottom,
            right=outer.right if outer.right == image.right else inner.right,
        )

    def window(self, window: Window) -> Region:
        """What a window covers; may hang over a small image."""
        side = (self.layout.window_px, self.layout.window_px)
        return self._region(window.row_px, window.col_px, side)

    def core(self, window: Window) -> Region:
        """A window's core."""
        return self._region(window.core_row_px, window.core_col_px, window.core_shape_yx)

    def _region(self, row_px: int, col_px: int, shape_yx: ShapeYX) -> Region:
        top, left, rows, cols = (n // self.cell_px for n in (row_px, col_px, *shape_yx))
        return Region(top=top, left=left, bottom=top + rows, right=left + cols)


class BlockSums:
    """Weighted sums of the vectors of a block's windows, over everything they contribute to."""

    def __init__(self, cells: Cells, block: Block, dims: int) -> None:
        self.cells = cells
        self.block = block
        self.region = cells.reach(block)
        self.weighted = np.zeros((dims, *self.region.shape_yx), np.float32)
        self.weight = np.zeros(self.region.shape_yx, np.float32)

    def add(self, window: Window, x: FloatArray) -> None:
        """Add a window's vectors [h, w, D]; cells that are NaN count nothing."""
        covered, core = self.cells.window(window), self.cells.core(window)
        target = core.grow(self.cells.halo).meet(covered).meet(self.cells.image())
        ramp_y = _ramp(target.top, target.bottom, core.top, core.bottom, self.cells.halo)
        ramp_x = _ramp(target.left, target.right, core.left, core.right, self.cells.halo)
        weight = ramp_y[:, None] * ramp_x
        vectors = x[target.within(covered)]
        missing = np.isnan(vectors[..., 0])
        if missing.any():
            weight = np.where(missing, np.float32(0), weight)
            vectors = np.where(missing[..., None], np.float32(0), vectors)
        rows, cols = target.within(self.region)
        self.weighted[:, rows, cols] += (vectors * weight[..., None]).transpose(2, 0, 1)
        self.weight[rows, cols] += weight

    def save(self, path: Path, scale: float | None) -> None:
        """Keep the sums on disk in one step, for the block and its neighbours to finish from.

        What no neighbour adds to is final, and most of it: kept as the int8 codes of the output
        with its value scale, or as float32 where the scale is None.
        """
        own = self.cells.own(self.block)
        rows, cols = own.within(self.region)
        border = np.ones(self.region.shape_yx, bool)
        border[rows, cols] = False
        partial = path.with_name(f".{path.name}.partial")
        with naming_failures(path), partial.open("wb") as file:
            np.savez(
                file,
                own=_pack(divide(self.weighted[:, rows, cols], self.weight[rows, cols]), scale),
                weighted=self.weighted[:, border],
                weight=self.weight[border],
            )
        partial.replace(path)


def finish_block(
    cells: Cells, block: Block, parts: dict[tuple[int, int], Path], dims: int, scale: float | None
) -> FloatArray:
    """The vectors [D, rows, cols] of a block from its part and those of its neighbours."""
    own, territory = cells.own(block), cells.territory(block)
    sums = BlockSums(cells, block, dims)
    finished = np.empty(0, np.float32)
    for other in [block, *cells.layout.neighbours(block)]:
        with np.load(parts[other.index_yx]) as part:
            if other is block:
                finished = _unpack(part["own"], scale)
            _add_border(sums, other, part["weighted"], part["weight"])
    rows, cols = territory.within(sums.region)
    x = np.empty((dims, *territory.shape_yx), np.float32)
    x[(slice(None), *own.within(territory))] = finished
    border = np.ones(territory.shape_yx, bool)
    border[own.within(territory)] = False
    x[:, border] = divide(sums.weighted[:, rows, cols][:, border], sums.weight[rows, cols][border])
    return x


def _pack(x: FloatArray, scale: float | None) -> CodeArray:
    return x if scale is None else signed_power.encode(x / np.float32(scale))


def _unpack(stored: CodeArray, scale: float | None) -> FloatArray:
    return stored if scale is None else signed_power.decode(stored) * np.float32(scale)


def divide(weighted: FloatArray, weight: NDArray[np.float32]) -> FloatArray:
    """Weighted sums to means, NaN where nothing counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x: FloatArray = weighted / weight
    x[:, weight <= 0] = np.nan
    return x


def _add_border(sums: BlockSums, other: Block, values: FloatArray, weights: FloatArray) -> None:
    """Add what the windows of ``other`` contribute to the border cells of a block."""
    cells = sums.cells
    region = cells.reach(other)
    border = np.ones(region.shape_yx, bool)
    border[cells.own(other).within(region)] = False
    shared = region.meet(sums.region)
    chosen = np.zeros(region.shape_yx, bool)
    chosen[shared.within(region)] = True
    mask = np.zeros(sums.region.shape_yx, bool)
    mask[shared.within(sums.region)] = border[shared.within(region)]
    # Both masks run row by row over the same cells, so their order agrees.
    sums.weighted[:, mask] += values[:, chosen[border]]
    sums.weight[mask] += weights[chosen[border]]


def _ramp(start: int, stop: int, core_start: int, core_stop: int, halo: int) -> FloatArray:
    """Weights of the cells start..stop of a window along one axis."""
    cell = np.arange(start, stop) + 0.5
    if halo == 0:
        return np.ones(stop - start, np.float32)
    rise = (cell - (core_start - halo)) / (2 * halo)
    fall = ((core_stop + halo) - cell) / (2 * halo)
    return np.clip(np.minimum(rise, fall), 0, 1).astype(np.float32)
