"""Seam-free embeddings: one large domain in which every token has its own sliding window.

Cutting a scene in windows leaves seams where tokens that are neighbors saw different
surroundings. Models that rotate positions (v1.2, v1.3) know distances only, so each token can
attend within a box around itself instead, in every block, and nothing marks where a window ended.
This is the "searchlight" mode of the official package, in blocks that fit a processor.

Tokens lie on the grid [h, w, K, D] throughout: K counts sensors, timesteps and band sets of a cell.

Axes: H W pixels, h w patch rows and columns, K elements of a cell, T timesteps, C bands, S band
sets, D width, X coordinates (time, row, column), M heads, E channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bocage.errors import ConfigError, InputError
from bocage.models.attention import Block
from bocage.models.config import ModelConfig
from bocage.models.encoder import Encoder, EncoderOutput
from bocage.models.inputs import check_patch_size
from bocage.models.neighborhood import NeighborhoodAttention, Rows
from bocage.models.pooler import AttentionPooler, Locations, location_positions
from bocage.models.rope import days_since_first

DEFAULT_NEIGHBORHOOD_PATCHES = 16
"""Side of a token's window; the models were trained on crops of at most 16 patches."""

RESIZE_REACH_PX = 2
"""How far the bicubic resize of a patch looks into its neighbors."""

TILE_TOKENS = 4096
"""Patches that are embedded at once, all timesteps counted: their resized pixels are 64 times as
many, and so is their memory."""


def neighborhood_cells(
    config: ModelConfig, patch_size: int, neighborhood_px: int | None = None
) -> int:
    """Side of a token's window in cells; ConfigError for models and sizes that do not fit."""
    if not config.positions.n_coordinates:
        raise ConfigError(
            got=f"seam-free inference with {config.release}",
            expected="a model that rotates positions (v1.2 or v1.3): the position table of v1 and "
            "v1.1 marks where a token lies in its window",
            fix="use a v1.2 or v1.3 model, or overlapping windows",
        )
    check_patch_size(patch_size, config.base_patch_size)
    if neighborhood_px is None:
        return DEFAULT_NEIGHBORHOOD_PATCHES
    if neighborhood_px < patch_size or neighborhood_px % patch_size:
        raise ConfigError(
            got=f"neighborhood_px={neighborhood_px} with patch_size={patch_size}",
            expected="a multiple of the patch size",
            fix=f"pass {max(1, round(neighborhood_px / patch_size)) * patch_size}",
        )
    return int(neighborhood_px) // patch_size


def reach_px(config: ModelConfig, patch_size: int, neighborhood_px: int | None = None) -> int:
    """How far from its own cell an output can look, in pixels; a halo this wide is exact.

    Each attention looks half a window further: every block, and for v1.3 the read and the
    attention among queries. Patches that are resized also look into their neighbors.
    """
    half = neighborhood_cells(config, patch_size, neighborhood_px) // 2
    layers = config.depth + (0 if config.pooler is None else 1 + config.pooler.depth)
    return (layers * half + _resize_cells(config, patch_size)) * patch_size


def data_extent(values: Mapping[str, NDArray[np.float32]], patch_size: int) -> tuple[slice, slice]:
    """Rows and columns of patches within the straight margins of [1, T, C, H, W] that are empty.

    A margin of a domain that hangs over its image holds nothing in any sensor; a patch that
    begins with less than half of its pixels is hidden anyway. Without them the domain ends where
    the image ends, boxes move inward there, and nothing has to be masked.
    """

    def is_empty(axis: int, patch: int) -> bool:
        pixels = np.arange(patch * patch_size, (patch + 1) * patch_size)
        full = np.zeros(patch_size, dtype=bool)
        for x in values.values():
            full |= np.isfinite(x.take(pixels, axis=axis)).any(axis=tuple({0, 1, 2, 7 - axis}))
        return 2 * int(full.sum()) < patch_size

    extent = []
    first = next(iter(values.values()))
    for axis in (3, 4):
        start, stop = 0, first.shape[axis] // patch_size
        while stop > start and is_empty(axis, stop - 1):
            stop -= 1
        while stop > start and is_empty(axis, start):
            start += 1
        extent.append(slice(start, stop))
    return extent[0], extent[1]


def check_one_domain(timestamps: Tensor) -> None:
    """InputError unless timestamps [B, T, 3] are those of a single domain."""
    if len(timestamps) != 1:
        raise InputError(
            got=f"a batch of {len(timestamps)} domains",
            expected="one domain per call",
            fix="call once for each",
        )


