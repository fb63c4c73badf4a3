"""Inputs of a benchmark: windows of a real scene where there is one, smooth noise otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bocage.bench.work import Shape
from bocage.errors import InputError
from bocage.models.config import ModelConfig
from bocage.models.missing import prepare
from bocage.sensors import SENSORS
from bocage.types import PathLike


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Normalized values [B, H, W, T, C] per sensor and stamps [B, T, 3]."""

    values: dict[str, Tensor]
    timestamps: Tensor


def make_inputs(
    shape: Shape,
    batch: int,
    config: ModelConfig,
    *,
    scene: PathLike | None,
    seed: int,
    device: torch.device,
) -> Inputs:
    """A batch of one shape; all samples share their dates, the first days of twelve months."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: smooth_noise(shape, batch, name, generator) for name in shape.sensors}
    if scene is not None and "sentinel2_l2a" in values:
        values["sentinel2_l2a"] = scene_windows(shape, batch, config, scene)
    stamps = [(1, t % 12, 2022 + t // 12) for t in range(shape.times)]
    return Inputs(
        values={name: x.to(device) for name, x in values.items()},
        timestamps=torch.tensor(stamps).expand(batch, -1, -1).contiguous().to(device),
    )


def smooth_noise(shape: Shape, batch: int, name: str, generator: torch.Generator) -> Tensor:
    """Normalized values with structure at several scales, for attention to find."""
    n_bands, size = len(SENSORS[name].bands), shape.size_px
    x = torch.zeros(batch * shape.times, n_bands, size, size)
    for side in (2, 8, 32):
        coarse = torch.randn(batch * shape.times, n_bands, side, side, generator=generator)
        x += 0.1 * functional.interpolate(coarse, size=(size, size), mode="bilinear")
    x = (0.4 + x).unflatten(0, (batch, shape.times))
    return torch.Tensor(x.permute(0, 3, 4, 1, 2).contiguous())


def scene_windows(shape: Shape, batch: int, config: ModelConfig, scene: PathLike) -> Tensor:
    """Windows of a Sentinel-2 scene, each timestep shifted by a patch if the scene has one date."""
    from bocage.imagery import open_stack, read_window, stack_grid

    stack = open_stack(scene, sensor="sentinel2_l2a")
    rows, cols = stack_grid(stack).shape_yx
    size = shape.size_px
    if rows < size or cols < size:
        raise InputError(
            got=f"a scene of {rows} x {cols} pixels",
            expected=f"at least {size} x {size}",
            fix="pass a larger scene or a smaller size",
        )
    samples = []
    for b in range(batch):
        steps = []
        for t in range(shape.times):
            y = (b * 7 * size + t * shape.patch_size) % (rows - size + 1)
            x = (b * 3 * size + t * shape.patch_size) % (cols - size + 1)
            window = read_window(stack, slice(y, y + size), slice(x, x + size))
            steps.append(torch.from_numpy(window.values["sentinel2_l2a"][0]).permute(1, 2, 0))
        samples.append(torch.stack(steps, dim=2))
    values, _ = prepare(
        "sentinel2_l2a",
        torch.stack(samples),
        band_sets=config.band_sets["sentinel2_l2a"],
        patch_size=shape.patch_size,
        copy_missing_bands=config.copies_missing_bands,
    )
    return values
