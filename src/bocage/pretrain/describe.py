"""What a collection of samples holds, in a few lines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from bocage.pretrain.modalities import MODALITIES
from bocage.pretrain.sources import open_samples
from bocage.pretrain.store_samples import StoreSamples
from bocage.progress import format_bytes, size_on_disk

if TYPE_CHECKING:
    from bocage.types import PathLike


def describe_samples(source: PathLike) -> str:
    """Number, size, modalities, timesteps, dates and places of a store or an official folder."""
    samples = open_samples(source)
    lines = [
        f"{source}: {len(samples)} samples of {samples.size_px} x {samples.size_px} pixels at 10 m"
    ]
    if not isinstance(samples, StoreSamples):
        lines.append(f"official H5 files with {', '.join(samples.modalities)}")
        lines.append("convert them for training: bocage pretrain convert")
        return "\n".join(lines)
    lines[0] += f", {format_bytes(size_on_disk(source))}"
    for row, name in enumerate(samples.modalities):
        there = samples.present[:, row]
        n_samples = int(there.any(axis=1).sum())
        text = f"  {name}: {n_samples} samples"
        if not MODALITIES[name].is_map:
            text += f", {int(there.sum())} timesteps"
        lines.append(f"{text}, {format_bytes(size_on_disk(samples.path / name))}")
    steps = Counter(samples.n_steps(i) for i in range(len(samples)))
    lines.append("  timesteps: " + ", ".join(f"{n} x {t}" for t, n in sorted(steps.items())))
    years = samples.timestamps[..., 2]
    lines.append(f"  years: {int(years.min())} to {int(years.max())}")
    if np.isfinite(samples.latlon).any():
        south, west = np.nanmin(samples.latlon, axis=0)
        north, east = np.nanmax(samples.latlon, axis=0)
        lines.append(f"  between {south:.2f}, {west:.2f} and {north:.2f}, {east:.2f} (lat, lon)")
    lines += [f"  left out: {n} {reason}" for reason, n in samples.refused.items()]
    return "\n".join(lines)
