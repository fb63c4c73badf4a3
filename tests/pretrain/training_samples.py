"""A small collection of samples in memory, smooth enough to be learned, for tests of the loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from bocage.pretrain.recipe import Recipe, make_recipe
from bocage.pretrain.sampling import SamplingConfig
from bocage.sensors import SENSORS

SMALL = SamplingConfig(token_budget=300, patch_sizes=(2, 4, 8), sides=(1, 2, 3), max_steps=3)
"""Crops of a few tokens: a step takes milliseconds."""


@dataclass
class StoredInMemory:
    id: str
    timestamps: np.ndarray
    present: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    def read(self, name, rows, cols, steps):
        return self.values[name][rows, cols][:, :, list(steps)]


class SamplesInMemory:
    """Two sensors and one map; some samples lack a sensor, a timestep or the map."""

    size_px = 32
    max_steps = 3

    def __init__(self, n: int = 24, *, modalities=("sentinel2_l2a", "sentinel1", "worldcover")):
        self.modalities = tuple(modalities)
        self.samples = [self._make(i) for i in range(n)]

    def _make(self, index: int) -> StoredInMemory:
        rng = np.random.default_rng(index)
        y, x = np.mgrid[:32, :32] / 32
        wave = np.sin(2 * np.pi * (x * rng.uniform(0.5, 3) + y * rng.uniform(0.5, 3)))[..., None]
        season = rng.uniform(0.5, 1.5, 3)
        values, present = {}, {}
        for name in self.modalities:
            if name == "worldcover":
                codes = np.array([10, 30, 40, 80], np.float32)
                values[name] = codes[(wave > 0).astype(int) + 2 * (index % 2)][..., None]
                present[name] = np.ones(1, bool)
                continue
            bands = SENSORS[name].bands
            mean = np.array([b.mean for b in bands], np.float32)
            std = np.array([b.std for b in bands], np.float32)
            tone = rng.normal(0, 0.3, len(bands))
            grid = (0.4 * wave + tone)[:, :, None] * season[None, None, :, None]
            noise = rng.normal(0, 0.02, (32, 32, 3, len(bands)))
            values[name] = (mean + std * (grid + noise)).astype(np.float32)
            present[name] = np.ones(3, bool)
            if index % 5 == 1 and name == "sentinel1":
                values[name][:, :, 1] = np.nan
                present[name][1] = False
        if index % 7 == 3 and len(values) > 1:
            name = self.modalities[-1]
            del values[name], present[name]
        stamps = np.array([(1, m, 2020 + index % 3) for m in (2, 5, 8)], np.int64)
        return StoredInMemory(f"sample-{index}", stamps, present, values)

    def __len__(self):
        return len(self.samples)

    def n_steps(self, index: int) -> int:
        return 3

    def sample_id(self, index: int) -> str:
        return self.samples[index].id

    @contextmanager
    def sample(self, index: int) -> Iterator[StoredInMemory]:
        yield self.samples[index]


def small_recipe(release: str = "v1.2", **options) -> Recipe:
    """A recipe of nano that takes milliseconds per step."""
    defaults = {
        "steps": 6,
        "batch_size": 8,
        "micro_batch_size": 4,
        "precision": "fp32",
        "sampling": replace(SMALL, band_sets="v1" if release == "v1" else "single"),
    }
    return make_recipe(release, "nano", **{**defaults, **options})


QUIET = {"progress": False, "workers": 0}
