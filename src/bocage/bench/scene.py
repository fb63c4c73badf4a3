"""Scene benchmark: the whole path on a real scene, and the share of each stage."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bocage.types import PathLike


def run_scene_benchmark(
    source: PathLike,
    model: str,
    *,
    weights: PathLike | None = None,
    precision: str = "auto",
    sensor: str = "sentinel2_l2a",
    date: str | None = None,
    patch_size: int = 8,
    **options: Any,
) -> dict[str, Any]:
    """Map a scene into a folder that is deleted again, and say where the time went.

    ``encoder_share`` is the speed of the whole as a share of the encoder's own, which is what the
    same windows would take if nothing had to be read or written. ``options`` are those of
    ``embed``. Weights are random unless given: the time is the same.
    """
    from bocage.imagery import open_stack, stack_grid
    from bocage.mapping import embed
    from bocage.models import load_model

    stack = open_stack(source, sensor=sensor, date=date)
    loaded = load_model(model, weights=weights, precision=precision)
    grid = stack_grid(stack)
    rows, cols = grid.shape_yx
    area_km2 = rows * cols * (abs(grid.transform[0]) / 1000) ** 2
    warm_up(loaded, sensor, patch_size)
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        result = embed(
            stack, loaded, out=Path(folder) / "scene.zarr", patch_size=patch_size, **options
        )
        wall = time.perf_counter() - started
    clock = result.clock
    return {
        "model": model,
        "precision": loaded.precision,
        "engine": "plain" if loaded.engine is None else loaded.engine.description,
        "patch_size": patch_size,
        "rows": rows,
        "cols": cols,
        "n_windows": result.n_windows,
        "wall_s": wall,
        "read_s": clock.read_s,
        "encode_s": clock.encode_s,
        "write_s": clock.write_s,
        "encoder_share": clock.encode_s / wall,
        "km2_per_s": area_km2 / wall,
        "valid_fraction": result.valid_fraction,
    }


def warm_up(model: Any, sensor: str, patch_size: int) -> None:
    """Build the engine before the clock starts; it is built once per process."""
    from bocage.sensors import SENSORS

    bands = SENSORS[sensor].bands
    one = np.array([band.mean for band in bands], dtype=np.float32)
    side = 8 * patch_size
    model.encode(
        {sensor: np.broadcast_to(one, (1, side, side, 1, len(bands)))},
        np.array([[[1, 6, 2024]]]),
        patch_size=patch_size,
        check_units=False,
    )
