"""Crops turned and mirrored with their labels, and crops with dates or bands hidden.

Axes: B batch, T dates, H W pixels, C bands, h w patch rows and columns, S band sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bocage.learn.finetune.inputs import Inputs

N_TURNS = 8
"""Ways to lay a square on itself: 0 to 3 quarter turns, then the same mirrored."""


def turn(x: NDArray[Any], way: int, axes: tuple[int, int]) -> NDArray[Any]:
    """Lay an array on itself in one of eight ways; rows and columns are ``axes``."""
    if way >= 4:
        x = np.flip(x, axes[1])
    return np.rot90(x, way % 4, axes)


def choose_way(rng: np.random.Generator, shape_yx: tuple[int, int]) -> int:
    """One of eight ways for a square, one of four for a rectangle."""
    way = int(rng.integers(N_TURNS))
    return way if shape_yx[0] == shape_yx[1] else way - way % 2


def hide(
    inputs: Inputs, rngs: list[np.random.Generator], *, timesteps: float, bands: float
) -> Inputs:
    """Hide dates (all sensors) and bands (at all dates) of each crop, each with its chance.

    A hidden date is a missing date, a hidden band is 0 after normalization, as in pretraining. A
    date with data and a band of each sensor stay.
    """
    if timesteps == 0 and bands == 0:
        return inputs
    values = {name: x.clone() for name, x in inputs.values.items()}
    visible = inputs.visible
    n_times = inputs.timestamps.shape[1]
    if timesteps > 0 and n_times > 1:
        if visible is None:
            raise ValueError("dates can only be hidden where tokens can be")
        visible = {name: v.clone() for name, v in visible.items()}
    for b, rng in enumerate(rngs):
        if timesteps > 0 and n_times > 1 and visible is not None:
            has = torch.stack([v[b].any(dim=-1).any(dim=0).any(dim=0) for v in visible.values()])
            for t in _chosen(rng, timesteps, has.any(dim=0).numpy()):
                for name, x in values.items():
                    x[b, :, :, t] = 0
                    visible[name][b, :, :, t] = False
        if bands > 0:
            for x in values.values():
                for c in _chosen(rng, bands, np.ones(x.shape[-1], bool)):
                    x[b, ..., c] = 0
    return Inputs(values=values, timestamps=inputs.timestamps, visible=visible)


def _chosen(rng: np.random.Generator, chance: float, has: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Positions to hide; of those that have data one always stays."""
    hidden = rng.random(len(has)) < chance
    keep = rng.permutation(np.flatnonzero(has))[:1]
    hidden[keep] = False
    return np.flatnonzero(hidden)
