"""Embed a Stack into a Zarr store or a COG, in any number of sittings and processes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import ConfigError, InputError, StoreError
from bocage.geo import Block
from bocage.mapping import record
from bocage.mapping.blend import Cells
from bocage.mapping.config import EmbedConfig
from bocage.mapping.job import Job, key_of, run_job
from bocage.mapping.markers import Markers
from bocage.mapping.plan import EmbedPlan, WindowModel, make_plan
from bocage.mapping.result import EmbedResult
from bocage.mapping.shard import Shard
from bocage.mapping.streams import Clock
from bocage.mapping.timing import time_window, window_encoder
from bocage.types import PathLike

if TYPE_CHECKING:
    import xarray as xr


def check_request(out: Path, shard: str | None) -> None:
    """Refuse a name or a part that cannot be, before anything is opened; `embed` does so too."""
    if shard is not None:
        Shard.parse(shard)
    _is_cog(out)


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
        return _result(out, resolved, _same(out, finished, resolved))
    start = time.perf_counter()
    job = _open_job(stack, resolved, model, out, is_cog)
    if report is not None:
        missing = job.pending(part)
        seconds = time_window(resolved, job.encoder) if missing else None
        report(resolved.describe(seconds))
        if len(missing) < len(job.work(part)):
            n_done = len(job.work(part)) - len(missing)
            report(f"resume   {n_done} block(s) are encoded, {len(missing)} to go")
    run_job(job, part, show_progress=show_progress)
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
) -> Job:
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
        shard_cells=plan.shard_cells,
        model=plan.model,
        patch_size=plan.config.patch_size,
        sensors=plan.sensors,
        attrs={
            "dates": list(plan.dates),
            "weights_id": plan.weights_id,
            "precision": plan.precision,
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
    return Job(
        stack=stack,
        plan=plan,
        model=model,
        encoder=window_encoder(model, plan),
        store=store,
        grid=grid,
        markers=markers,
        cells=Cells(layout=plan.layout, cell_px=plan.config.cell_px),
    )


def _finish(
    job: Job, out: Path, is_cog: bool, request: dict[str, Any] | None, wall_s: float
) -> EmbedResult:
    from bocage.embeddings import export_cog, write_stac_item

    finished = record.read(out)
    if is_cog and out.exists() and finished is not None and _is_same(finished, job.plan):
        # Another process of this run was faster, and the scratch store is gone.
        return _result(out, job.plan, finished)
    everything = job.work()
    done = [work for work in everything if job.markers.is_done(key_of(*work))]
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


def _refuse_empty(job: Job, is_cog: bool) -> None:
    if is_cog:
        shutil.rmtree(job.store)
    raise InputError(
        got=f"no usable pixel in {', '.join(job.plan.sources[:3]) or 'the stack'}",
        expected="imagery with data",
        fix="check the nodata value, the cloud mask (--no-cloud-mask) and the area",
    )


def _valid_fraction(job: Job, work: list[tuple[int, Block]]) -> float:
    facts = [job.markers.facts(key_of(y, b)) for y, b in work]
    n_cells = sum(f["n_cells"] for f in facts)
    return sum(f["n_valid"] for f in facts) / n_cells if n_cells else 0.0


def _is_same(finished: dict[str, Any] | None, plan: EmbedPlan) -> bool:
    return finished is not None and finished.get("fingerprint") == plan.fingerprint


def _same(out: Path, finished: dict[str, Any] | None, plan: EmbedPlan) -> dict[str, Any]:
    """The record of an output, if it is that of this run."""
    if finished is None or not _is_same(finished, plan):
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
    return finished


def _result(out: Path, plan: EmbedPlan, finished: dict[str, Any]) -> EmbedResult:
    return EmbedResult(
        path=out,
        files=(out,),
        n_windows=0,
        n_blocks_kept=len(plan.layout.blocks()),
        valid_fraction=float(finished["output"]["valid_fraction"]),
        wall_s=0.0,
        clock=Clock(),
    )
