"""Embed a Stack into a Zarr store or a COG, in any number of sittings and processes."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs.signed_power import NODATA
from bocage.errors import ConfigError, InputError, StoreError
from bocage.geo import Block, Window
from bocage.mapping import record
from bocage.mapping.blend import BlockSums, BlockWork, Cells, finish_block
from bocage.mapping.config import EmbedConfig
from bocage.mapping.markers import Claim, Markers
from bocage.mapping.part import Shard
from bocage.mapping.plan import EmbedPlan, WindowEncoder, WindowModel, make_plan
from bocage.mapping.result import EmbedResult
from bocage.mapping.streams import Clock, Task, run_streams, streams_for
from bocage.mapping.timing import time_window, window_encoder
from bocage.mapping.worker import (
    Strip,
    StripPlace,
    batches,
    encode_batch,
    read_strip,
    strip_places,
)
from bocage.progress import Advance, progress
from bocage.types import PathLike

if TYPE_CHECKING:
    import xarray as xr

    from bocage.embeddings import EmbeddingGrid

log = logging.getLogger(__name__)

GDAL_CACHE_BYTES = 64 * 2**20
"""Decoded blocks that GDAL keeps while a run reads. Its own default is a share of the machine's
memory, which would fill with the scene."""

WAIT_S = 0.5
"""Between looks at blocks that another process holds."""


def check_request(out: Path, shard: str | None) -> None:
    """Refuse a name or a part that cannot be, before anything is opened; `embed` does so too."""
    if shard is not None:
        Shard.parse(shard)
    _is_cog(out)


@dataclass(kw_only=True)
class _Job:
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


def embed(
    stack: xr.Dataset,
    model: WindowModel,
    *,
    out: PathLike,
    config: EmbedConfig | None = None,
    shard: str | None = None,
    request: dict[str, Any] | None = None,
    report: Callable[[str], None] | None = None,
    show_progress: bool = False,
    **options: Any,
) -> EmbedResult:
    """Turn a Stack into a map of embeddings on disk; run it again after a crash to go on.

    Args:
        stack: From `open_stack`; float values in product units, NaN where missing.
        model: From `load_model`.
        out: A name ending in .zarr (Zarr v3 in the layout of the public OlmoEarth archive; int8
            signed-power with fill -128, or float32 with NaN) or .tif (a COG of one year).
            The run's record and a STAC item are written beside it.
        config: All options together; or give them singly as keywords, see `EmbedConfig`.
        shard: Part of the work, such as "3/40", for one of many machines on a shared disk.
        request: What the user typed, for the record.
        report: Called with the printed plan before the work starts.
        show_progress: Draw a progress display on standard error.
        **options: Fields of `EmbedConfig`.

    Raises:
        InputError: The stack has no data, or dates that do not make one embedding.
        ConfigError: Options that do not fit each other or the model.
        StoreError: `out` holds the result of another configuration, or cannot be written.
        SourceError: A file of the stack cannot be read; finished blocks are kept.
    """
    out = Path(out)
    resolved = make_plan(stack, model, _config(config, options))
    part = None if shard is None else Shard.parse(shard)
    is_cog = _check_out(out, resolved, part)
    finished = record.read(out)
    if is_cog and out.exists():
        _check_same(out, finished, resolved)
        return _result(out, resolved, finished)
    start = time.perf_counter()
    job = _open_job(stack, resolved, model, out, is_cog)
    if report is not None:
        missing = _pending(job, part)
        seconds = time_window(resolved, job.encoder) if missing else None
        report(resolved.describe(seconds))
        if len(missing) < len(_work(job, part)):
            n_done = len(_work(job, part)) - len(missing)
            report(f"resume   {n_done} block(s) are encoded, {len(missing)} to go")
    _run(job, part, show_progress)
    return _finish(job, out, is_cog, request, time.perf_counter() - start)


def _config(config: EmbedConfig | None, options: dict[str, Any]) -> EmbedConfig:
    if config is not None and options:
        raise ConfigError(
            got=f"config= and also {', '.join(options)}",
            expected="one of the two",
            fix="put the options into EmbedConfig",
        )
    unknown = options.keys() - EmbedConfig.__dataclass_fields__.keys()
    if unknown:
        raise ConfigError(
            got=f"unknown option {', '.join(sorted(unknown))}",
            expected=f"options among {', '.join(EmbedConfig.__dataclass_fields__)}",
            fix="check the spelling",
        )
    return config or EmbedConfig(**options)


def _check_out(out: Path, plan: EmbedPlan, part: Shard | None) -> bool:
    """Whether the output is a COG; refuses names and combinations that cannot be written."""
    if not _is_cog(out):
        return False
    if len(plan.years) > 1 or part is not None:
        raise ConfigError(
            got=f"a GeoTIFF for {'several years' if len(plan.years) > 1 else 'a shared run'}",
            expected="a Zarr store",
            fix=f"use --out {out.with_suffix('.zarr')}",
        )
    return True


def _is_cog(out: Path) -> bool:
    if out.suffix.lower() in {".zarr", ".tif", ".tiff"}:
        return out.suffix.lower() != ".zarr"
    raise ConfigError(
        got=f"--out {out}",
        expected="a name that ends in .zarr or .tif",
        fix=f"use --out {out.with_suffix('.zarr')}",
    )


def _scratch(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial.zarr")


def _open_job(
    stack: xr.Dataset, plan: EmbedPlan, model: WindowModel, out: Path, is_cog: bool
) -> _Job:
    from bocage.embeddings import EmbeddingGrid, create_store

    grid = EmbeddingGrid(
        crs=plan.cell_grid.crs,
        transform=plan.cell_grid.transform,
        shape_yx=plan.cell_grid.shape_yx,
        years=plan.years,
        dims=plan.dims,
        codec=plan.config.codec,
        value_scale=plan.value_scale,
        layout="single" if is_cog else "utm_zones",
        shard_cells=plan.layout.block_px // plan.config.cell_px,
        model=plan.model,
        patch_size=plan.config.patch_size,
        sensors=plan.sensors,
        attrs={
            "dates": list(plan.dates),
            "weights_id": plan.weights_id,
            "sources": list(plan.sources),
            "fingerprint": plan.fingerprint,
        },
    )
    store = _scratch(out) if is_cog else out
    markers = Markers(store=store)
    try:
        if not store.exists():
            create_store(store, grid)
    except StoreError:
        # Another process of the same run may have been faster; its identity is checked below.
        if not (store / "zarr.json").exists():
            raise
    if not (store / "zarr.json").exists():
        raise StoreError(
            got=f"{store}, which exists and is no embedding store",
            expected="a new path or a store of the same run",
            fix="choose another --out",
        )
    markers.prepare(plan.identity)
    return _Job(
        stack=stack,
        plan=plan,
        model=model,
        encoder=window_encoder(model, plan),
        store=store,
        grid=grid,
        markers=markers,
        cells=Cells(layout=plan.layout, cell_px=plan.config.cell_px),
    )


def _key(year: int, block: Block) -> str:
    return f"{year}_{block.index_yx[0]}_{block.index_yx[1]}"


def _work(job: _Job, part: Shard | None) -> list[tuple[int, Block]]:
    blocks = [(year, block) for year in job.plan.years for block in job.plan.layout.blocks()]
    if part is None:
        return blocks
    return blocks[part.index - 1 :: part.count]


def _pending(job: _Job, part: Shard | None) -> list[tuple[int, Block]]:
    return [(y, b) for y, b in _work(job, part) if not job.markers.is_encoded(_key(y, b))]


def _run(job: _Job, part: Shard | None, show_progress: bool) -> None:
    import rasterio

    pending = _pending(job, part)
    job.n_blocks_kept = len(_work(job, part)) - len(pending)
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
    for year, block in _work(job, None):
        _finish_block(job, year, block)


def _reading(job: _Job, pending: list[tuple[int, Block]]) -> Iterator[Task]:
    """Claim the blocks and read them; those another process holds are tried again until done."""
    while pending:
        held = []
        for year, block in pending:
            key = _key(year, block)
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

    def __init__(self, job: _Job, claim: Claim, year: int, block: Block) -> None:
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
        self.work.sums.save(job.markers.part(_key(self.year, block)), job.scale)
        self.claim.release()
        return [
            Task("write", partial(_finish_block, job, self.year, around))
            for around in [block, *job.plan.layout.neighbours(block)]
            if _is_surrounded(job, self.year, around)
        ]


def _is_surrounded(job: _Job, year: int, block: Block) -> bool:
    """Whether a block has no shard yet and could: it and all its neighbours are encoded."""
    around = [block, *job.plan.layout.neighbours(block)]
    is_done = job.markers.is_done(_key(year, block))
    return not is_done and all(job.markers.is_encoded(_key(year, b)) for b in around)


def _finish_block(job: _Job, year: int, block: Block) -> list[Task]:
    """Write a block's shard if it and all its neighbours are encoded, once."""
    from bocage.embeddings import write_shard

    key, layout, markers = _key(year, block), job.plan.layout, job.markers
    around = [block, *layout.neighbours(block)]
    if not _is_surrounded(job, year, block):
        return []
    claim = markers.claim(f"{key}.shard")
    if claim is None:
        return []  # another thread or process is writing it
    try:
        if markers.is_done(key):
            return []
        parts = {b.index_yx: markers.part(_key(year, b)) for b in around}
        stored = finish_block(job.cells, block, parts, job.plan.dims, job.scale)
        row, col = block.index_yx
        write_shard(job.store, job.grid, year, row, col, stored)
        valid = stored[0] != NODATA if job.scale is not None else np.isfinite(stored[0])
        markers.finish(key, {"n_cells": int(valid.size), "n_valid": int(valid.sum())})
    finally:
        claim.release()
    for other in around:
        if all(markers.is_done(_key(year, b)) for b in [other, *layout.neighbours(other)]):
            markers.part(_key(year, other)).unlink(missing_ok=True)
    return []


