"""The function a plan calls, and how long one window of it takes on this machine."""

from __future__ import annotations

import time

import numpy as np

from bocage.mapping.plan import EmbedPlan, WindowEncoder, WindowModel
from bocage.sensors import SENSORS

_TIMED_PATCHES = 40


def window_encoder(model: WindowModel, plan: EmbedPlan) -> WindowEncoder:
    """The model's function of a batch of windows, or of one domain, for a plan."""
    if plan.config.seam_free:
        return model.domain_encoder(
            patch_size=plan.config.patch_size,
            neighborhood_px=plan.config.window_px,
            output=plan.config.output,
            location_query_patch_size=plan.config.query_px,
        )
    return model.window_encoder(
        patch_size=plan.config.patch_size,
        output=plan.config.output,
        location_query_patch_size=plan.config.query_px,
    )


def time_window(plan: EmbedPlan, encoder: WindowEncoder) -> float:
    """Seconds per window on this machine, from about a fiftieth of the run at most."""
    # A domain of seam-free inference is large; its time goes with its area.
    side = min(plan.layout.window_px, _TIMED_PATCHES * plan.config.patch_size)
    n = max(1, min(plan.batch_size, plan.n_windows // 50))
    steps = max(len(indices) for _, indices in plan.steps)
    rng = np.random.default_rng(0)
    values = {}
    for name in plan.sensors:
        bands = SENSORS[name].bands
        mean = np.array([b.mean for b in bands], np.float32)[:, None, None]
        noise = rng.standard_normal((n, steps, len(bands), side, side), dtype=np.float32)
        values[name] = mean * (1 + np.float32(0.1) * noise)
    stamps = np.tile(np.array([[1, 6, 2020]]), (n, steps, 1))
    encoder({name: x[:1] for name, x in values.items()}, stamps[:1])
    start = time.perf_counter()
    encoder(values, stamps)
    return (time.perf_counter() - start) / n * (plan.layout.window_px / side) ** 2
