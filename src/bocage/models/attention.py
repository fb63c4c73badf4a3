"""Attention and the transformer block; names of parameters are those of the official checkpoints.

Axes: B batch, N tokens (queries), L tokens that are read, M heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.models.config import PositionConfig
from bocage.models.rope import (
    axial_frequencies,
    initial_mixed_frequencies,
    rope_angles,
    rotate,
    turn,
)
from bocage.models.selection import RowGroup
from bocage.models.training import add_mlp, linear
from bocage.models.training_attention import attends, rotary_attention


class Attention(nn.Module):
    """Multi-head attention over the tokens themselves, or over a context of other tokens."""

    def __init__(
        self,
        width: int,
        heads: int,
        positions: PositionConfig,
        *,
        attention_width: int | None = None,
        context_width: int | None = None,
    ) -> None:
        super().__init__()
        inner = attention_width or width
        self.heads = heads
        self.positions = positions
        self.q = nn.Linear(width, inner)
        self.k = nn.Linear(context_width or width, inner)
        self.v = nn.Linear(context_width or width, inner)
        self.proj = nn.Linear(inner, width)
        self.head_width = inner // heads
        if positions.learned:
            self.rope_mixed_freqs = nn.Parameter(
                initial_mixed_frequencies(positions, heads, self.head_width)
            )

    def frequencies(self) -> Tensor:
        """Rotation frequencies [X, M or 1, head_width / 2]."""
        if self.positions.learned:
            return self.rope_mixed_freqs
        fixed = axial_frequencies(self.positions, self.head_width)
        return fixed.to(self.q.weight.device)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None,
        *,
        context: Tensor | None = None,
        context_positions: Tensor | None = None,
        context_valid: Tensor | None = None,
    ) -> Tensor:
        """Attended [B, N, D] of x [B, N, D] at positions [B, N, X].

        A context [B, L, D] is read in place of x, where valid [B, L] (None: everywhere).
        """
        read = x if context is None else context
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, M, N or L, D/M]
            for layer, tokens in ((self.q, x), (self.k, read), (self.v, read))
        )
        if positions is not None:
            frequencies = self.frequencies()
            q_angles = rope_angles(positions, frequencies)
            k_angles = (
                q_angles
                if context_positions is None
                else rope_angles(context_positions, frequencies)
            )
            q, k = rotate(q, q_angles), rotate(k, k_angles)
        mask = None if context_valid is None else context_valid[:, None, None, :]
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(-2))
        return projected

    def rows(
        self,
        x: Tensor,
        positions: Tensor | None,
        groups: Sequence[RowGroup],
        *,
        norm: nn.LayerNorm,
        scale: Tensor | None = None,
        context: Tensor | None = None,
        context_positions: Tensor | None = None,
    ) -> Tensor:
        """The sum x + scale * attended [n, D] of unpadded tokens x [n, D] at positions [n, X].

        Each row by itself, after the norm; ``scale`` [n, 1]. A context [m, D] of the same rows is
        read, as it is, in place of x.
        """
        read = None
        if context is None:
            asking = self._project((self.q, self.k, self.v), x, norm)
        else:
            asking = self._project((self.q,), x, norm)
            read = self._project((self.k, self.v), context)
        frequencies = None if positions is None else self.frequencies()
        if attends(asking):
            attended = rotary_attention(
                asking,
                positions,
                frequencies,
                groups,
                context=read,
                context_positions=context_positions,
            )
        else:
            q, *kv = _turned(asking, positions, frequencies)
            if read is not None:
                kv = _turned(read, context_positions, frequencies)
            k, v = kv
            attended = grouped_attention(q, k, v, groups).flatten(1).to(x.dtype)
        return linear(attended, self.proj.weight, self.proj.bias, plus=x, scale=scale)

    def _project(
        self, layers: Sequence[nn.Linear], x: Tensor, norm: nn.LayerNorm | None = None
    ) -> Tensor:
        """Several projections [n, G, M, D/M] of x [n, D] in one product."""
        weight = torch.cat([layer.weight for layer in layers])
        bias = torch.cat([layer.bias for layer in layers])
        parts: Tensor = linear(x, weight, bias, norm=norm)
        return parts.view(len(x), len(layers), self.heads, self.head_width)


def _turned(parts: Tensor, positions: Tensor | None, frequencies: Tensor | None) -> list[Tensor]:
    """Parts [n, M, D/M] of [n, G, M, D/M]: all but the values, which come last, turned."""
    if parts.device.type == "cpu":
        parts = parts.float()  # what grouped_attention works in there; one cast, not six
    if positions is None or frequencies is None:
        return list(parts.unbind(1))
    return list(turn(parts, positions, frequencies, max(parts.shape[1] - 1, 1)))


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, groups: Sequence[RowGroup]) -> Tensor:
    """Attention [n, M, hd] of unpadded q [n, M, hd] over k and v [m, M, hd], row by row.

    On a CPU it runs and answers in fp32: torch's bf16 gradient of attention took 83 % of a training
    step there.
    """
    if q.device.type == "cpu" and (q.dtype != torch.float32 or torch.is_autocast_enabled("cpu")):
        with torch.autocast("cpu", enabled=False):
            return grouped_attention(q.float(), k.float(), v.float(), groups)
    asked = [g.n_rows * g.n_queries for g in groups]
    read = [g.n_rows * g.n_read for g in groups]
    parts = zip(groups, q.split(asked), k.split(read), v.split(read), strict=True)
    outputs = [
        functional.scaled_dot_product_attention(
            *(x.unflatten(0, (group.n_rows, -1)).transpose(1, 2) for x in qkv)
        )
        .transpose(1, 2)
        .flatten(0, 1)
        for group, *qkv in parts
        if group.n_queries
    ]
    if not outputs:
        return q  # nothing asks
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block; with a context it is cross-attention and nothing else."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        positions: PositionConfig,
        *,
        drop_path: float = 0.0,
        attention_width: int | None = None,
        context_width: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(
            width,
            heads,
            positions,
            attention_width=attention_width,
            context_width=context_width,
        )
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = drop_path

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None,
        *,
        context: Tensor | None = None,
        context_positions: Tensor | None = None,
        context_valid: Tensor | None = None,
        groups: Sequence[RowGroup] | None = None,
        branch_scale: Tensor | None = None,
    ) -> Tensor:
        """See Attention.forward; the context is read as it is, without this block's norm.

        With ``groups`` the tokens are unpadded: x [n, D], context [m, D], see Attention.rows.
        ``branch_scale`` [2, n, 1] then multiplies the two branches (stochastic depth of a training
        step, which is drawn by its objective).
        """
        if groups is not None:
            first, second = (None, None) if branch_scale is None else branch_scale.unbind(0)
            x = self.attn.rows(
                x,
                positions,
                groups,
                norm=self.norm1,
                scale=first,
                context=context,
                context_positions=context_positions,
            )
            return add_mlp(x, self.norm2, self.mlp.fc1, self.mlp.fc2, second)
        attended = self.attn(
            self.norm1(x),
            positions,
            context=context,
            context_positions=context_positions,
            context_valid=context_valid,
        )
        x = x + self._drop(attended)
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth: skip the branch for a random share of samples in training."""
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = torch.empty(len(branch), 1, 1, device=branch.device).bernoulli_(keep) / keep
        return branch * kept.to(branch.dtype)