class DomainEncoder:
    """An encoder for one large domain; called like ``Encoder`` with a batch of one."""

    def __init__(self, encoder: Encoder, cells: int) -> None:
        """Every token attends within ``cells`` x ``cells`` cells around it."""
        self.encoder = encoder
        self.config = encoder.config
        self.cells = cells

    @torch.no_grad()
    def __call__(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        *,
        visible: Mapping[str, Tensor] | None = None,
        input_res_m: float = 10.0,
        location_query_patch_size: int | None = None,
    ) -> EncoderOutput:
        """Tokens of normalized ``values`` [1, H, W, T, C] with stamps [1, T, 3].

        ``visible`` [1, h, w, T, S] hides tokens from all others; a location query that has no
        visible token in its window reads nothing. Memory is about twice the tokens.
        """
        check_one_domain(timestamps)
        config, encoder = self.config, self.encoder
        sensors = [m for m in config.modalities if m in values]
        step = input_res_m * patch_size / 10
        layout = _Layout.of(config, sensors, timestamps)
        x = self._embed(values, timestamps, patch_size, step, layout)
        grid = (x.shape[0], x.shape[1])
        shown: Tensor | None = None  # [h, w, K]
        kept = torch.ones(len(layout.times), dtype=torch.bool, device=x.device)
        if visible is not None:
            shown = torch.cat([visible[m][0].flatten(2) for m in sensors], dim=-1)
            kept = shown.flatten(0, 1).any(dim=0)
            kept[0] |= ~kept.any()  # where nothing is visible, one element stands for the shape
            # Whole timesteps that are missing leave the sequence; the rest is masked.
            x, shown = (x, shown) if bool(kept.all()) else (x[:, :, kept], shown[..., kept])
            shown = None if bool(shown.all()) else shown

        n = x.shape[2]
        coordinates = torch.zeros(n, 3)
        coordinates[:, 0] = layout.times[kept.cpu()]
        spacing = step * config.positions.coordinate_scale
        attention = NeighborhoodAttention(grid, self.cells, (n, n), visible=shown)
        for module in encoder.blocks:
            block = cast(Block, module)
            rotation = Rotation.of(block.attn.frequencies(), grid, spacing, coordinates)
            _attend(block, x, rotation, attention)
        for rows in attention.row_spans:
            x[rows.cells] = encoder.norm(x[rows.cells])
        if shown is not None:
            x.masked_fill_(~shown[..., None], 0)

        locations = None
        if encoder.attention_pooler is not None:
            side = patch_size // (location_query_patch_size or patch_size)
            locations = self._read(encoder.attention_pooler, x, shown, side, spacing)
        if not bool(kept.all()):
            full = x.new_zeros(*grid, len(kept), x.shape[-1])
            full[:, :, kept] = x
            x = full
        parts = dict(zip(sensors, torch.split(x, layout.sizes, dim=2), strict=True))
        tokens = {
            m: part.unflatten(2, (timestamps.shape[1], -1))[None] for m, part in parts.items()
        }
        if visible is None:
            visible = {
                m: torch.ones(part.shape[:-1], dtype=torch.bool, device=x.device)
                for m, part in tokens.items()
            }
        return EncoderOutput(
            tokens=tokens, visible={m: visible[m] for m in sensors}, locations=locations
        )

    def _embed(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        step: float,
        layout: _Layout,
    ) -> Tensor:
        """Tokens [h, w, K, D] with their encodings, embedded in tiles as if in one piece."""
        first = next(iter(values.values()))
        h, w = first.shape[1] // patch_size, first.shape[2] // patch_size
        x = first.new_empty(h, w, len(layout.times), self.config.width)
        margin = _resize_cells(self.config, patch_size)
        side = math.isqrt(max(1, TILE_TOKENS // first.shape[3]))
        elements = torch.arange(len(layout.times)).split(layout.sizes)
        for m, own in zip(layout.sensors, elements, strict=True):
            encoding = self.encoder.composite_encodings(m, (h, w), timestamps, step)
            for top in range(0, h, side):
                for left in range(0, w, side):
                    rows, above = _with_margin(top, side, h, margin)
                    cols, before = _with_margin(left, side, w, margin)
                    pixels = values[m][:, _scale(rows, patch_size), _scale(cols, patch_size)]
                    tokens = self.encoder.patch_embeddings(m, pixels, patch_size)
                    tokens = tokens[0, above : above + side, before : before + side]
                    tokens = tokens + encoding[0]
                    tile = x[top : top + side, left : left + side]
                    tile[:, :, int(own[0]) : int(own[-1]) + 1] = tokens.flatten(2, 3)
        return x

    def _read(
        self,
        pooler: AttentionPooler,
        tokens: Tensor,
        shown: Tensor | None,
        side: int,
        spacing: float,
    ) -> Locations:
        """Location tokens: ``side`` x ``side`` queries per cell read, then look at each other."""
        grid = (tokens.shape[0], tokens.shape[1])
        offsets = ((torch.arange(side) + 0.5) / side - 0.5) * spacing
        own = torch.cartesian_prod(torch.zeros(1), offsets, offsets)  # [queries, X]
        centers = torch.zeros(tokens.shape[2], 3)
        x = pooler.learned_query.expand(*grid, len(own), -1).contiguous()
        reading = NeighborhoodAttention(
            grid, self.cells, (len(own), tokens.shape[2]), visible=shown
        )
        looking = NeighborhoodAttention(grid, self.cells, (len(own), len(own)))
        for i, (first, second) in enumerate(
            zip(pooler.read_blocks, pooler.self_attn_blocks, strict=True)
        ):
            norm: Any = pooler.input_norms[i] if pooler.per_depth_read else pooler.input_norm
            project: Any = pooler.kv_projs[i] if pooler.per_depth_read else pooler.kv_proj

            def context(rows: slice, norm: Any = norm, project: Any = project) -> Tensor:
                read: Tensor = project(norm(tokens[rows]))
                return read

            read, look = cast(Block, first), cast(Block, second)
            turns = read.attn.frequencies()
            _attend(
                read,
                x,
                Rotation.of(turns, grid, spacing, own),
                reading,
                context=context,
                context_rotation=Rotation.of(turns, grid, spacing, centers),
            )
            _attend(look, x, Rotation.of(look.attn.frequencies(), grid, spacing, own), looking)
        x = x.unflatten(2, (side, side)).transpose(1, 2)  # [h, side, w, side, D]
        found = pooler.norm(x.flatten(2, 3).flatten(0, 1))[None]
        return Locations(
            tokens=found,
            positions=location_positions(grid, side, spacing, x.device).flatten(0, 1)[None],
            student=None if pooler.student is None else pooler.student(found),
        )


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Turns of the channel pairs of all elements of a grid, as unit complex numbers.

    A turn is the product of those of its row, its column, and its element within the cell. The
    tables are computed in fp64, so far corners of a domain are as exact as its origin.
    """

    row: Tensor
    """[h, M or 1, E / 2]."""

    column: Tensor
    """[w, M or 1, E / 2]."""

    element: Tensor | None
    """[K, M or 1, E / 2]; None where all elements sit on the cell and the first date."""

    @classmethod
    def of(
        cls,
        frequencies: Tensor,
        grid_hw: tuple[int, int],
        spacing: float,
        coordinates: Tensor,
    ) -> Rotation:
        """From frequencies [X, M or 1, E / 2] and coordinates [K, 3] within a cell."""
        turns = frequencies.detach().double().cpu()
        own = coordinates[:, -len(turns) :].double()
        row, column = (
            torch.arange(n, dtype=torch.float64)[:, None, None] * spacing for n in grid_hw
        )
        angles = [row * turns[-2], column * turns[-1], torch.einsum("kx,xme->kme", own, turns)]
        tables = [
            torch.polar(torch.ones_like(a), a).to(frequencies.device, torch.complex64)
            for a in angles
        ]
        element = tables[2] if bool(own.any()) else None
        return cls(row=tables[0], column=tables[1], element=element)

    def turn(self, x: Tensor, rows: slice) -> Tensor:
        """Rotated x [r, w, K, M, E] of a slice of rows, in its own dtype."""
        turns = (self.row[rows, None] * self.column)[:, :, None]  # [r, w, 1, M, E / 2]
        if self.element is not None:
            turns = turns * self.element
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Which elements a cell has."""

    sensors: list[str]
    sizes: list[int]
    """Elements of each sensor."""

    times: Tensor
    """Time coordinate [K] of each element."""

    @classmethod
    def of(cls, config: ModelConfig, sensors: list[str], timestamps: Tensor) -> _Layout:
        days = days_since_first(timestamps)[0].cpu() * config.positions.temporal_coordinate_scale
        sets = [len(config.band_sets[m]) for m in sensors]
        times = torch.cat([days.repeat_interleave(n) for n in sets])
        return cls(sensors=sensors, sizes=[len(days) * n for n in sets], times=times)


def _attend(
    block: Block,
    x: Tensor,
    rotation: Rotation,
    attention: NeighborhoodAttention,
    *,
    context: Callable[[slice], Tensor] | None = None,
    context_rotation: Rotation | None = None,
) -> None:
    """Run a block over x [h, w, K, D] in place, a row of blocks at a time.

    Keys of a row are made before the row is overwritten and kept for as long as it is read.
    """
    layer = block.attn

    def heads(tokens: Tensor) -> Tensor:
        per_head: Tensor = tokens.unflatten(-1, (layer.heads, -1))
        return per_head

    def project(rows: slice) -> tuple[Tensor, Tensor]:
        source = block.norm1(x[rows]) if context is None else context(rows)
        k = (context_rotation or rotation).turn(heads(layer.k(source)), rows)
        return k, heads(layer.v(source))

    keys = Rows(project)
    for rows in attention.row_spans:
        keys.move_to(rows.keys)
        part = x[rows.cells]
        q = rotation.turn(heads(layer.q(block.norm1(part))), rows.cells)
        part += layer.proj(attention.attend(q, keys, rows))
        part += block.mlp(block.norm2(part))


def _resize_cells(config: ModelConfig, patch_size: int) -> int:
    """How many cells the resize looks into the neighbors of a patch."""
    if patch_size == config.base_patch_size:
        return 0
    return -(-RESIZE_REACH_PX // patch_size)


def _with_margin(start: int, length: int, n: int, margin: int) -> tuple[slice, int]:
    """Cells ``start`` to ``start + length`` with a margin within 0..n, and its width before."""
    first = max(0, start - margin)
    return slice(first, min(n, start + length + margin)), start - first


def _scale(cells: slice, patch_size: int) -> slice:
    return slice(cells.start * patch_size, cells.stop * patch_size)
