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
from bocage.mapping.parts import Parts
from bocage.mapping.plan import EmbedPlan, WindowEncoder, WindowModel
from bocage.mapping.shard import Shard
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
from bocage.types import CodeArray

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
    parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        self.parts = Parts(markers=self.markers)

    def count(self, n_windows: int, *, encoded: bool = True) -> None:
        """Note windows that are done, here or by another process."""
        with self.lock:
            self.n_windows += n_windows if encoded else 0
            self.advance(n_windows)

    @property
    def scale(self) -> float | None:
        """Value scale of int8 codes; None for float32."""
        return self.plan.value_scale if self.plan.config.codec == "signed_power" else None

    def work(self, shard: Shard | None = None) -> list[tuple[int, Block]]:
        """Years and blocks of the run, or of a part of it."""
        blocks = [(year, block) for year in self.plan.years for block in self.plan.layout.blocks()]
        return blocks if shard is None else blocks[shard.index - 1 :: shard.count]

    def pending(self, shard: Shard | None = None) -> list[tuple[int, Block]]:
        """What of it is to be encoded."""
        return [work for work in self.work(shard) if not self.is_encoded(*work)]

    def around(self, block: Block) -> list[Block]:
        """A block and its neighbours: what adds to it, and what it adds to."""
        return [block, *self.plan.layout.neighbours(block)]

    def is_encoded(self, year: int, block: Block) -> bool:
        """Whether the part of a block is there, or nothing waits for it any more."""
        # A part goes only after the last of these markers came, so this order cannot miss both.
        return self.parts.has(key_of(year, block)) or self.is_done_around(year, block)

    def is_done_around(self, year: int, block: Block) -> bool:
        """Whether a block and all its neighbours have their shards."""
        return all(self.markers.is_done(key_of(year, b)) for b in self.around(block))

    def is_ready(self, year: int, block: Block) -> bool:
        """Whether a block has no shard yet and could: it and all its neighbours are encoded."""
        if self.markers.is_done(key_of(year, block)):
            return False
        return all(self.parts.has(key_of(year, b)) for b in self.around(block))


def key_of(year: int, block: Block) -> str:
    """Name of the markers of a block."""
    return f"{year}_{block.index_yx[0]}_{block.index_yx[1]}"


def run_job(job: Job, shard: Shard | None, *, show_progress: bool) -> None:
    """Encode what is not encoded yet, and finish every block that can be."""
    import rasterio

    pending = job.pending(shard)
    job.n_blocks_kept = len(job.work(shard)) - len(pending)
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
        job.parts.spill()
        # Another process may have encoded the last neighbours of blocks of ours, or a killed one.
        for year, block in job.work():
            for task in _finish_block(job, year, block):
                task.run()
    finally:
        try:
            job.parts.spill()
        finally:
            for claim in job.claims:
                claim.release()


def _reading(job: Job, pending: list[tuple[int, Block]]) -> Iterator[Task]:
    """Claim the blocks and read them; those another process holds are tried again until done."""
    while pending:
        held = []
        for year, block in pending:
            key = key_of(year, block)
            claim = job.markers.claim(key)
            if claim is None:
                held.append((year, block))
            elif job.is_encoded(year, block):
                claim.release()
                job.count(job.plan.layout.n_windows(block), encoded=False)
            else:
                job.claims.append(claim)
                yield from _BlockRun(job, claim, year, block).reading()
        if len(held) == len(pending):
            job.parts.spill()  # The others may be waiting for us.
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
        if not self.places:  # Its cells are the ends of its neighbours' cores.
            return iter([Task("write", self._keep)])
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
        job, year, block = self.job, self.year, self.block
        job.parts.put(key_of(year, block), self.work.sums.part(job.scale), self.claim)
        return [
            Task("write", partial(_finish_block, job, year, b))
            for b in job.around(block)
            if job.is_ready(year, b)
        ]


def _finish_block(job: Job, year: int, block: Block) -> list[Task]:
    """Make a block's shard if it and all its neighbours are encoded, once."""
    from bocage.embeddings import shard_bytes

    key, markers = key_of(year, block), job.markers
    if not job.is_ready(year, block):
        return []
    claim = markers.claim(f"{key}.shard")
    if claim is None:
        return []  # another thread or process is writing it
    job.claims.append(claim)
    if markers.is_done(key):
        claim.release()
        return []

    def parts(of: Block, *names: str) -> list[CodeArray]:
        return job.parts.get(key_of(year, of), *names)

    stored = finish_block(job.cells, block, parts, job.plan.dims, job.scale)
    valid = stored[0] != NODATA if job.scale is not None else np.isfinite(stored[0])
    facts = {"n_cells": int(valid.size), "n_valid": int(valid.sum())}
    data = shard_bytes(job.grid, *block.index_yx, stored)
    return [Task("write", partial(_put, job, year, block, data, facts, claim), waits=True)]


def _put(  # noqa: PLR0917 - bound at once
    job: Job, year: int, block: Block, data: bytes | None, facts: dict[str, int], claim: Claim
) -> list[Task]:
    """Write a shard and then its marker, and drop the parts that nothing waits for any more."""
    from bocage.embeddings import put_shard

    put_shard(job.store, job.grid, year, *block.index_yx, data)
    job.markers.finish(key_of(year, block), facts)
    claim.release()
    for other in job.around(block):
        if job.is_done_around(year, other):
            job.parts.drop(key_of(year, other))
    return []
