"""The pooler of v1.3 on CPUs with AMX: ``pooler.py`` with what is equal for all windows left out.

The queries that read the tokens are one vector, each turned by its place. So the norm before them,
their linear map and their rotation are a table of the shape of a window, the first residual is part
of a bias, and reading takes keys and values of the tokens alone.

Axes: B batch, N tokens, P places, T timesteps, R location queries, M heads, K channel pairs of a
head, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.models.attention import Block
from bocage.models.config import ModelConfig
from bocage.models.engine import kernels, tables
from bocage.models.engine.blocks import FastBlock, PackedLinear, fold_norm, halves, padding_mask
from bocage.models.engine.kernels import Rotation, TokenOrder
from bocage.models.engine.tables import Recent
from bocage.models.packing import plan_packing
from bocage.models.pooler import AttentionPooler, Locations, location_positions


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """What the tables of a pooler depend on."""

    grid_hw: tuple[int, int]
    times: int
    n_sets: int
    queries_per_patch: int
    step: float
    """Distance of neighboring patches in units of position."""


@dataclass(frozen=True, kw_only=True)
class ReadTables:
    """Everything about a read that is equal for all windows of a shape."""

    positions: Tensor
    """Row and column of the queries [R, 2]."""

    queries: Tensor
    """[M, R, 2 K] turned; in bf16 scaled, and padded to a multiple of 16 as the kernel reads."""

    longest: Tensor
    """fp32 [M]: length of the longest query."""

    keys: Rotation
    key_order: TokenOrder
    look: Rotation
    look_order: TokenOrder


def why_unsuited(config: ModelConfig, dtype: torch.dtype) -> str | None:
    """The reason why a pooler runs as plain modules, or None if it can run here."""
    pooler = config.pooler
    assert pooler is not None
    inner = pooler.attention_width or pooler.width
    head_width = inner // pooler.heads
    if pooler.depth != 1:
        return f"it reads {pooler.depth} times"
    if dtype == torch.bfloat16 and head_width not in kernels.HEAD_WIDTHS:
        return f"there is no attention kernel for heads of width {head_width}"
    if head_width % 16 or pooler.width % 32 or inner % 32:
        return f"heads of width {head_width} are not a multiple of 16, or {inner} not of 32"
    return None


class FastPooler:
    """Location tokens and student of tokens that have passed the last norm; depth 1."""

    def __init__(self, pooler: AttentionPooler, dtype: torch.dtype) -> None:
        read, look = (
            cast(Block, blocks[0]) for blocks in (pooler.read_blocks, pooler.self_attn_blocks)
        )
        attention = read.attn
        self.dtype = dtype
        self.norm, self.student = pooler.norm, pooler.student
        self.heads = attention.heads
        self.frequencies = attention.frequencies().detach().float().expand(-1, self.heads, -1)
        with torch.no_grad():
            query = attention.q(read.norm1(pooler.learned_query)).float()
        self.query = query.view(self.heads, -1)  # [M, 2 K], pairs (2k, 2k + 1)
        self.epsilon = read.norm2.eps
        norm, weight, bias = _keys_and_values(pooler, read)
        self.norm_epsilon = norm.eps
        self.kv = PackedLinear(*fold_norm(norm, weight, bias), dtype)
        residual = attention.proj.bias + pooler.learned_query[0]
        self.proj = PackedLinear(attention.proj.weight, residual, dtype)
        mlp = read.mlp
        self.fc1 = PackedLinear(*fold_norm(read.norm2, mlp.fc1.weight, mlp.fc1.bias), dtype)
        self.fc2 = PackedLinear(mlp.fc2.weight, mlp.fc2.bias, dtype)
        self.look = FastBlock(look, dtype)
        look_frequencies = look.attn.frequencies().detach().float()
        self.look_frequencies = look_frequencies.expand(-1, look.attn.heads, -1)
        self._tables: Recent[ReadTables] = Recent()

    def __call__(self, tokens: Tensor, keep: Tensor | None, shape: WindowShape) -> Locations:
        """Read fp32 tokens [B, N, D] where ``keep`` [B, N] (None: all); see ``AttentionPooler``."""
        tables_ = self._tables.get(lambda: self._prepare(shape), shape)
        order = tables_.key_order
        if keep is not None:
            packing = plan_packing(keep)
            tokens, order = packing.pack(tokens), tables.packed_order(order, packing)
        n_batch = len(tokens)
        kv = self.kv(tokens.to(self.dtype), norm_epsilon=self.norm_epsilon)
        x = self.proj(self._read(kv, tables_, order))
        x = self.fc2(self.fc1(x, norm_epsilon=self.epsilon, gelu=True), plus=x)
        x = self.look(x, tables_.look, tables_.look_order).float()
        norm = self.norm
        x = functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
        rows, cols = (n * shape.queries_per_patch for n in shape.grid_hw)
        locations = x.unflatten(1, (rows, cols))
        return Locations(
            tokens=locations,
            positions=tables_.positions.expand(n_batch, -1, -1),
            student=None if self.student is None else self.student(locations),
        )

    def _read(self, kv: Tensor, read: ReadTables, order: TokenOrder) -> Tensor:
        """Attended [B, R, D] of keys and values [B, N, 2 D]."""
        n_batch, n_queries = len(kv), len(read.positions)
        if kv.dtype == torch.bfloat16:
            if order.lengths is not None:  # a sample without tokens reads its padding
                order = TokenOrder(
                    time=order.time, place=order.place, lengths=order.lengths.clamp(min=1)
                )
            return kernels.reading(
                read.queries, read.longest, kv, read.keys, order, n_queries=n_queries
            )
        kernels.rotate_(kv, self.heads, read.keys, order, n_parts=2)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).transpose(1, 3).unbind(2)
        q = read.queries.expand(n_batch, -1, -1, -1)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=padding_mask(order))
        return out.transpose(1, 2).reshape(n_batch, n_queries, -1)

    def _prepare(self, shape: WindowShape) -> ReadTables:
        cpu = torch.device("cpu")
        at = [
            location_positions(shape.grid_hw, n, shape.step, cpu).flatten(0, 1)
            for n in (1, shape.queries_per_patch)
        ]
        places, positions = at
        angles = tables.place_angles(positions, self.frequencies).transpose(0, 1)  # [M, R, K]
        even, odd = self.query[:, None, 0::2], self.query[:, None, 1::2]
        cos, sin = angles.cos(), angles.sin()
        queries = torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
        if self.dtype == torch.bfloat16:
            queries = queries * math.log2(math.e) / queries.shape[-1] ** 0.5
            padding = -len(positions) % 16
            queries = functional.pad(queries, (0, 0, 0, padding)).to(torch.bfloat16)
        longest = queries.float().norm(dim=-1).amax(dim=-1)
        still = places.new_zeros(1, shape.times, *self.frequencies.shape[1:])
        look_still = places.new_zeros(1, 1, *self.look_frequencies.shape[1:])
        return ReadTables(
            positions=positions,
            queries=queries.contiguous(),
            longest=longest.contiguous(),
            keys=tables.rotation(still, tables.place_angles(places, self.frequencies)),
            key_order=tables.token_order(len(places), shape.times, shape.n_sets),
            look=tables.rotation(look_still, tables.place_angles(positions, self.look_frequencies)),
            look_order=tables.token_order(len(positions), 1, 1),
        )


def _keys_and_values(pooler: AttentionPooler, read: Block) -> tuple[nn.LayerNorm, Tensor, Tensor]:
    """Norm of the tokens, and weight [2 D, D] and bias of the keys and values that follow it."""
    attention = read.attn
    norm = pooler.input_norms[0] if pooler.per_depth_read else pooler.input_norm
    projection = pooler.kv_projs[0] if pooler.per_depth_read else pooler.kv_proj
    order = halves(attention.heads, attention.head_width)
    weight = torch.cat([attention.k.weight[order], attention.v.weight])
    bias = torch.cat([attention.k.bias[order], attention.v.bias])
    if isinstance(projection, nn.Linear):
        weight, bias = weight @ projection.weight, bias + weight @ projection.bias
    return cast(nn.LayerNorm, norm), weight, bias
