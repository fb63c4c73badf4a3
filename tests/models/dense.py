"""Seam-free inference in its own words: the plain encoder under full masks of what sees what."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bocage.models.encoder import Encoder, EncoderOutput
from bocage.models.releases import release_config

from .official import random_dates, random_values, randomize

S2 = ("sentinel2_l2a",)
S2_S1 = ("sentinel2_l2a", "sentinel1")
NANO = release_config("v1.2", "nano")
POOLER = release_config("v1.3", "nano")


class Case(NamedTuple):
    """A domain of ``grid`` cells whose tokens see ``window`` of them each way."""

    grid: tuple[int, int]
    times: int
    sensors: tuple[str, ...]
    patch_size: int
    window: int

    def inputs(self) -> tuple[dict[str, Tensor], Tensor]:
        h, w = (n * self.patch_size for n in self.grid)
        return random_values(self.sensors, (1, h, w, self.times)), random_dates(1, self.times)


every_domain = pytest.mark.parametrize(
    "case",
    [
        Case((19, 12), 1, S2, 8, 6),
        Case((9, 23), 1, S2, 4, 5),
        Case((7, 11), 3, S2_S1, 4, 4),
        Case((5, 21), 1, S2_S1, 8, 8),  # narrower than the window one way
        Case((38, 21), 1, S2, 1, 16),
    ],
    ids=str,
)


def random_encoder(config: object, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder(config)  # type: ignore[arg-type]
    randomize(encoder, seed)
    return encoder.eval()


def sees(query: Tensor, key: Tensor, n: int, window: int) -> Tensor:
    """The rule, in its own words: ``window`` cells around the query, moved until inside 0..n."""
    window = min(window, n)
    lowest = query[:, None] - window // 2
    lowest = torch.where(lowest < 0, 0, lowest)
    lowest = torch.where(lowest + window > n, n - window, lowest)
    return (key >= lowest) & (key < lowest + window)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax over all keys at once, in fp64; a query that sees nothing gives zeros."""
    scores = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
    weights = torch.where(mask, (scores - scores.amax(-1, keepdim=True)).exp(), 0)
    total = weights.sum(-1, keepdim=True)
    return (weights @ v.double() / torch.where(total == 0, 1, total)).float()


def dense_encoder(
    encoder: Encoder,
    values: dict[str, Tensor],
    dates: Tensor,
    patch_size: int,
    *,
    window: int,
    monkeypatch: pytest.MonkeyPatch,
    visible: dict[str, Tensor] | None = None,
    query: int | None = None,
) -> EncoderOutput:
    """The plain encoder, with a full mask of what sees what in each of its attentions."""
    first = next(iter(values.values()))
    h, w = (n // patch_size for n in first.shape[1:3])
    sensors = [m for m in encoder.config.modalities if m in values]
    cells = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    tokens = torch.cat([cells.repeat_interleave(first.shape[3], 0) for _ in sensors])
    side = patch_size // (query or patch_size)
    locations = torch.cartesian_prod(torch.arange(h * side), torch.arange(w * side)) // side
    hidden = torch.zeros(len(tokens), dtype=torch.bool)
    if visible is not None:
        hidden = ~torch.cat([visible[m].flatten() for m in sensors])

    calls = []

    def attention(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        depth = encoder.config.depth
        reads = len(calls) >= depth
        looks = reads and (len(calls) - depth) % 2 == 1
        calls.append(None)
        of_q, of_k = (locations if reads else tokens), (locations if looks else tokens)
        assert (q.shape[2], k.shape[2]) == (len(of_q), len(of_k))
        mask = sees(of_q[:, 0], of_k[:, 0], h, window) & sees(of_q[:, 1], of_k[:, 1], w, window)
        return dense_attention(q, k, v, mask if looks else mask & ~hidden)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(functional, "scaled_dot_product_attention", attention)
        return encoder(values, dates, patch_size, location_query_patch_size=query)
