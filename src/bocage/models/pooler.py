"""The attention pooler of v1.3: a grid of equal queries reads the tokens and becomes an embedding.

Axes: B batch, N tokens, R location queries (row-major over r_h x r_w), D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bocage.models.attention import Block
from bocage.models.config import ModelConfig, PoolerConfig, PositionConfig
from bocage.models.selection import Selection, row_groups


@dataclass(frozen=True, kw_only=True)
class Locations:
    """What the pooler returns."""

    tokens: Tensor
    """Location tokens [B, r_h, r_w, D]."""

    positions: Tensor
    """Row and column of the queries [B, R, 2] in units of 10 m."""

    student: Tensor | None
    """Small readout [B, r_h, r_w, widest of student_dims]; its prefixes are embeddings too."""


class AttentionPooler(nn.Module):
    """Location queries that read the tokens, then look at each other."""

    def __init__(self, config: ModelConfig, pooler: PoolerConfig) -> None:
        super().__init__()
        rope = PositionConfig(encoding="rope", base=config.positions.base)
        tied = pooler.attention_width is None
        self.per_depth_read = pooler.per_depth_read and pooler.depth > 1
        self.learned_query = nn.Parameter(torch.empty(1, pooler.width))
        nn.init.trunc_normal_(self.learned_query, std=0.02)

        def projection() -> nn.Module:
            return nn.Linear(config.width, pooler.width) if tied else nn.Identity()

        if self.per_depth_read:
            self.input_norms = nn.ModuleList(
                nn.LayerNorm(config.width) for _ in range(pooler.depth)
            )
            self.kv_projs = nn.ModuleList(projection() for _ in range(pooler.depth))
        else:
            self.input_norm = nn.LayerNorm(config.width)
            self.kv_proj = projection()

        def block(context_width: int | None) -> Block:
            return Block(
                pooler.width,
                pooler.heads,
                config.mlp_ratio,
                rope,
                attention_width=pooler.attention_width,
                context_width=context_width,
            )

        read_width = pooler.width if tied else config.width
        self.read_blocks = nn.ModuleList(block(read_width) for _ in range(pooler.depth))
        self.self_attn_blocks = nn.ModuleList(block(None) for _ in range(pooler.depth))
        self.norm = nn.LayerNorm(pooler.width)
        self.student: nn.Sequential | None = None
        if pooler.student_dims:
            width = max(pooler.student_dims)
            layers: list[nn.Module] = [nn.Linear(pooler.width, width)]
            self.student = nn.Sequential(
                *layers, *([nn.LayerNorm(width)] if pooler.student_norm else [])
            )

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        valid: Tensor | None,
        *,
        grid_hw: tuple[int, int],
        queries_per_patch: int,
        step: float,
    ) -> Locations:
        """Read tokens [B, N, D] at (row, column) [B, N, 2], ``queries_per_patch`` a side."""
        query_positions = location_positions(grid_hw, queries_per_patch, step, tokens.device)
        query_positions = query_positions.flatten(0, 1).expand(len(tokens), -1, -1)
        x = self.learned_query.expand(len(tokens), query_positions.shape[1], -1)
        context = None if self.per_depth_read else self.kv_proj(self.input_norm(tokens))
        for i, (read, look) in enumerate(zip(self.read_blocks, self.self_attn_blocks, strict=True)):
            if self.per_depth_read:
                context = self.kv_projs[i](self.input_norms[i](tokens))
            x = read(
                x,
                query_positions,
                context=context,
                context_positions=positions,
                context_valid=valid,
            )
            x = look(x, query_positions)
        rows, cols = (n * queries_per_patch for n in grid_hw)
        locations = self.norm(x).unflatten(1, (rows, cols))
        # Detached: the readout learns from the location tokens and never shapes them.
        student = None if self.student is None else self.student(locations.detach())
        return Locations(tokens=locations, positions=query_positions, student=student)

    def read_rows(
        self,
        tokens: Tensor,
        positions: Tensor,
        selection: Selection,
        *,
        queries_per_patch: int,
        step: float,
    ) -> Locations:
        """The same for unpadded tokens [n, D] at (row, column) [n, 2]; one grid per row."""
        grid = location_positions(selection.grid_hw, queries_per_patch, step, tokens.device)
        query_positions = grid.flatten(0, 1).expand(len(selection.counts), -1, -1)
        n_rows, n_queries, _ = query_positions.shape
        read_groups = row_groups([n_queries] * n_rows, selection.counts)
        look_groups = row_groups([n_queries] * n_rows, [n_queries] * n_rows)
        flat = query_positions.flatten(0, 1)
        x = self.learned_query.expand(len(flat), -1)
        context = None if self.per_depth_read else self.kv_proj(self.input_norm(tokens))
        for i, (read, look) in enumerate(zip(self.read_blocks, self.self_attn_blocks, strict=True)):
            if self.per_depth_read:
                context = self.kv_projs[i](self.input_norms[i](tokens))
            x = read(x, flat, context=context, context_positions=positions, groups=read_groups)
            x = look(x, flat, groups=look_groups)
        rows, cols = (n * queries_per_patch for n in selection.grid_hw)
        locations = self.norm(x).unflatten(0, (n_rows, rows, cols))
        student = None if self.student is None else self.student(locations.detach())
        return Locations(tokens=locations, positions=query_positions, student=student)


def location_positions(
    grid_hw: tuple[int, int], queries_per_patch: int, step: float, device: torch.device
) -> Tensor:
    """Row and column [r_h, r_w, 2] of queries; with one per patch they sit on the tokens."""
    axes = [
        ((torch.arange(n * queries_per_patch, device=device) + 0.5) / queries_per_patch - 0.5)
        * step
        for n in grid_hw
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