def _finish(
    job: _Job, out: Path, is_cog: bool, request: dict[str, Any] | None, wall_s: float
) -> EmbedResult:
    from bocage.embeddings import export_cog, write_stac_item

    if is_cog and out.exists() and _is_same(record.read(out), job.plan):
        # Another process of this run was faster, and the scratch store is gone.
        return _result(out, job.plan, record.read(out))
    everything = _work(job, None)
    done = [work for work in everything if job.markers.is_done(_key(*work))]
    valid = _valid_fraction(job, done)
    files = [out]
    if len(done) == len(everything):
        with job.markers.exclusive("finish"):
            if valid == 0:
                _refuse_empty(job, is_cog)
            if is_cog:
                export_cog(job.store, out, codec=job.plan.config.codec, overwrite=True)
            if not _is_same(record.read(out), job.plan):
                seconds = {"wall": round(wall_s, 3), **asdict(job.clock)}
                record.write(out, job.plan, request, valid_fraction=valid, seconds=seconds)
            files += [record.path_of(out), write_stac_item(out)]
            job.markers.tidy()
        if is_cog:
            shutil.rmtree(job.store)
    # Else a part of a shared run: whoever finishes last writes the sidecars.
    return EmbedResult(
        path=out,
        files=tuple(files),
        n_windows=job.n_windows,
        n_blocks_kept=job.n_blocks_kept,
        n_blocks_to_go=len(everything) - len(done),
        valid_fraction=valid,
        wall_s=wall_s,
        clock=job.clock,
    )


