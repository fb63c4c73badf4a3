"""A raster made from others cell by cell, block by block, in a Zarr store beside the output.

A block is the unit of writing and of resume, as in `bocage embed`, whose markers serve here too: a
killed run goes on where it stopped. Scores of a probe and strengths of a change are made this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.mapping.markers import Markers
from bocage.mapping.streams import Clock, Task, run_streams
from bocage.progress import Advance, progress
from bocage.types import FloatArray

if TYPE_CHECKING:
    from bocage.embeddings import EmbeddingGrid
    from bocage.geo import Grid

BLOCK_CELLS = 512
"""Side of a block: the unit of writing and of resume."""

_PIECE_BYTES = 64 * 2**20

Piece = tuple[slice, slice]
_Block = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class BlockJob:
    """What is read, what becomes of it, and where that goes."""

    title: str
    """Of the progress display."""

    read: Callable[[int, slice, slice], Any]
    """Position of a year, rows, columns to whatever `make` takes; runs in a thread of its own."""

    make: Callable[[Any], FloatArray]
    """To values [B, h, w], NaN for nodata."""

    grid: Grid
    years: tuple[int, ...]
    n_bands: int
    piece_cells: int
    """Side of the squares that are read and made at once: a divisor of BLOCK_CELLS."""

    store: Path
    identity: dict[str, Any]
    """What must agree for two runs to write one store."""

    @property
    def markers(self) -> Markers:
        """Of finished blocks."""
        return Markers(store=self.store)

    @property
    def store_grid(self) -> EmbeddingGrid:
        """The store: float32, in any CRS."""
        from bocage.embeddings import EmbeddingGrid

        return EmbeddingGrid(
            crs=self.grid.crs,
            transform=self.grid.transform,
            shape_yx=self.grid.shape_yx,
            years=self.years,
            dims=self.n_bands,
            codec="float32",
            layout="single",
            shard_cells=BLOCK_CELLS,
        )

    def prepare(self) -> None:
        """Make the store, or see that it is of the same job; StoreError if not."""
        from bocage.embeddings import create_store

        if not self.store.exists():
            create_store(self.store, self.store_grid)
        self.markers.prepare(self.identity)

    def pieces(self, i: int, j: int) -> list[Piece]:
        """Parts of a block."""
        n_rows, n_cols = self.grid.shape_yx
        side = self.piece_cells
        rows = range(i * BLOCK_CELLS, min((i + 1) * BLOCK_CELLS, n_rows), side)
        cols = range(j * BLOCK_CELLS, min((j + 1) * BLOCK_CELLS, n_cols), side)
        return [
            (slice(r, min(r + side, n_rows)), slice(c, min(c + side, n_cols)))
            for r in rows
            for c in cols
        ]


def piece_cells(dims: int, *, limit: int = _PIECE_BYTES, largest: int = BLOCK_CELLS) -> int:
    """Side of squares of `dims` float32 values that fit a memory limit in bytes; at least 64."""
    side = largest
    while side > 64 and side * side * dims * 4 > limit:
        side //= 2
    return side


def write_blocks(job: BlockJob, *, show_progress: bool = False) -> int:
    """Make what is not there yet; returns how many blocks were."""
    job.prepare()
    rows, cols = job.store_grid.shards_yx
    work = list(product(range(len(job.years)), range(rows), range(cols)))
    pending = [block for block in work if not job.markers.is_done(_key(job, block))]
    total = sum(len(job.pieces(i, j)) for _, i, j in pending)
    with progress(job.title, total, unit="pieces", enabled=show_progress) as advance:
        tasks = (task for block in pending for task in _BlockRun(job, block, advance).reading())
        run_streams(tasks, streams=1, clock=Clock())
    return len(work) - len(pending)


class _BlockRun:
    """A block that is being made, as tasks for streams."""

    def __init__(self, job: BlockJob, block: _Block, advance: Advance) -> None:
        self.job, self.block, self.advance = job, block, advance
        _, i, j = block
        self.pieces = job.pieces(i, j)
        self.n_left = len(self.pieces)
        shape = (job.store_grid.dims, *job.store_grid.shard_shape(i, j))
        self.whole = np.full(shape, np.nan, np.float32)

    def reading(self) -> Iterator[Task]:
        """The first task of each piece."""
        return (Task("read", partial(self._read, piece)) for piece in self.pieces)

    def _read(self, piece: Piece) -> list[Task]:
        x = self.job.read(self.block[0], *piece)
        return [Task("encode", partial(self._make, piece, x))]

    def _make(self, piece: Piece, read: Any) -> list[Task]:
        x = self.job.make(read)
        top, left = (
            part.start - n * BLOCK_CELLS for part, n in zip(piece, self.block[1:], strict=True)
        )
        self.whole[:, top : top + x.shape[1], left : left + x.shape[2]] = x
        self.advance(1)
        self.n_left -= 1  # One stream makes all pieces.
        return [] if self.n_left else [Task("write", self._write)]

    def _write(self) -> list[Task]:
        from bocage.embeddings import write_shard

        job, (year, i, j) = self.job, self.block
        write_shard(job.store, job.store_grid, job.years[year], i, j, self.whole)
        n_valid = int(np.isfinite(self.whole[0]).sum())
        facts = {"n_cells": self.whole[0].size, "n_valid": n_valid}
        job.markers.finish(_key(job, self.block), facts)
        return []


def _key(job: BlockJob, block: _Block) -> str:
    year, i, j = block
    return f"{job.years[year]}_{i}_{j}"
