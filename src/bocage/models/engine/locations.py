"""The pooler of v1.3 on CPUs with AMX: ``pooler.py`` with what is equal for all windows left out.

The queries that read the tokens are one vector, each turned by its place. So the norm before them,
their linear map and their rotation are a table of the shape of a window, the first residual is part
of a bias, and reading takes keys and values of the tokens alone.

Axes: B batch, N tokens, P places, T timesteps, R location queries, M heads, K channel pairs of a
head, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.models.attention import Block
from bocage.models.config import ModelConfig
from bocage.models.engine import kernels, tables
from bocage.models.engine.blocks import FastBlock, halves
from bocage.models.engine.kernels import Rotation, TokenOrder
from bocage.models.engine.linear import Linear
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
    """[M, R, 2 K] turned, scaled, and padded to a multiple of 16, as the kernel reads."""

    longest: Tensor
    """fp32 [M]: length of the longest query."""

    keys: Rotation
    key_order: TokenOrder
    look: Rotation
    look_order: TokenOrder


def why_unsuited(config: ModelConfig) -> str | None:
    """The reason why a pooler runs as plain modules, or None if it can run here."""
    pooler = config.pooler
    assert pooler is not None
    inner = pooler.attention_width or pooler.width
    if pooler.depth != 1:
        return f"it reads {pooler.depth} times"
    if inner // pooler.heads not in kernels.HEAD_WIDTHS:
        return f"there is no attention kernel for heads of width {inner // pooler.heads}"
    if pooler.width % 64 or inner % 64:
        return f"{pooler.width} or {inner} is not a multiple of 64"
    return None


class FastPooler:
    """Location tokens and student of tokens that have passed the last norm; depth 1."""

    def __init__(self, pooler: AttentionPooler, precision: str) -> None:
        read, look = (
            cast(Block, blocks[0]) for blocks in (pooler.read_blocks, pooler.self_attn_blocks)
        )
        attention, mlp = read.attn, read.mlp
        self.dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        self.norm, self.student = pooler.norm, pooler.student
        self.heads = attention.heads
        self.frequencies = attention.frequencies().detach().float().expand(-1, self.heads, -1)
        with torch.no_grad():
            query = attention.q(read.norm1(pooler.learned_query)).float()
        self.query = query.view(self.heads, -1)  # [M, 2 K], pairs (2k, 2k + 1)
        norm, weight, bias = _keys_and_values(pooler, read)
        self.kv = Linear(weight, bias, precision, norm=norm)
        residual = attention.proj.bias + pooler.learned_query[0]
        self.proj = Linear(attention.proj.weight, residual, precision)
        self.fc1 = Linear(mlp.fc1.weight, mlp.fc1.bias, precision, norm=read.norm2)
        self.fc2 = Linear(mlp.fc2.weight, mlp.fc2.bias, precision)
        self.look = FastBlock(look, precision)
        look_frequencies = look.attn.frequencies().detach().float()
        self.look_frequencies = look_frequencies.expand(-1, look.attn.heads, -1)
        self._tables: Recent[ReadTables] = Recent()

    def __call__(self, tokens: Tensor, keep: Tensor | None, shape: WindowShape) -> Locations:
        """Read fp32 tokens [B, N, D] where ``keep`` [B, N] (None: all); see ``AttentionPooler``."""
        read = self._tables.get(lambda: self._prepare(shape), shape)
        order = read.key_order
        if keep is not None:
            packing = plan_packing(keep)
            tokens, order = packing.pack(tokens), tables.packed_order(order, packing)
        if order.lengths is not None:  # a sample without tokens reads its padding
            order = replace(order, lengths=order.lengths.clamp(min=1))
        n_batch, n_queries = len(tokens), len(read.positions)
        n_rows = n_batch * n_queries
        kv = self.kv.rows(tokens.to(self.dtype))
        x = kernels.reading(read.queries, read.longest, kv, read.keys, order, n_queries=n_queries)
        x = self.proj(x, n_rows)
        x = self.fc2(self.fc1(x, n_rows, gelu=True), n_rows, plus=x)
        self.look(x, (n_batch, n_queries), read.look, read.look_order)
        if self.dtype == torch.bfloat16:
            x = kernels.from_tiles(x, (n_rows, self.proj.n_out)).float()
        norm = self.norm
        x = functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
        rows, cols = (n * shape.queries_per_patch for n in shape.grid_hw)
        found = x.view(n_batch, rows, cols, -1)
        return Locations(
            tokens=found,
            positions=read.positions.expand(n_batch, -1, -1),
            student=None if self.student is None else self.student(found),
        )

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
        queries = queries * math.log2(math.e) / queries.shape[-1] ** 0.5
        queries = functional.pad(queries, (0, 0, 0, -len(positions) % 16)).to(self.dtype)
        longest = queries.float().norm(dim=-1).amax(dim=-1)

        def rotation(at: Tensor, frequencies: Tensor) -> Rotation:
            return Rotation(times=None, places=tables.turns(tables.place_angles(at, frequencies)))

        return ReadTables(
            positions=positions,
            queries=queries.contiguous(),
            longest=longest.contiguous(),
            keys=rotation(places, self.frequencies),
            key_order=tables.token_order(len(places), shape.times, shape.n_sets),
            look=rotation(positions, self.look_frequencies),
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
