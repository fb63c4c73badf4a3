"""How many windows to pass at once where nobody said."""

from __future__ import annotations

import torch

from bocage.models.config import ModelConfig
from bocage.models.engine.fast import NUMBERS_AT_ONCE

MAX_WINDOWS = 64
"""On a CPU: more only delays the first result."""

MAX_GPU_WINDOWS = 512
"""The batch of the published benchmark."""

LIVE_NUMBERS = 12
"""Numbers per token and width that are alive together: tokens, q, k, v and the wide layer."""


def choose_batch(
    config: ModelConfig, n_tokens: int, device: torch.device, precision: str
) -> tuple[int, str]:
    """Windows of ``n_tokens`` tokens for one call, with the reason in words.

    A rule and not a measurement, so that one machine always gives one answer and a map can be
    resumed: on a CPU as many as fill the caches (that is where speed stops growing), on a GPU as
    many as use an eighth of its memory.
    """
    numbers = n_tokens * config.width
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        item = 4 if precision == "fp32" else 2
        n = max(1, min(MAX_GPU_WINDOWS, memory // 8 // (numbers * LIVE_NUMBERS * item)))
        return n, f"an eighth of the {memory / 2**30:.0f} GiB of the GPU"
    n = max(1, min(MAX_WINDOWS, NUMBERS_AT_ONCE // numbers))
    return n, f"{n} x {n_tokens} tokens of width {config.width} fill the caches, more gain nothing"