def _refuse_empty(job: _Job, is_cog: bool) -> None:
    if is_cog:
        shutil.rmtree(job.store)
    raise InputError(
        got=f"no usable pixel in {', '.join(job.plan.sources[:3]) or 'the stack'}",
        expected="imagery with data",
        fix="check the nodata value, the cloud mask (--no-cloud-mask) and the area",
    )


def _valid_fraction(job: _Job, work: list[tuple[int, Block]]) -> float:
    facts = [job.markers.facts(_key(y, b)) for y, b in work]
    n_cells = sum(f["n_cells"] for f in facts)
    return sum(f["n_valid"] for f in facts) / n_cells if n_cells else 0.0


def _is_same(finished: dict[str, Any] | None, plan: EmbedPlan) -> bool:
    return finished is not None and finished.get("fingerprint") == plan.fingerprint


def _check_same(out: Path, finished: dict[str, Any] | None, plan: EmbedPlan) -> None:
    if not _is_same(finished, plan):
        raise StoreError(
            got=f"{out}, which exists"
            + (
                " without a record of how it was made"
                if finished is None
                else " and was made with other options or inputs"
            ),
            expected="a new path or the same configuration",
            fix="choose another --out, or delete the file",
        )


def _result(out: Path, plan: EmbedPlan, finished: dict[str, Any] | None) -> EmbedResult:
    return EmbedResult(
        path=out,
        files=(out,),
        n_windows=0,
        n_blocks_kept=len(plan.layout.blocks()),
        valid_fraction=float((finished or {}).get("valid_fraction", float("nan"))),
        wall_s=0.0,
        clock=Clock(),
    )
