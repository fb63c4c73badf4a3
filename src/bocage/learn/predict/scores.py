"""Scores of every cell of an embedding raster, as a job of blocks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.cog import own_grid
from bocage.errors import InputError
from bocage.learn.predict.blocks import BlockJob, piece_cells
from bocage.learn.predict.predictor import Predictor
from bocage.types import FloatArray

if TYPE_CHECKING:
    from bocage.embeddings.lazy_raster import LazyRaster

_TIMED_CELLS = 64


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """Embeddings of some years, what scores them, and where the scores go."""

    raster: LazyRaster
    year_indices: tuple[int, ...]
    predictor: Predictor
    store: Path
    identity: dict[str, Any]

    @property
    def years(self) -> tuple[int, ...]:
        """Of the map."""
        return tuple(self.raster.years[i] for i in self.year_indices)

    @cached_property
    def blocks(self) -> BlockJob:
        """The job of a store with one band per output."""

        def read(year: int, rows: slice, cols: slice) -> FloatArray:
            return self.raster[self.year_indices[year], :, rows, cols]

        return BlockJob(
            title="predicting",
            read=read,
            make=self.predictor.score,
            grid=own_grid(self.raster),
            years=self.years,
            n_bands=len(self.predictor.outputs),
            piece_cells=piece_cells(self.raster.shape[1]),
            store=self.store,
            identity=self.identity,
        )


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
