"""What depends on the shape of a window and its dates only: computed once for all windows.

Axes: B batch, h w patch rows and columns, P = h w places, T timesteps, S band sets of all sensors
together, N = P T S tokens in this order, M heads, K channel pairs of a head.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bocage.models.config import PositionConfig
from bocage.models.engine.kernels import ResizeTaps, TokenOrder
from bocage.models.packing import Packing
from bocage.models.patch_embedding import resize_matrix
from bocage.models.rope import days_since_first, grid_positions

Value = TypeVar("Value")

Angles = tuple[Tensor, Tensor]
"""Rotation of a block: angles of time [B or 1, T, M, K] and of place [P, M, K], to be added."""


class Recent(Generic[Value]):
    """The last few results of a function of shapes and dates, for any number of threads."""

    def __init__(self, size: int = 4) -> None:
        self.size = size
        self._results: dict[Hashable, Value] = {}
        self._lock = threading.Lock()

    def get(self, make: Callable[[], Value], *key: object) -> Value:
        """The stored result for the key, or that of ``make``; tensors count by their values."""
        name = tuple(
            (tuple(part.shape), part.cpu().numpy().tobytes()) if isinstance(part, Tensor) else part
            for part in key
        )
        with self._lock:
            if name not in self._results:
                while len(self._results) >= self.size:
                    del self._results[next(iter(self._results))]
                self._results[name] = make()
            return self._results[name]


def time_angles(timestamps: Tensor, positions: PositionConfig, frequencies: Tensor) -> Tensor:
    """Angles [B or 1, T, M, K] of the dates; 1 if all samples have the same."""
    if positions.n_coordinates != 3:
        return frequencies.new_zeros(1, timestamps.shape[1], *frequencies.shape[1:])
    days = days_since_first(timestamps) * positions.temporal_coordinate_scale
    if bool((days == days[:1]).all()):
        days = days[:1]
    return days[:, :, None, None] * frequencies[0]


def place_angles(places: Tensor, frequencies: Tensor) -> Tensor:
    """Angles [P, M, K] of (row, column) [P, 2]."""
    row, col = frequencies[-2], frequencies[-1]
    return places[:, :1, None] * row + places[:, 1:, None] * col


def grid_places(grid_hw: tuple[int, int], step: float, positions: PositionConfig) -> Tensor:
    """Row and column [P, 2] of the cells of a window."""
    places = grid_positions(*grid_hw, step * positions.coordinate_scale, torch.device("cpu"))
    return places.flatten(0, 1)


def turns(angles: Tensor) -> Tensor:
    """Cosine and sine [..., M, 2, K] of angles [..., M, K], as the kernels read them."""
    return torch.stack([angles.cos(), angles.sin()], dim=-2)


def token_order(n_places: int, n_times: int, n_sets: int) -> TokenOrder:
    """Time and place of every token of a complete window."""
    index = torch.arange(n_places * n_times * n_sets, dtype=torch.int32)[None]
    return TokenOrder(time=index // n_sets % n_times, place=index // (n_sets * n_times))


def packed_order(order: TokenOrder, packing: Packing) -> TokenOrder:
    """Time and place of the tokens that are kept."""
    n_batch, length = packing.index.shape
    lengths = torch.full((n_batch,), length)
    if packing.valid is not None:
        lengths = packing.valid.sum(dim=1)
    return TokenOrder(
        time=order.time[0][packing.index],
        place=order.place[0][packing.index],
        lengths=lengths,
    )


@lru_cache(maxsize=64)
def resize_taps(n_pixels: int, patch_size: int, base: int) -> ResizeTaps:
    """The resize of one axis to ``base`` pixels per patch, as runs of pixels and their weights."""
    n_out = n_pixels // patch_size * base
    if patch_size == base:
        return ResizeTaps(
            first=torch.arange(n_out, dtype=torch.int32), weight=torch.empty(n_out, 0)
        )
    matrix = resize_matrix(n_pixels, n_out)
    used = (matrix != 0).to(torch.uint8)
    first, last = used.argmax(dim=1), n_pixels - 1 - used.flip(1).argmax(dim=1)
    n_taps = int((last - first).max()) + 1
    first = first.clamp(max=n_pixels - n_taps)
    weight = matrix.gather(1, first[:, None] + torch.arange(n_taps))
    return ResizeTaps(first=first.to(torch.int32), weight=weight.contiguous())
