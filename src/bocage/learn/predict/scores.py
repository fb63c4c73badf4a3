"""Scores of every cell of an embedding raster, block by block, in a Zarr store beside the output.

A block is the unit of writing and of resume, as in `bocage embed`, whose markers serve here too: a
killed run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.cog import own_grid
from bocage.errors import InputError
from bocage.learn.predict.predictor import Predictor
from bocage.mapping.markers import Markers
from bocage.mapping.pipeline import Clock, read_ahead
from bocage.progress import progress
from bocage.types import FloatArray

if TYPE_CHECKING:
    from bocage.embeddings import EmbeddingGrid
    from bocage.embeddings.lazy_raster import LazyRaster

BLOCK_CELLS = 512
"""Side of a block: the unit of writing and of resume."""

_PIECE_BYTES = 64 * 2**20
_TIMED_CELLS = 64

Piece = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """Embeddings of some years, what scores them, and where the scores go."""

    raster: LazyRaster
    year_indices: tuple[int, ...]
    predictor: Predictor
    store: Path
    identity: dict[str, Any]

    @property
    def grid(self) -> EmbeddingGrid:
        """The store of scores: one band per output, float32, NaN for nodata."""
        from bocage.embeddings import EmbeddingGrid

        own = own_grid(self.raster)
        return EmbeddingGrid(
            crs=own.crs,
            transform=own.transform,
            shape_yx=own.shape_yx,
            years=tuple(self.raster.years[i] for i in self.year_indices),
            dims=len(self.predictor.outputs),
            codec="float32",
            layout="single",
            shard_cells=BLOCK_CELLS,
        )

    def pieces(self, i: int, j: int) -> list[Piece]:
        """Parts of a block that fit the memory, along the stored chunks."""
        n_rows, n_cols = self.raster.shape[2:]
        side = piece_cells(self.raster.shape[1])
        rows = range(i * BLOCK_CELLS, min((i + 1) * BLOCK_CELLS, n_rows), side)
        cols = range(j * BLOCK_CELLS, min((j + 1) * BLOCK_CELLS, n_cols), side)
        return [
            (slice(r, min(r + side, n_rows)), slice(c, min(c + side, n_cols)))
            for r in rows
            for c in cols
        ]


def piece_cells(dims: int) -> int:
    """Side of the squares that are read and scored at once."""
    side = BLOCK_CELLS
    while side > 64 and side * side * dims * 4 > _PIECE_BYTES:
        side //= 2
    return side


def write_scores(job: ScoreJob, *, show_progress: bool = False) -> int:
    """Score what is not scored yet; returns how many blocks were there already."""
    from bocage.embeddings import create_store

    markers, grid = Markers(store=job.store), job.grid
    if not job.store.exists():
        create_store(job.store, grid)
    markers.prepare(job.identity)
    rows, cols = grid.shards_yx
    work = [(year, i, j) for year in job.year_indices for i in range(rows) for j in range(cols)]
    pending = [block for block in work if not markers.is_done(_key(job, *block))]
    total = sum(len(job.pieces(i, j)) for _, i, j in pending)
    with (
        progress("predicting", total, unit="blocks", enabled=show_progress) as advance,
        closing(read_ahead(_read(job, pending), ahead=1, clock=Clock())) as pieces,
    ):
        scored: list[tuple[Piece, FloatArray]] = []
        for block, piece, x, last in pieces:
            scored.append((piece, job.predictor.score(x)))
            advance(1)
            if last:
                _write(job, grid, markers, block, scored)
                scored = []
    return len(work) - len(pending)


def _key(job: ScoreJob, year: int, i: int, j: int) -> str:
    return f"{job.raster.years[year]}_{i}_{j}"


def _read(
    job: ScoreJob, pending: list[tuple[int, int, int]]
) -> Iterator[tuple[tuple[int, int, int], Piece, FloatArray, bool]]:
    """Block, piece, embeddings [D, h, w], and whether the block is complete after it."""
    for year, i, j in pending:
        pieces = job.pieces(i, j)
        for n, piece in enumerate(pieces):
            x = job.raster[year, :, piece[0], piece[1]]
            yield (year, i, j), piece, x, n == len(pieces) - 1


def _write(
    job: ScoreJob,
    grid: EmbeddingGrid,
    markers: Markers,
    block: tuple[int, int, int],
    scored: list[tuple[Piece, FloatArray]],
) -> None:
    from bocage.embeddings import write_shard

    year, i, j = block
    whole = np.full((grid.dims, *grid.shard_shape(i, j)), np.nan, np.float32)
    for (rows, cols), scores in scored:
        r, c = rows.start - i * BLOCK_CELLS, cols.start - j * BLOCK_CELLS
        whole[:, r : r + scores.shape[1], c : c + scores.shape[2]] = scores
    write_shard(job.store, grid, job.raster.years[year], i, j, whole)
    valid = np.isfinite(whole[0])
    markers.finish(_key(job, year, i, j), {"n_cells": valid.size, "n_valid": int(valid.sum())})


def time_scores(job: ScoreJob) -> float:
    """Seconds for all blocks on this machine, from a small piece of the map."""
    n_rows, n_cols = job.raster.shape[2:]
    rows, cols = (slice(n // 2, min(n // 2 + _TIMED_CELLS, n)) for n in (n_rows, n_cols))
    start = time.perf_counter()
    x = job.raster[job.year_indices[0], :, rows, cols]
    job.predictor.score(np.where(np.isnan(x), np.float32(0), x))
    seconds = time.perf_counter() - start
    return float(seconds * n_rows * n_cols / x[0].size * len(job.year_indices))


def choose_years(raster: LazyRaster, years: tuple[int, ...] | None, where: str) -> tuple[int, ...]:
    """Positions of the wanted years; InputError for one that is not there."""
    if years is None:
        return tuple(range(len(raster.years)))
    missing = [y for y in years if y not in raster.years]
    if missing or not years:
        raise InputError(
            got=f"years {', '.join(map(str, years)) or 'none'} of {where}",
            expected=f"years among {', '.join(map(str, raster.years))}",
            fix=f"use --years {raster.years[-1]}",
        )
    return tuple(raster.years.index(y) for y in years)
