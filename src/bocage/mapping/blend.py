"""Overlapping windows into one map: weights, the sums of a block, its border with its neighbours.

A window's cells count fully inside its core and fade out over the halo on both sides of the core's
border, so neighbouring windows pass into each other instead of meeting at a step. Near the border
of a block the windows of its neighbours count too: a block's sums within a halo of its border are
kept as its **part** until all its neighbours have theirs, and only then is its shard written.
Sums are added in a fixed order, so neither the order of the blocks nor the number of workers
changes a byte.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.codecs import signed_power
from bocage.geo import Block, Layout, Window
from bocage.types import CodeArray, FloatArray, ShapeYX

Part = dict[str, CodeArray]
"""What an encoded block keeps for itself and its neighbours, by name."""

ReadsParts = Callable[..., list[CodeArray]]
"""A block and names to those arrays of its part."""

OWN = "own"
"""Name of what no other block adds to."""

CELLS_AT_ONCE = 256
"""Cells whose dimensions are moved together: their codes stay in the first cache."""


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

    @property
    def is_empty(self) -> bool:
        """Whether there is no cell in it."""
        return 0 in self.shape_yx

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
        """Where no other block contributes; empty in the corner of a block too small for it."""
        inner, image = self.territory(block).grow(-self.halo), self.image()
        outer = self.territory(block)
        top = outer.top if outer.top == image.top else inner.top
        left = outer.left if outer.left == image.left else inner.left
        bottom = outer.bottom if outer.bottom == image.bottom else inner.bottom
        right = outer.right if outer.right == image.right else inner.right
        if top >= bottom or left >= right:
            return Region(top=outer.top, left=outer.left, bottom=outer.top, right=outer.left)
        return Region(top=top, left=left, bottom=bottom, right=right)

    def border(self, block: Block) -> dict[str, Region]:
        """The rest of a block, in up to four rectangles."""
        outer, own = self.territory(block), self.own(block)
        sides = {
            "top": replace(outer, bottom=own.top),
            "left": replace(own, left=outer.left, right=own.left),
            "right": replace(own, left=own.right, right=outer.right),
            "bottom": replace(outer, top=own.bottom),
        }
        return {side: region for side, region in sides.items() if not region.is_empty}

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
        self.weighted = np.zeros((*self.region.shape_yx, dims), np.float32)
        self.weight = np.zeros(self.region.shape_yx, np.float32)

    def add(self, window: Window, x: FloatArray) -> None:
        """Add a window's vectors [h, w, D]; cells that are NaN count nothing."""
        covered, core = self.cells.window(window), self.cells.core(window)
        target = core.grow(self.cells.halo).meet(covered).meet(self.cells.image())
        weight = _weight(target, core, self.cells.halo)
        vectors = x[target.within(covered)]
        missing = np.isnan(vectors[..., 0])
        if missing.any():
            weight = np.where(missing, np.float32(0), weight)
            vectors = np.where(missing[..., None], np.float32(0), vectors)
        within = target.within(self.region)
        self.weighted[within] += vectors * weight[..., None]
        self.weight[within] += weight

    def part(self, scale: float | None) -> Part:
        """What the block and its neighbours are finished from.

        What no neighbour adds to is final, and most of it: as the int8 codes of the output with its
        value scale, or as float32 where the scale is None. The rest is apart for each block that it
        lies in, with the weights as one more dimension.
        """
        own = self.cells.own(self.block).within(self.region)
        part = {OWN: _stored(self.weighted[own], self.weight[own], scale)}
        for block in self.cells.layout.neighbours(self.block):
            part[name_in(block)] = self._sums(self.region.meet(self.cells.territory(block)))
        for side, region in self.cells.border(self.block).items():
            part[side] = self._sums(region)
        return part

    def _sums(self, region: Region) -> FloatArray:
        """Sums of a region [rows, cols, D + 1], the weights last."""
        here = region.within(self.region)
        return np.concatenate([self.weighted[here], self.weight[here][..., None]], axis=-1)


