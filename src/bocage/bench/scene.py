"""Scene benchmark: the whole path on a real scene beside the model alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from bocage.errors import ConfigError
from bocage.types import PathLike


def run_scene_benchmark(
    source: PathLike,
    model: str,
    *,
    weights: PathLike | None = None,
    precision: str = "auto",
    sensor: str = "sentinel2_l2a",
    date: str | None = None,
    level: str | None = None,
    patch_size: int = 8,
    repeats: int = 5,
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Map a scene into a folder that is deleted again, and say where the time went.

    The whole path (open, read, encode, quantize, write) and the model alone (the same batches, read
    and in memory) take turns ``repeats`` times after one warm-up; medians are given. Alone, batches
    go through the model in as many streams as in the whole path (``model_alone_s``), or one after
    the other on all cores (``one_by_one_s``), as `bocage bench encoder` times them.
    ``encoder_share`` is the speed of the whole as a share of the first, ``one_by_one_share`` of the
    second. ``read_s``, ``encode_s`` and ``write_s`` are seconds of threads: over several streams
    they exceed the wall. ``options`` are those of ``embed``. Weights are random unless given: the
    time is the same.
    """
    from bocage.imagery import open_stack, stack_grid
    from bocage.mapping import EmbedConfig, embed
    from bocage.models import load_model

    if repeats < 1:
        raise ConfigError(
            got=f"repeats={repeats}", expected="at least 1", fix="use --repeats 5, or leave it out"
        )
    open_scene = partial(open_stack, source, sensor=sensor, date=date, level=level)
    loaded = load_model(model, weights=weights, precision=precision)
    config = EmbedConfig(patch_size=patch_size, **options)
    grid = stack_grid(open_scene())
    rows, cols = grid.shape_yx
    times: dict[str, list[float]] = {"alone": [], "one by one": [], "whole": []}
    for turn in range(repeats + 1):
        with _said_already(), TemporaryDirectory() as folder:
            alone, one_by_one, streams = model_alone_s(loaded, open_scene(), config)
            started = time.perf_counter()
            result = embed(open_scene(), loaded, out=Path(folder) / "scene.zarr", config=config)
            whole = time.perf_counter() - started
        if turn == 0:
            continue  # the engine is built, files are in the system's cache
        for name, seconds in zip(times, (alone, one_by_one, whole), strict=True):
            times[name].append(seconds)
        if report is not None:
            report(
                f"whole {whole:.2f} s, model alone {alone:.2f} s ({alone / whole:.0%}), "
                f"one batch at a time {one_by_one:.2f} s ({one_by_one / whole:.0%})"
            )
    clock = result.clock
    shares, others = (
        [alone / whole for alone, whole in zip(times[name], times["whole"], strict=True)]
        for name in ("alone", "one by one")
    )
    return {
        "model": model,
        "precision": loaded.precision,
        "engine": "plain" if loaded.engine is None else loaded.engine.description,
        "patch_size": patch_size,
        "rows": rows,
        "cols": cols,
        "n_windows": result.n_windows,
        "streams": streams,
        "wall_s": median(times["whole"]),
        "model_alone_s": median(times["alone"]),
        "one_by_one_s": median(times["one by one"]),
        "encoder_share": median(shares),
        "encoder_share_min": min(shares),
        "encoder_share_max": max(shares),
        "one_by_one_share": median(others),
        "read_s": clock.read_s,
        "encode_s": clock.encode_s,
        "write_s": clock.write_s,
        "km2_per_s": rows * cols * (abs(grid.transform[0]) / 1000) ** 2 / median(times["whole"]),
        "valid_fraction": result.valid_fraction,
    }


@contextmanager
def _said_already() -> Iterator[None]:
    """Opening a scene says what it leaves out; once is enough."""
    logger = logging.getLogger("bocage")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def model_alone_s(model: Any, stack: Any, config: Any) -> tuple[float, float, int]:
    """Seconds to encode a run's windows from memory: in streams, one by one; number of streams."""
    from bocage.mapping import make_plan, window_encoder
    from bocage.mapping.streams import Clock, Task, run_streams, streams_for
    from bocage.mapping.worker import batches, encode_batch, read_strip, strip_places

    plan = make_plan(stack, model, config)
    encoder = window_encoder(model, plan)

    def encode(strip: Any, windows: list[Any]) -> list[Task]:
        encode_batch(strip, windows, plan, encoder)
        return []

    tasks = [
        Task("encode", partial(encode, strip, windows))
        for year in plan.years
        for block in plan.layout.blocks()
        for place in strip_places(stack, plan, block, year)
        for strip in [read_strip(stack, plan, place)]
        for windows in batches(strip, plan)
    ]
    with streams_for(model, len(tasks)) as (streams, enter):
        started = time.perf_counter()
        all_at_once = [Task("read", lambda: tasks)]
        run_streams(all_at_once, streams=streams, clock=Clock(), enter=enter)
        in_streams = time.perf_counter() - started
    started = time.perf_counter()
    for task in tasks:
        task.run()
    return in_streams, time.perf_counter() - started, streams
