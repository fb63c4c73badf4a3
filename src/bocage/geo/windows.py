"""The plan of blocks and windows over a grid.

A **block** is the unit of reading, writing, markers and resume: one Zarr shard. A **window** is
what the model sees at once: a core, and a halo around it that overlaps its neighbours. All
windows have the same size, so that batches and compiled graphs are shared. A window that would
reach over the edge of the image is moved back inside instead of being filled, so it sees real
pixels on every side; what is left behind the last whole core, if no wider than a halo, belongs to
that core and needs no window of its own. Everything is counted in pixels of the input grid and
divides by the patch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bocage.errors import ConfigError
from bocage.types import ShapeYX


@dataclass(frozen=True, kw_only=True)
class Window:
    """One forward of the model: where it reads and which part is its core, in input pixels."""

    row_px: int
    """First row read."""

    col_px: int
    """First column read."""

    core_row_px: int
    """First row of the core."""

    core_col_px: int
    """First column of the core."""

    core_shape_yx: ShapeYX
    """Rows and columns of the core; at the lower and right edge smaller, or larger by a halo."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One shard of the output: the rows and columns of the padded input that it covers."""

    index_yx: ShapeYX
    """Shard row, shard column."""

    row_px: int
    col_px: int
    shape_yx: ShapeYX
    """Rows and columns of input pixels; multiples of the patch size."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an input grid is cut; made by lay_out."""

    shape_yx: ShapeYX
    """Input pixels, padded up to whole patches."""

    patch_size: int
    window_px: int
    halo_px: int
    block_px: int

    @property
    def core_px(self) -> int:
        """Side of a window's core."""
        return self.window_px - 2 * self.halo_px

    @property
    def block_counts_yx(self) -> ShapeYX:
        """Shard rows and columns."""
        rows, cols = self.shape_yx
        return -(-rows // self.block_px), -(-cols // self.block_px)

    def blocks(self) -> list[Block]:
        """All blocks, row by row."""
        n_down, n_across = self.block_counts_yx
        return [self.block(i, j) for i in range(n_down) for j in range(n_across)]

    def windows(self, block: Block) -> Iterator[Window]:
        """Windows whose cores begin in the block; those of all blocks tile the image once."""
        rows, cols = self.shape_yx
        for row, n_rows in self._cores(block.row_px, block.shape_yx[0], rows):
            for col, n_cols in self._cores(block.col_px, block.shape_yx[1], cols):
                yield Window(
                    row_px=self._start(row, rows),
                    col_px=self._start(col, cols),
                    core_row_px=row,
                    core_col_px=col,
                    core_shape_yx=(n_rows, n_cols),
                )

    def neighbours(self, block: Block) -> list[Block]:
        """The up to eight blocks around a block, in a fixed order."""
        (i, j), (n_down, n_across) = block.index_yx, self.block_counts_yx
        return [
            self.block(i + di, j + dj)
            for di in (-1, 0, 1)
            for dj in (-1, 0, 1)
            if (di or dj) and 0 <= i + di < n_down and 0 <= j + dj < n_across
        ]

    def block(self, i: int, j: int) -> Block:
        """The block in a shard row and column; the last of each may be smaller."""
        rows, cols = self.shape_yx
        return Block(
            index_yx=(i, j),
            row_px=i * self.block_px,
            col_px=j * self.block_px,
            shape_yx=(
                min(self.block_px, rows - i * self.block_px),
                min(self.block_px, cols - j * self.block_px),
            ),
        )

    def n_windows(self, block: Block) -> int:
        """How many windows a block takes; none if all of it lies behind the last core's start."""
        starts, lengths = (block.row_px, block.col_px), block.shape_yx
        down, across = (
            len(self._cores(*axis)) for axis in zip(starts, lengths, self.shape_yx, strict=True)
        )
        return down * across

    def _cores(self, first: int, length: int, image: int) -> list[tuple[int, int]]:
        """Start and length of the cores along one axis that begin in a block."""
        last = self.core_px * (max(1, -(-(image - self.halo_px) // self.core_px)) - 1)
        starts = range(first, min(first + length, last + 1), self.core_px)
        return [(start, image - start if start == last else self.core_px) for start in starts]

    def _start(self, core: int, length: int) -> int:
        return max(0, min(core - self.halo_px, length - self.window_px))


def lay_out(
    shape_yx: ShapeYX,
    *,
    patch_size: int,
    window_px: int,
    halo_px: int,
    block_px: int,
) -> Layout:
    """Cut a grid of shape_yx pixels; ConfigError names the option that does not divide.

    block_px is rounded to a whole number of window cores, so that where blocks fall never changes a
    result. An image smaller than one window shrinks the window to the image.
    """
    for name, value in (("window", window_px), ("halo", halo_px)):
        if value % patch_size:
            raise ConfigError(
                got=f"{name}_px={value} with patch_size={patch_size}",
                expected=f"a {name} that is a multiple of the patch size",
                fix=f"use --{name} {-(-value // patch_size) * patch_size}",
            )
    core = window_px - 2 * halo_px
    if core < patch_size or halo_px < 0:
        raise ConfigError(
            got=f"window_px={window_px} with halo_px={halo_px}",
            expected="a halo smaller than half of the window",
            fix=f"use --halo {max(0, (window_px - patch_size) // 2 // patch_size * patch_size)}",
        )
    rows, cols = (-(-n // patch_size) * patch_size for n in shape_yx)
    longest = max(rows, cols)
    if longest <= window_px:
        window_px, halo_px, core = longest, 0, longest
    # A block larger than the image would only hold fill. One narrower than two halos would be
    # reached by windows of blocks that are not its neighbours.
    n_cores = max(1, -(-2 * halo_px // core), min(block_px // core, -(-longest // core)))
    return Layout(
        shape_yx=(rows, cols),
        patch_size=patch_size,
        window_px=window_px,
        halo_px=halo_px,
        block_px=n_cores * core,
    )
