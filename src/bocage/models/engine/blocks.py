"""Transformer blocks on kernels of our own, in fp32, bf16 or int8.

Axes: B batch, N tokens, M heads, K channel pairs of a head, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bocage.models.attention import Block
from bocage.models.engine import kernels
from bocage.models.engine.kernels import Rotation, TokenOrder
from bocage.models.engine.linear import Linear


class FastBlock:
    """One transformer block: four linear maps and attention."""

    def __init__(self, block: Block, precision: str) -> None:
        attention, mlp = block.attn, block.mlp
        self.heads = attention.heads
        self.qkv = Linear(*merge_qkv(block), precision, norm=block.norm1)
        self.proj = Linear(attention.proj.weight, attention.proj.bias, precision)
        self.fc1 = Linear(mlp.fc1.weight, mlp.fc1.bias, precision, norm=block.norm2)
        self.fc2 = Linear(mlp.fc2.weight, mlp.fc2.bias, precision)

    def __call__(
        self, x: Tensor, shape: tuple[int, int], rotation: Rotation | None, order: TokenOrder
    ) -> None:
        """Run in place over the tokens of ``shape`` (B, N): rows in fp32, else tiles."""
        n_rows = shape[0] * shape[1]
        qkv = self.qkv(x, n_rows, to_rows=True)  # [B N, 3 D]
        attended = kernels.attention(qkv.view(*shape, -1), self.heads, rotation, order)
        self.proj(attended, n_rows, plus=x)
        hidden = self.fc1(x, n_rows, gelu=True)  # as tokens lie, 4 D wide
        self.fc2(hidden, n_rows, plus=x)


def run_blocks(
    blocks: Sequence[FastBlock],
    x: Tensor,
    rotations: Sequence[Rotation | None],
    order: TokenOrder,
) -> Tensor:
    """Tokens [B, N, D] after some blocks; x may be changed."""
    half = x.dtype == torch.bfloat16
    tokens = kernels.to_tiles(x) if half else x.view(-1, x.shape[-1])
    for block, rotation in zip(blocks, rotations, strict=True):
        block(tokens, (len(x), x.shape[1]), rotation, order)
    return kernels.from_tiles(tokens, x.shape) if half else x


def merge_qkv(block: Block) -> tuple[Tensor, Tensor]:
    """Weight [3 D, D] and bias [3 D]; channel pairs (2k, 2k + 1) of q and k become (k, k + K).

    The order of channels within a head does not change a score, and halves load faster than pairs.
    """
    q, k, v = block.attn.q, block.attn.k, block.attn.v
    order = halves(block.attn.heads, block.attn.head_width)
    return (
        torch.cat([q.weight[order], k.weight[order], v.weight]),
        torch.cat([q.bias[order], k.bias[order], v.bias]),
    )


def halves(heads: int, head_width: int) -> Tensor:
    """Index [D] that brings channel pairs (2k, 2k + 1) of each head to (k, k + K)."""
    pairs = torch.arange(heads * head_width).view(heads, head_width // 2, 2)
    return pairs.transpose(1, 2).flatten()
