"""Labels learned to maps: embeddings or imagery in, GeoTIFFs of classes or values out.

A probe is applied to finished embeddings, never to single windows: the map of a scene is the map of
its embeddings, cell for cell. A fine-tuned network goes through the same windows, blending and
resume as an encoder, and its blended scores are finished like those of a probe.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.contents import contents_of
from bocage.embeddings.cog import own_grid
from bocage.errors import ConfigError, InputError
from bocage.learn.predict.blocks import write_blocks
from bocage.learn.predict.config import PredictConfig
from bocage.learn.predict.intervals import read_reference
from bocage.learn.predict.lock import alone
from bocage.learn.predict.predictor import Predictor, load_predictor
from bocage.learn.predict.result import PredictResult
from bocage.learn.predict.run import Run
from bocage.learn.predict.scores import ScoreJob, choose_years, time_scores
from bocage.learn.predict.target import check_target
from bocage.learn.source import embeddings_at
from bocage.memory import share_one_arena
from bocage.progress import format_duration

if TYPE_CHECKING:
    import xarray as xr

    from bocage.mapping import WindowModel
    from bocage.types import PathLike


def predict(
    source: PathLike | xr.Dataset,
    predictor: PathLike | Any,
    *,
    out: PathLike,
    model: WindowModel | None = None,
    config: PredictConfig | None = None,
    request: dict[str, Any] | None = None,
    report: Callable[[str], None] | None = None,
    show_progress: bool = False,
    **options: Any,
) -> PredictResult:
    """Map classes or values with a probe or a fine-tuned network; run again after a crash.

    Args:
        source: Embeddings (a Zarr store or a GeoTIFF), or a Stack from `open_stack`.
        predictor: Folder of `bocage probe` or `bocage finetune`, or what they gave in Python.
        out: NAME.tif. Classes are uint8 with nodata 255 and a color table, values float32 with
            NaN; probabilities, areas, style, picture, run.json and a STAC item lie beside it. With
            several years each gets its own file, NAME_2024.tif.
        model: For a Stack and a probe: the model that its embeddings came from.
        config: All options together, or give them singly as keywords; see `PredictConfig`.
        request: What the user typed, for the record.
        report: Called with the printed plan before the work starts.
        show_progress: Draw a progress display on standard error.
        **options: Fields of `PredictConfig`.

    Raises:
        InputError: Embeddings of another model than the probe's, or nothing but nodata.
        ConfigError: Options that do not fit each other.
        StoreError: `out` holds another map, or cannot be written.
    """
    if config is not None and options:
        raise ConfigError(
            got=f"config= and also {', '.join(options)}",
            expected="one of the two",
            fix="put the options into PredictConfig",
        )
    run = Run(
        known=load_predictor(predictor),
        out=check_target(Path(out), [source]),
        config=config or PredictConfig(**options),
        request=request,
        report=report,
        show_progress=show_progress,
    )
    run.config.check_task(run.known.task)
    _check_reference(run)
    share_one_arena()
    with alone(run.out):
        if isinstance(source, (str, Path)):
            return _predict_embeddings(str(source), run)
        return _predict_scene(source, run, model)


def _check_reference(run: Run) -> None:
    """Refuse places that will not fit before the map is made, not after."""
    config, legend = run.config, run.known.legend
    if config.reference is not None and legend is not None:
        read_reference(config.reference, run.known.scorer, legend, config.reference_label)


def is_embeddings(source: PathLike, predictor: PathLike | Any) -> bool:
    """Whether a path holds embeddings that a probe could read, and not imagery to embed first."""
    known = load_predictor(predictor)
    if known.kind == "finetuned":
        return False
    return embeddings_at(source, dims=(known.fitted_on.get("dims") or 0,)) is not None


def describe(
    source: PathLike, predictor: PathLike | Any, *, out: PathLike, config: PredictConfig
) -> str:
    """What `predict` would do with embeddings, and how long it would take here."""
    run = Run(known=load_predictor(predictor), out=check_target(Path(out), [source]), config=config)
    _check_reference(run)
    job = _job(str(source), run)
    return _describe(job, run)


def _scratch(out: Path, what: str, stack: xr.Dataset) -> Path:
    """A store beside the output; a GeoTIFF where the CRS has no place in a store of UTM zones."""
    from bocage.geo import utm_zone
    from bocage.imagery import stack_grid

    try:
        utm_zone(stack_grid(stack).crs)
    except InputError:
        return out.with_name(f"{out.stem}.{what}.tif")
    return out.with_name(f"{out.stem}.{what}.zarr")


def embed_options(known: Predictor, config: PredictConfig) -> dict[str, Any]:
    """Options of `EmbedConfig` for a scene: what the predictor was made with, then the user's."""
    if known.kind == "finetuned":
        network = known.scorer
        stated = {"patch_size": network.patch_size, "query_px": network.cell_px}
        usual, fixed = _own_windows(network)
        return {**usual, **config.embed, **stated, **fixed, "codec": "float32"}
    fitted = known.fitted_on
    options: dict[str, Any] = {}
    if fitted.get("patch_size"):
        options["patch_size"] = int(fitted["patch_size"])
    # The codec is part of what the probe learned from.
    if fitted.get("codec") in {"signed_power", "float32"}:
        options["codec"] = fitted["codec"]
    return {**options, **config.embed}


