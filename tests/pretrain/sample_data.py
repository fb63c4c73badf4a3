"""Seeded samples with everything that real ones have: absent steps, absent modalities, maps."""

import numpy as np

from bocage.pretrain.modalities import MODALITIES
from bocage.pretrain.sample import Sample


def make_sample(
    seed=0,
    *,
    size_px=32,
    n_steps=5,
    sensors=("sentinel2_l2a", "sentinel1", "landsat"),
    maps=("worldcover", "srtm", "openstreetmap_raster"),
    absent=(),
):
    """A sample; ``absent`` holds (sensor, step) pairs that are missing."""
    rng = np.random.default_rng(seed)
    values = {}
    for name in sensors:
        shape = (size_px, size_px, n_steps, len(MODALITIES[name].bands))
        x = rng.normal(-12, 4, shape) if name == "sentinel1" else rng.integers(1, 9000, shape)
        values[name] = x.astype(np.float32)
    for name, step in absent:
        values[name][:, :, step] = np.nan
    top = {"worldcover": 10, "srtm": 3000, "openstreetmap_raster": 2}
    for name in maps:
        shape = (size_px, size_px, 1, len(MODALITIES[name].bands))
        x = rng.integers(1 if name != "openstreetmap_raster" else 0, top[name], shape)
        values[name] = (x * (10 if name == "worldcover" else 1)).astype(np.float32)
    months = (seed + np.arange(n_steps)) % 12
    stamps = np.stack([np.full(n_steps, 1), months, np.full(n_steps, 2020)], axis=1)
    return Sample(
        id=f"sample {seed}",
        values=values,
        timestamps=stamps.astype(np.int64),
        latlon=(float(rng.uniform(-60, 60)), float(rng.uniform(-180, 180))),
    )