class BlockWork:
    """The sums of a block while its batches arrive from several threads, in any order.

    They are added in the order of strips and batches whoever encoded them, so the sums are the same
    to the last bit.
    """

    def __init__(self, sums: BlockSums, n_strips: int) -> None:
        self.sums = sums
        self._sizes: list[int | None] = [None] * n_strips
        self._arrived: dict[tuple[int, int], list[tuple[Window, FloatArray]]] = {}
        self._next = (0, 0)
        self._is_adding = False
        self._lock = threading.Lock()

    def expect(self, strip: int, n_batches: int) -> bool:
        """Say how many batches a strip has; True if the block is complete with that."""
        with self._lock:
            self._sizes[strip] = n_batches
        return self._add_arrived()

    def arrive(self, strip: int, batch: int, vectors: list[tuple[Window, FloatArray]]) -> bool:
        """Hand in the vectors of a batch; True, once, if the block is complete."""
        with self._lock:
            self._arrived[strip, batch] = vectors
        return self._add_arrived()

    def _add_arrived(self) -> bool:
        """Add what is next in order, as long as it is there; one thread at a time."""
        with self._lock:
            if self._is_adding:
                return False  # The other thread will find what this one brought.
            self._is_adding = True
        while True:
            with self._lock:
                vectors = self._take_next()
                if vectors is None:
                    self._is_adding = False
                    return self._next[0] == len(self._sizes)
            for window, x in vectors:
                self.sums.add(window, x)

    def _take_next(self) -> list[tuple[Window, FloatArray]] | None:
        strip, batch = self._next
        while strip < len(self._sizes) and self._sizes[strip] == batch:
            strip, batch = strip + 1, 0
        self._next = strip, batch
        vectors = self._arrived.pop(self._next, None)
        if vectors is not None:
            self._next = strip, batch + 1
        return vectors


def finish_block(
    cells: Cells, block: Block, parts: ReadsParts, dims: int, scale: float | None
) -> CodeArray:
    """What a shard stores of a block [D, rows, cols], from its part and those of its neighbours."""
    territory, border = cells.territory(block), cells.border(block)
    own, *inside = parts(block, OWN, *border)
    stored = np.empty((*territory.shape_yx, dims), own.dtype)
    stored[cells.own(block).within(territory)] = own
    sums = dict(zip(border, (part.copy() for part in inside), strict=True))
    for other in cells.layout.neighbours(block):
        reach = cells.reach(other).meet(territory)
        (theirs,) = parts(other, name_in(block))
        for side, region in border.items():
            both = region.meet(reach)
            if not both.is_empty:
                sums[side][both.within(region)] += theirs[both.within(reach)]
    for side, region in border.items():
        weighted, weight = sums[side][..., :dims], sums[side][..., dims]
        stored[region.within(territory)] = _stored(weighted, weight, scale)
    return _bands_first(stored)


def name_in(block: Block) -> str:
    """Name of the sums of a part that lie in a neighbour."""
    return "{}_{}".format(*block.index_yx)


def divide(weighted: FloatArray, weight: NDArray[np.float32]) -> FloatArray:
    """Weighted sums [..., D] to means, NaN where nothing counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        x: FloatArray = weighted / weight[..., None]
    x[weight <= 0] = np.nan
    return x


def _stored(weighted: FloatArray, weight: NDArray[np.float32], scale: float | None) -> CodeArray:
    """Means as a shard holds them."""
    if scale is None:
        return divide(weighted, weight)
    return signed_power.encode(divide(weighted, weight * np.float32(scale)))


def _bands_first(x: CodeArray) -> CodeArray:
    """A copy [D, rows, cols] of x [rows, cols, D]; a fifth of the time of numpy's own."""
    cells = x.reshape(-1, x.shape[-1])
    bands = np.empty(cells.shape[::-1], x.dtype)
    for start in range(0, len(cells), CELLS_AT_ONCE):
        bands[:, start : start + CELLS_AT_ONCE] = cells[start : start + CELLS_AT_ONCE].T
    return bands.reshape(-1, *x.shape[:2])


def _weight(target: Region, core: Region, halo: int) -> FloatArray:
    """Weights of the cells of a window that count; nearly all windows share a few of them."""
    ramps = [
        _ramp(start - core_start, stop - core_start, core_stop - core_start, halo)
        for start, stop, core_start, core_stop in (
            (target.top, target.bottom, core.top, core.bottom),
            (target.left, target.right, core.left, core.right),
        )
    ]
    return ramps[0][:, None] * ramps[1]


@lru_cache(maxsize=64)
def _ramp(start: int, stop: int, length: int, halo: int) -> FloatArray:
    """Weights of the cells start..stop along one axis, for a core from 0 to length."""
    cell = np.arange(start, stop) + 0.5
    if halo == 0:
        return np.ones(stop - start, np.float32)
    rise = (cell + halo) / (2 * halo)
    fall = (length + halo - cell) / (2 * halo)
    return np.clip(np.minimum(rise, fall), 0, 1).astype(np.float32)
