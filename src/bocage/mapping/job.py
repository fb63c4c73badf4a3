"""A run of `embed`: its blocks, encoded in streams and finished when their neighbours are."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bocage.embeddings.codecs.signed_power import NODATA
from bocage.geo import Block, Window
from bocage.mapping.blend import BlockSums, BlockWork, Cells, finish_block
from bocage.mapping.markers import Claim, Markers
from bocage.mapping.part import Shard
from bocage.mapping.plan import EmbedPlan, WindowEncoder, WindowModel
from bocage.mapping.streams import Clock, Task, run_streams, streams_for
from bocage.mapping.worker import (
    Strip,
    StripPlace,
    batches,
    encode_batch,
    read_strip,
    strip_places,
)
from bocage.progress import Advance, progress

if TYPE_CHECKING:
    import xarray as xr

    from bocage.embeddings import EmbeddingGrid

GDAL_CACHE_BYTES = 64 * 2**20
"""Decoded blocks that GDAL keeps while a run reads. Its own default is a share of the machine's
memory, which would fill with the scene."""

WAIT_S = 0.5
"""Between looks at blocks that another process holds."""


@dataclass(kw_only=True)
class Job:
    """One run: the plan, where it writes, and what it has done so far."""

    stack: xr.Dataset
    plan: EmbedPlan
    model: WindowModel
    encoder: WindowEncoder
    store: Path
    grid: EmbeddingGrid
    markers: Markers
    cells: Cells
    clock: Clock = field(default_factory=Clock)
    n_windows: int = 0
    n_blocks_kept: int = 0
    claims: list[Claim] = field(default_factory=list)
    advance: Advance = lambda _amount: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, n_windows: int, *, encoded: bool = True) -> None:
        """Note windows that are done, here or by another process."""
        with self.lock:
            self.n_windows += n_windows if encoded else 0
            self.advance(n_windows)

    @property
    def scale(self) -> float | None:
        """Value scale of int8 codes; None for float32."""
        return self.plan.value_scale if self.plan.config.codec == "signed_power" else None

    def work(self, part: Shard | None = None) -> list[tuple[int, Block]]:
        """Years and blocks of the run, or of a part of it."""
        blocks = [(year, block) for year in self.plan.years for block in self.plan.layout.blocks()]
        return blocks if part is None else blocks[part.index - 1 :: part.count]

    def pending(self, part: Shard | None = None) -> list[tuple[int, Block]]:
        """What of it is not encoded yet."""
        return [(y, b) for y, b in self.work(part) if not self.markers.is_encoded(key_of(y, b))]


def key_of(year: int, block: Block) -> str:
    """Name of the markers of a block."""
    return f"{year}_{block.index_yx[0]}_{block.index_yx[1]}"


def run_job(job: Job, part: Shard | None, *, show_progress: bool) -> None:
    """Encode what is not encoded yet, and finish every block that can be."""
    import rasterio

    pending = job.pending(part)
    job.n_blocks_kept = len(job.work(part)) - len(pending)
    total = sum(job.plan.layout.n_windows(block) for _, block in pending)
    try:
        with (
            rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES),
            progress("embedding", total, unit="windows", enabled=show_progress) as job.advance,
            streams_for(job.model, -(-total // job.plan.batch_size)) as (streams, enter),
        ):
            run_streams(
                _reading(job, pending),
                streams=streams,
                clock=job.clock,
                enter=enter,
                on_cpu=str(getattr(job.model, "device", "cpu")).startswith("cpu"),
            )
    finally:
        for claim in job.claims:
            claim.release()
    # A killed run may have left encoded blocks whose last neighbour came from another process.
    for year, block in job.work():
        _finish_block(job, year, block)


def _reading(job: Job, pending: list[tuple[int, Block]]) -> Iterator[Task]:
    """Claim the blocks and read them; those another process holds are tried again until done."""
    while pending:
        held = []
        for year, block in pending:
            key = key_of(year, block)
            claim = job.markers.claim(key)
            if claim is None:
                held.append((year, block))
            elif job.markers.is_encoded(key):
                claim.release()
                job.count(job.plan.layout.n_windows(block), encoded=False)
            else:
                job.claims.append(claim)
                yield from _BlockRun(job, claim, year, block).reading()
        if len(held) == len(pending):
            time.sleep(WAIT_S)
            yield Task("read", list)  # Nothing to read, and a chance to stop.
        pending = held


class _BlockRun:
    """A block that this process encodes, as tasks for streams."""

    def __init__(self, job: Job, claim: Claim, year: int, block: Block) -> None:
        self.job, self.claim, self.year, self.block = job, claim, year, block
        self.places = strip_places(job.stack, job.plan, block, year)
        self.work = BlockWork(BlockSums(job.cells, block, job.plan.dims), len(self.places))

    def reading(self) -> Iterator[Task]:
        """The first task of each strip."""
        return (Task("read", partial(self._read, place)) for place in self.places)

    def _read(self, place: StripPlace) -> list[Task]:
        strip = read_strip(self.job.stack, self.job.plan, place)
        groups = batches(strip, self.job.plan)
        self.job.count(len(place.windows) - sum(len(windows) for windows in groups))
        if self.work.expect(place.number, len(groups)):
            return [Task("write", self._keep)]
        return [
            Task("encode", partial(self._encode, strip, number, windows))
            for number, windows in enumerate(groups)
        ]

    def _encode(self, strip: Strip, number: int, windows: list[Window]) -> list[Task]:
        x = encode_batch(strip, windows, self.job.plan, self.job.encoder)
        vectors = list(zip(windows, x, strict=True))
        is_complete = self.work.arrive(strip.place.number, number, vectors)
        self.job.count(len(windows))
        return [Task("write", self._keep)] if is_complete else []

    def _keep(self) -> list[Task]:
        """Keep the encoded block, and finish every block around it that waited for it."""
        job, block = self.job, self.block
        self.work.sums.save(job.markers.part(key_of(self.year, block)), job.scale)
        self.claim.release()
        return [
            Task("write", partial(_finish_block, job, self.year, around))
            for around in [block, *job.plan.layout.neighbours(block)]
            if _is_surrounded(job, self.year, around)
        ]


def _is_surrounded(job: Job, year: int, block: Block) -> bool:
    """Whether a block has no shard yet and could: it and all its neighbours are encoded."""
    around = [block, *job.plan.layout.neighbours(block)]
    is_done = job.markers.is_done(key_of(year, block))
    return not is_done and all(job.markers.is_encoded(key_of(year, b)) for b in around)


def _finish_block(job: Job, year: int, block: Block) -> list[Task]:
    """Write a block's shard if it and all its neighbours are encoded, once."""
    from bocage.embeddings import write_shard

    key, layout, markers = key_of(year, block), job.plan.layout, job.markers
    around = [block, *layout.neighbours(block)]
    if not _is_surrounded(job, year, block):
        return []
    claim = markers.claim(f"{key}.shard")
    if claim is None:
        return []  # another thread or process is writing it
    try:
        if markers.is_done(key):
            return []
        parts = {b.index_yx: markers.part(key_of(year, b)) for b in around}
        stored = finish_block(job.cells, block, parts, job.plan.dims, job.scale)
        row, col = block.index_yx
        write_shard(job.store, job.grid, year, row, col, stored)
        valid = stored[0] != NODATA if job.scale is not None else np.isfinite(stored[0])
        markers.finish(key, {"n_cells": int(valid.size), "n_valid": int(valid.sum())})
    finally:
        claim.release()
    for other in around:
        if all(markers.is_done(key_of(year, b)) for b in [other, *layout.neighbours(other)]):
            markers.part(key_of(year, other)).unlink(missing_ok=True)
    return []
