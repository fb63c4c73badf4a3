"""Batches of random pretraining data, made without any loader."""

from __future__ import annotations

import torch

from bocage.models.config import ModelConfig, band_names
from bocage.pretrain.batch import Batch
from bocage.sensors import MAPS, SENSORS

from ..models.official import random_dates


def random_batch(
    config: ModelConfig,
    *,
    n_samples: int = 3,
    cells: int = 3,
    patch_size: int = 4,
    n_times: int = 4,
    modalities: tuple[str, ...] = (*SENSORS, *MAPS),
    missing: float = 0.2,
    seed: int = 0,
) -> Batch:
    """Normalized values; whole timesteps of a modality are missing with probability ``missing``."""
    generator = torch.Generator().manual_seed(seed)
    side = cells * patch_size
    values, present = {}, {}
    for name in modalities:
        times = n_times if name in SENSORS else 1
        here = torch.rand(n_samples, 1, 1, times, 1, generator=generator) >= missing
        x = torch.rand(n_samples, side, side, times, len(band_names(name)), generator=generator)
        values[name] = x * here
        present[name] = here.expand(-1, cells, cells, -1, len(config.band_sets[name]))
    return Batch(
        values=values,
        present=present,
        timestamps=random_dates(n_samples, n_times, seed),
        patch_size=patch_size,
        ids=tuple(f"sample_{i}" for i in range(n_samples)),
    )
