"""The additive encoding of tokens: four quarters of the width, for band set, slot, month, place.

Which quarters are used depends on the position encoding: rotations in time replace the slot,
any rotation in space replaces the place, the month is always added.

Axes: B batch, h w patch rows and columns, T timesteps, S band sets, n a quarter of the width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.models.config import ModelConfig, PositionConfig
from bocage.models.selection import Selection
from bocage.sensors import SENSORS


class CompositeEncodings(nn.Module):
    """Encodings added once to the tokens before the first block."""

    def __init__(
        self,
        config: ModelConfig,
        width: int,
        positions: PositionConfig,
        modalities: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.quarter = width // 4
        self.positions = positions
        self.per_modality_channel_embeddings = nn.ParameterDict(
            {
                m: nn.Parameter(torch.zeros(len(config.band_sets[m]), self.quarter))
                for m in modalities
            }
        )
        # Fixed, yet part of every checkpoint.
        self.month_embed = nn.Embedding(12, self.quarter, _weight=month_table(self.quarter))
        self.month_embed.weight.requires_grad_(False)

    def forward(
        self,
        modality: str,
        grid_hw: tuple[int, int],
        timestamps: Tensor | None,
        step: float,
    ) -> Tensor:
        """Encoding [B or 1, h or 1, w or 1, T or 1, S, D], to be broadcast over the tokens.

        ``step`` is the distance of patches in units of 10 m. Maps have no slot and no month.
        """
        bands = self.per_modality_channel_embeddings[modality][None, None, None, None]
        none = torch.zeros_like(bands)
        slot = month = place = none
        if modality in SENSORS and timestamps is not None:
            if self.positions.n_coordinates != 3:
                slots = torch.arange(timestamps.shape[1], device=bands.device)
                slot = sincos(slots, self.quarter)[None, None, None, :, None]
            month = self.month_embed(timestamps[..., 1])[:, None, None, :, None]
        if self.positions.encoding == "absolute":
            place = place_table(grid_hw, step, self.quarter, bands.device)[None, :, :, None, None]
        parts = (bands, slot.to(bands.dtype), month.to(bands.dtype), place.to(bands.dtype))
        sizes = [max(part.shape[axis] for part in parts) for axis in range(bands.ndim - 1)]
        return torch.cat([part.expand(*sizes, -1) for part in parts], dim=-1)

    def at(self, selection: Selection, timestamps: Tensor, step: float) -> Tensor:
        """Encoding [n, D] of chosen tokens, with stamps [B, T, 3] of the samples."""
        channels = torch.cat([self.per_modality_channel_embeddings[m] for m in _names(selection)])
        bands = functional.embedding(selection.set_number, channels)
        none = bands.new_zeros(()).expand_as(bands)
        slot = month = place = none
        if self.positions.n_coordinates != 3:
            slots = torch.arange(timestamps.shape[1], device=bands.device)
            slot = _with_zero(sincos(slots, self.quarter))[selection.slot]
        months = _with_zero(self.month_embed(timestamps[..., 1]))  # [B, T + 1, n]
        month = months[selection.sample, selection.slot]
        if self.positions.encoding == "absolute":
            table = place_table(selection.grid_hw, step, self.quarter, bands.device)
            place = table[selection.cell_row, selection.cell_col]
        return torch.cat([part.to(bands.dtype) for part in (bands, slot, month, place)], dim=-1)


def _names(selection: Selection) -> dict[str, None]:
    """Modalities of a selection in order, each once."""
    return dict.fromkeys(m for m, _ in selection.band_sets)


def _with_zero(table: Tensor) -> Tensor:
    """A row of zeros after the last timestep: what a token without a date gets."""
    return functional.pad(table, (0, 0, 0, 1))


def sincos(coordinate: Tensor, width: int) -> Tensor:
    """Sines then cosines [..., width] with frequencies 10000 ** (-i / (2 width)).

    The exponents stop at 1/4, not 1: a quirk of the released models that must be kept.
    """
    exponents = torch.arange(width // 2, device=coordinate.device) / (2 * width)
    angles = coordinate.float()[..., None] * 10000**-exponents
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def place_table(grid_hw: tuple[int, int], step: float, width: int, device: torch.device) -> Tensor:
    """Encoding [h, w, width]: first half the column, second half the row."""
    rows, cols = (sincos(torch.arange(n, device=device) * step, width // 2) for n in grid_hw)
    return torch.cat(
        (cols[None].expand(len(rows), -1, -1), rows[:, None].expand(-1, len(cols), -1)), dim=-1
    )


def month_table(width: int) -> Tensor:
    """Table [12, width]: the month's angle on the circle of the year, sines then cosines.

    On the CPU even where shapes alone are made: arithmetic of meta tensors loads torch's compiler.
    """
    angles = torch.arange(12, device="cpu") * (2 * math.pi / 12)
    halves = (angles.sin()[:, None], angles.cos()[:, None])
    return torch.cat([half.expand(-1, width // 2) for half in halves], dim=-1)
