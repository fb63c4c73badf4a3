"""Rotary encoding and attention of a training step on kernels, forward and backward.

The numbers are those of ``turn`` and ``grouped_attention``; see ``training.py`` for precisions.

Axes: n tokens, m tokens that are read, G vectors of a token, M heads, K channel pairs of a head,
D = 2 K M, X coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bocage.models import training_kernels as kernels
from bocage.models.selection import RowGroup
from bocage.models.training import usable


def attends(x: Tensor) -> bool:
    """True where the kernels can do the attention of x [n, G, M, 2 K]."""
    return usable(x) and x.shape[-1] in kernels.HEAD_WIDTHS


def rotary_attention(
    x: Tensor,
    positions: Tensor | None,
    frequencies: Tensor | None,
    groups: Sequence[RowGroup],
    *,
    context: Tensor | None = None,
    context_positions: Tensor | None = None,
) -> Tensor:
    """Attention [n, D] of queries, keys and values x [n, 3, M, 2 K] at positions [n, X].

    With a context of keys and values [m, 2, M, 2 K] at positions [m, X], x [n, 1, M, 2 K] has only
    queries. ``frequencies`` [X, M or 1, K]; None: no rotation.
    """
    heads = x.shape[2]
    if frequencies is not None:
        frequencies = frequencies.expand(-1, heads, -1).flatten(1)
    rows = _rows(tuple(groups))
    out: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        x.flatten(2),
        None if context is None else context.flatten(2),
        positions,
        context_positions,
        frequencies,
        rows,
        heads,
    )
    return out


@lru_cache(maxsize=64)
def _rows(groups: tuple[RowGroup, ...]) -> Tensor:
    """First token and number of those that ask, and of those that are read, of each row [R, 4]."""
    table, asked, read = [], 0, 0
    for group in groups:
        for _ in range(group.n_rows):
            table.append((asked, group.n_queries, read, group.n_read))
            asked, read = asked + group.n_queries, read + group.n_read
    return torch.tensor(table, dtype=torch.int64).reshape(-1, 4)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any,
        x: Tensor,
        context: Tensor | None,
        positions: Tensor | None,
        context_positions: Tensor | None,
        frequencies: Tensor | None,
        rows: Tensor,
        heads: int,
    ) -> Tensor:
        sources = [x.contiguous()] + ([] if context is None else [context.contiguous()])
        factors: list[Tensor] = []
        turned = [s[:, :-1] if s.shape[1] > 1 else s for s in sources]
        if frequencies is not None and positions is not None:
            places = [positions] + ([] if context_positions is None else [context_positions])
            with torch.autocast("cpu", enabled=False):
                factors = [_factors(place, frequencies.float()) for place in places]
            turned = [
                kernels.turn(s, f, t.shape[1])
                for s, f, t in zip(sources, factors, turned, strict=True)
            ]
        q, k, v = turned[0][:, 0], turned[-1][:, -1], sources[-1][:, -1]
        out, normalizer = kernels.attention(q, k, v, rows, heads)
        places = [place for place in (positions, context_positions) if place is not None]
        ctx.save_for_backward(out, normalizer, rows, *sources, *turned, *factors, *places)
        ctx.n_sources, ctx.n_factors = len(sources), len(factors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        n = ctx.n_sources
        out, normalizer, rows, *rest = ctx.saved_tensors
        sources, turned, rest = rest[:n], rest[n : 2 * n], rest[2 * n :]
        factors, places = rest[: ctx.n_factors], rest[ctx.n_factors :]
        q, k, v = turned[0][:, 0], turned[-1][:, -1], sources[-1][:, -1]
        by = [torch.empty(source.shape) for source in sources]
        kernels.attention_gradient(
            gradient.to(out.dtype).contiguous(),
            q,
            k,
            v,
            out,
            normalizer,
            rows,
            (by[0][:, 0], by[-1][:, -2], by[-1][:, -1]),
        )
        by_frequency = None
        if factors:
            learned = ctx.needs_input_grad[4]
            for i, (g, t, f, place) in enumerate(zip(by, turned, factors, places, strict=True)):
                by_angle = torch.empty(f.shape) if learned else None
                by[i] = kernels.turn_gradient(g, t, f, by_angle=by_angle)
                if by_angle is not None:
                    with torch.autocast("cpu", enabled=False):
                        part = place.T @ by_angle
                    by_frequency = part if by_frequency is None else by_frequency + part
        else:
            by = [g.to(source.dtype) for g, source in zip(by, sources, strict=True)]
        return by[0], by[1] if n > 1 else None, None, None, by_frequency, None, None


def _factors(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Complex [n, D / 2] of positions [n, X] and frequencies [X, D / 2]."""
    angles = positions[:, :1] * frequencies[0]  # sums of products, as in rope_angles
    for axis in range(1, len(frequencies)):
        angles.addcmul_(positions[:, axis : axis + 1], frequencies[axis])
    return torch.complex(angles.cos(), angles.sin())