def _own_windows(network: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Windows that a fine-tuned network takes if the user names none, and what it must have."""
    if hasattr(network, "window_px"):  # a network of images
        if network.answers_once:  # one crop beside the next
            return {"halo_px": 0}, {"window_px": network.window_px}
        return {"window_px": network.window_px}, {}
    description = getattr(network, "description", None)
    if description is None:
        return {}, {}
    # As large as the crops it learned from: attention over more tokens gives other features.
    p = network.patch_size
    return {"window_px": max(-(-description.crop_px // p), _LEAST_PATCHES) * p}, {}


_LEAST_PATCHES = 8
"""As for any model (docs/defaults.md): a smaller window is mostly halo."""


def _check_model(known: Predictor, model: WindowModel | None) -> WindowModel:
    fitted = known.fitted_on
    if model is None:
        raise ConfigError(
            got=f"a scene and the probe {known.name} without a model",
            expected=f"the model that made its embeddings ({fitted.get('model') or 'unknown'})",
            fix="pass model=, or embed the scene first and predict from the embeddings",
        )
    for key, theirs in (("model", model.name), ("weights_id", model.weights_id)):
        mine = fitted.get(key)
        if mine not in (None, "") and str(mine) != str(theirs):
            raise InputError(
                got=f"{key} {theirs}",
                expected=f"{mine}, which {known.name} was fitted on",
                fix="load the model with the same name and weights",
            )
    return model


def _predict_scene(stack: xr.Dataset, run: Run, model: WindowModel | None) -> PredictResult:
    from bocage.mapping import EmbedConfig, embed, make_plan

    known, config = run.known, run.config
    start = time.perf_counter()
    sources = [str(s) for s in stack.attrs.get("bocage_sources", ())]
    network = known.scorer if known.kind == "finetuned" else _check_model(known, model)
    options = embed_options(known, config)
    plan = make_plan(stack, network, EmbedConfig(**options))
    made_of = {"predictor": known.identity, "plan": plan.fingerprint}
    run.scene = run.fingerprint({**made_of, "contents": contents_of(sources)})
    done = run.finished_scene(plan.years)
    if done is not None:
        return done
    shared: dict[str, Any] = {"report": run.report, "show_progress": run.show_progress}
    if known.kind == "finetuned":
        store = _scratch(run.out, "scores", stack)
        embed(stack, network, out=store, **options, **shared)
        run.seconds["embedding"] = time.perf_counter() - start
        run.temporary.append(store)
        identity = {
            "predictor": known.identity,
            "source": sources,
            "contents": contents_of(sources),
            "options": options,
        }
        return run.finish(store, json.loads(json.dumps(identity)))
    store = _scratch(run.out, "embeddings", stack)
    embed(stack, network, out=store, **options, **shared)
    run.seconds["embedding"] = time.perf_counter() - start
    if not config.keep_embeddings:
        run.temporary.append(store)
    return _predict_embeddings(str(store), run, scene=sources)


def _predict_embeddings(
    where: str, run: Run, *, scene: Sequence[str] | None = None
) -> PredictResult:
    """From embeddings, or from those just made of the imagery in the files `scene`."""
    if run.known.kind == "finetuned":
        raise InputError(
            got=f"the embeddings {where} with the fine-tuned network {run.known.name}",
            expected="imagery: a fine-tuned network makes its own features",
            fix="give the scene instead, or a probe that was fitted on these embeddings",
        )
    job = _job(where, run, scene)
    done = run.finished(job.identity, job.years)
    if done is not None:
        return done
    if run.report is not None and scene is None:
        run.report(_describe(job, run))
    start = time.perf_counter()
    n_kept = write_blocks(job.blocks, show_progress=run.show_progress)
    if n_kept and run.report is not None:
        run.report(f"resume   {n_kept} block(s) were scored before")
    run.seconds["scoring"] = time.perf_counter() - start
    run.temporary.append(job.store)
    return run.finish(job.store, job.identity)


def _job(where: str, run: Run, scene: Sequence[str] | None = None) -> ScoreJob:
    from bocage.embeddings.open import open_raster

    raster = open_raster(where)
    run.known.check_raster(raster, where)
    indices = choose_years(raster, run.config.years, where)
    chosen = [raster.years[i] for i in indices]
    grid = own_grid(raster)
    identity = {
        "predictor": run.known.identity,
        "source": where,
        "contents": contents_of([where] if scene is None else scene),
        "embeddings": {
            key: raster.attrs.get(key)
            for key in ("model", "weights_id", "patch_size", "fingerprint", "codec")
        },
        "years": chosen,
        "crs": grid.crs,
        "transform": [float(v) for v in tuple(grid.transform)[:6]],
        "shape_yx": list(grid.shape_yx),
        "dims": raster.shape[1],
    }
    return ScoreJob(
        raster=raster,
        year_indices=indices,
        predictor=run.known,
        store=run.out.with_name(f"{run.out.stem}.scores.zarr"),
        identity=json.loads(json.dumps(identity)),
    )


def _describe(job: ScoreJob, run: Run) -> str:
    rows, cols = job.raster.shape[2:]
    known = run.known
    shown = ", ".join(known.outputs[:8]) + (", ..." if len(known.outputs) > 8 else "")
    years = ", ".join(str(y) if y else "unknown" for y in job.years)
    targets = ", ".join(str(p) for p in run.targets(job.years))
    return "\n".join(
        [
            f"input    {cols} x {rows} cells x {job.raster.shape[1]} dims, {job.blocks.grid.crs}, "
            f"year(s) {years}",
            f"with     {known.name}: {known.task}, {shown}",
            f"output   {targets}"
            + (" and probabilities" if run.config.probability and known.legend else ""),
            f"time     about {format_duration(time_scores(job))} on this machine",
        ]
    )
