"""Transformer blocks and linear maps on kernels of our own; see ``cpu.py``.

Axes: B batch, N tokens, M heads, K channel pairs of a head, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.models.attention import Block
from bocage.models.engine import kernels
from bocage.models.engine.kernels import Rotation, TokenOrder


class FastBlock:
    """One transformer block."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attention, mlp = block.attn, block.mlp
        self.heads = attention.heads
        self.epsilon = block.norm1.eps
        self.qkv = PackedLinear(*fold_norm(block.norm1, *merge_qkv(block)), dtype)
        self.proj = PackedLinear(attention.proj.weight, attention.proj.bias, dtype)
        self.fc1 = PackedLinear(*fold_norm(block.norm2, mlp.fc1.weight, mlp.fc1.bias), dtype)
        self.fc2 = PackedLinear(mlp.fc2.weight, mlp.fc2.bias, dtype)

    def __call__(self, x: Tensor, rotation: Rotation | None, order: TokenOrder) -> Tensor:
        """Tokens [B, N, D] to [B, N, D]."""
        if x.dtype == torch.bfloat16:
            tiles = kernels.to_tiles(x)
            run_in_tiles(self, tiles, (len(x), x.shape[1]), rotation, order)
            return kernels.from_tiles(tiles, x.shape)
        qkv = self.qkv(x, norm_epsilon=self.epsilon)
        x = self.proj(self._attend(qkv, rotation, order), plus=x)
        hidden = self.fc1(x, norm_epsilon=self.epsilon, gelu=True)
        return self.fc2(hidden, plus=x)

    def _attend(self, qkv: Tensor, rotation: Rotation | None, order: TokenOrder) -> Tensor:
        if rotation is not None:
            kernels.rotate_(qkv, self.heads, rotation, order, n_parts=3)
        n_batch, n_tokens, _ = qkv.shape
        q, k, v = qkv.view(n_batch, n_tokens, 3, self.heads, -1).transpose(1, 3).unbind(2)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=padding_mask(order))
        return out.transpose(1, 2).reshape(n_batch, n_tokens, -1)


class Int8Block:
    """One transformer block with its linear maps in int8: one scale per token and per channel.

    For ``run_in_tiles``; tokens between the maps stay bf16.
    """

    def __init__(self, block: Block) -> None:
        attention, mlp = block.attn, block.mlp
        self.heads = attention.heads
        self.epsilon = block.norm1.eps
        self.qkv = Int8Linear(*fold_norm(block.norm1, *merge_qkv(block)))
        self.proj = Int8Linear(attention.proj.weight, attention.proj.bias)
        self.fc1 = Int8Linear(*fold_norm(block.norm2, mlp.fc1.weight, mlp.fc1.bias))
        self.fc2 = Int8Linear(mlp.fc2.weight, mlp.fc2.bias)


def run_in_tiles(
    block: FastBlock | Int8Block,
    x: Tensor,
    shape: tuple[int, int],
    rotation: Rotation | None,
    order: TokenOrder,
) -> None:
    """Run a block in place over bf16 tokens in tiles (``kernels.to_tiles``); shape is (B, N)."""
    n_rows = shape[0] * shape[1]
    qkv = block.qkv.from_tiles(x, n_rows, norm_epsilon=block.epsilon)
    attended = kernels.attention(qkv.view(*shape, -1), block.heads, rotation, order, in_tiles=True)
    block.proj.to_tiles(attended, n_rows, plus=x)
    hidden = block.fc1.to_tiles(x, n_rows, norm_epsilon=block.epsilon, gelu=True)
    block.fc2.to_tiles(hidden, n_rows, plus=x)


class Int8Linear:
    """A linear map of bf16 rows in tiles, multiplied in int8; widths are multiples of 64."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Weight [n_out, n_in], bias [n_out]."""
        self.weight = kernels.pack_int8(weight)
        self.bias = bias.detach().float().contiguous()

    def from_tiles(self, x: Tensor, n_rows: int, *, norm_epsilon: float | None = None) -> Tensor:
        """Rows [n_rows, n_out]."""
        rows = kernels.quantize(x, norm_epsilon=norm_epsilon)
        out = torch.empty(n_rows, len(self.bias), dtype=torch.bfloat16)
        return kernels.int8_product(
            rows, self.weight, self.bias, out, n_rows=n_rows, in_tiles=False
        )

    def to_tiles(
        self,
        x: Tensor,
        n_rows: int,
        *,
        norm_epsilon: float | None = None,
        gelu: bool = False,
        plus: Tensor | None = None,
    ) -> Tensor:
        """Tiles; added to ``plus``, in place, if that is given."""
        rows = kernels.quantize(x, norm_epsilon=norm_epsilon)
        out = plus
        if out is None:
            shape = kernels.tiles_shape(n_rows, len(self.bias))
            out = torch.empty(shape, dtype=torch.bfloat16)
        return kernels.int8_product(
            rows,
            self.weight,
            self.bias,
            out,
            n_rows=n_rows,
            gelu=gelu,
            plus=plus,
            in_tiles=True,
        )


class PackedLinear:
    """A linear map whose weight is laid out once for the kernel; fp32 or bf16 in and out."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        """Weight [n_out, n_in], bias [n_out]."""
        self.weight = kernels.pack_weight(weight, dtype)
        self.sums = weight.detach().to(dtype).float().sum(dim=1)
        self.bias = bias.detach().float().contiguous()

    def __call__(
        self,
        x: Tensor,
        *,
        norm_epsilon: float | None = None,
        gelu: bool = False,
        plus: Tensor | None = None,
    ) -> Tensor:
        """Map x [..., n_in] to [..., n_out]; see ``kernels.product`` for the rest."""
        return kernels.product(
            x, self.weight, self.bias, norm=self._norm(norm_epsilon), gelu=gelu, plus=plus
        )

    def from_tiles(self, x: Tensor, n_rows: int, *, norm_epsilon: float | None = None) -> Tensor:
        """Rows [n_rows, n_out] of bf16 rows in tiles."""
        out = torch.empty(n_rows, len(self.bias), dtype=torch.bfloat16)
        norm = self._norm(norm_epsilon)
        return kernels.tile_product(
            x, self.weight, self.bias, out, n_rows=n_rows, norm=norm, in_tiles=False
        )

    def to_tiles(
        self,
        x: Tensor,
        n_rows: int,
        *,
        norm_epsilon: float | None = None,
        gelu: bool = False,
        plus: Tensor | None = None,
    ) -> Tensor:
        """Tiles of bf16 rows in tiles; added to ``plus``, in place, if that is given."""
        out = plus
        if out is None:
            shape = kernels.tiles_shape(n_rows, len(self.bias))
            out = torch.empty(shape, dtype=torch.bfloat16)
        return kernels.tile_product(
            x,
            self.weight,
            self.bias,
            out,
            n_rows=n_rows,
            norm=self._norm(norm_epsilon),
            gelu=gelu,
            plus=plus,
            in_tiles=True,
        )

    def _norm(self, epsilon: float | None) -> tuple[Tensor, float] | None:
        return None if epsilon is None else (self.sums, epsilon)


def padding_mask(order: TokenOrder) -> Tensor | None:
    """True where torch's attention may read [B, 1, 1, N]; None if that is everywhere."""
    if order.lengths is None:
        return None
    counts = order.lengths.clamp(min=1)  # a sample without tokens reads its padding
    return (torch.arange(order.time.shape[1]) < counts[:, None])[:, None, None]


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


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear map that follows a norm, with the norm's own folded in."""
    return weight * norm.weight, bias + weight @ norm.bias
