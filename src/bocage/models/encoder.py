"""The encoder: sensors to tokens, in plain fp32. Everything faster is measured against this.

One attention over all tokens of a sample: places x timesteps x band sets x sensors.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets, N tokens,
D width, X coordinates (time, row, column).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.models.attention import Block
from bocage.models.config import ModelConfig, PositionConfig
from bocage.models.encodings import CompositeEncodings
from bocage.models.packing import plan_packing
from bocage.models.patch_embedding import PatchEmbeddings, resized_patches
from bocage.models.pooler import AttentionPooler, Locations
from bocage.models.rope import days_since_first, grid_positions
from bocage.models.selection import Selection, row_groups, select


@dataclass(frozen=True, kw_only=True)
class EncoderOutput:
    """Tokens of each sensor, and the location tokens of v1.3."""

    tokens: dict[str, Tensor]
    """[B, h, w, T, S, D] per sensor after the last norm; zeros where hidden."""

    visible: dict[str, Tensor]
    """[B, h, w, T, S] per sensor."""

    locations: Locations | None


class Encoder(nn.Module):
    """The OlmoEarth encoder; parameter names are those of ``encoder.*`` in official files."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        modalities: tuple[str, ...] | None = None,
        with_projection: bool = False,
    ) -> None:
        """Embed ``modalities``, by default the sensors that the encoder reads.

        ``with_projection`` adds the contrastive head of pretraining.
        """
        super().__init__()
        self.config = config
        modalities = modalities or config.inputs
        self.patch_embeddings = PatchEmbeddings(config, modalities)
        self.composite_encodings = CompositeEncodings(
            config, config.width, config.positions, modalities
        )
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_ratio,
                config.positions,
                drop_path=config.drop_path,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.attention_pooler = (
            None if config.pooler is None else AttentionPooler(config, config.pooler)
        )
        self.project_and_aggregate: ProjectAndAggregate | None = None
        if with_projection:
            pooled = config.width if config.pooler is None else config.pooler.width
            self.project_and_aggregate = ProjectAndAggregate(pooled)
        initialize(self)

    def forward(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        *,
        visible: Mapping[str, Tensor] | None = None,
        input_res_m: float = 10.0,
        location_query_patch_size: int | None = None,
    ) -> EncoderOutput:
        """Tokens of normalized ``values`` [B, H, W, T, C] with stamps [B, T, 3].

        ``visible`` [B, h, w, T, S] hides tokens from all others (None: all visible); a hidden
        token comes back as zeros.
        """
        sensors = [m for m in self.config.modalities if m in values]
        step = input_res_m * patch_size / 10
        embedded = {m: self.patch_embeddings(m, values[m], patch_size) for m in sensors}
        shapes = {m: x.shape[:-1] for m, x in embedded.items()}
        grid_hw = embedded[sensors[0]].shape[1:3]

        x = flatten_tokens(
            [embedded[m] + self.composite_encodings(m, grid_hw, timestamps, step) for m in sensors]
        )
        positions = torch.cat(
            [token_positions(self.config.positions, s, timestamps, step) for s in shapes.values()],
            dim=1,
        )
        packing = None
        if visible is not None:
            keep = torch.cat([visible[m].flatten(1) for m in sensors], dim=1)
            if not bool(keep.all()):
                packing = plan_packing(keep)
                x, positions = packing.pack(x), packing.pack(positions)
        valid = None if packing is None else packing.key_valid

        rope_positions = positions if self.config.positions.n_coordinates else None
        for block in self.blocks:
            x = block(x, rope_positions, context_valid=valid)
        x = self.norm(x)

        locations = None
        if self.attention_pooler is not None:
            locations = self.attention_pooler(
                x,
                positions[..., -2:],
                valid,
                grid_hw=grid_hw,
                queries_per_patch=patch_size // (location_query_patch_size or patch_size),
                step=step * self.config.positions.coordinate_scale,
            )
        x = x if packing is None else packing.unpack(x)
        return EncoderOutput(
            tokens=split_tokens(x, shapes),
            visible={
                m: torch.ones(s, dtype=torch.bool, device=x.device)
                if visible is None
                else visible[m]
                for m, s in shapes.items()
            },
            locations=locations,
        )

    def encode_rows(
        self,
        patches: Mapping[str, Tensor],
        selection: Selection,
        timestamps: Tensor,
        patch_size: int,
        *,
        band_keep: Mapping[str, Tensor] | None = None,
        branch_scale: Tensor | None = None,
        location_query_patch_size: int | None = None,
        input_res_m: float = 10.0,
    ) -> EncodedRows:
        """Encode chosen tokens alone, as pretraining does; the same numbers as ``forward``.

        ``patches`` [B, h, w, T, 8, 8, C] per sensor, ``timestamps`` [B, T, 3], ``band_keep``
        [R, C] per sensor, ``branch_scale`` [depth, 2, R].
        """
        step = input_res_m * patch_size / 10
        x = self.patch_embeddings.embed(patches, selection, band_keep)
        if len(selection.picked) > 1:
            x = x.index_select(0, selection.source)
        x = x + self.composite_encodings.at(selection, timestamps, step)
        positions = row_positions(self.config.positions, selection, timestamps, step)
        groups = row_groups(selection.counts, selection.counts)
        rope_positions = positions if self.config.positions.n_coordinates else None
        for i, block in enumerate(self.blocks):
            scale = None
            if branch_scale is not None:
                scale = branch_scale[i][:, selection.row, None]
            x = block(x, rope_positions, groups=groups, branch_scale=scale)
        x = self.norm(x)
        locations = None
        if self.attention_pooler is not None:
            locations = self.attention_pooler.read_rows(
                x,
                positions[:, -2:],
                selection,
                queries_per_patch=patch_size // (location_query_patch_size or patch_size),
                step=step * self.config.positions.coordinate_scale,
            )
        return EncodedRows(tokens=x, selection=selection, locations=locations)

    def encode_for_training(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        *,
        visible: Mapping[str, Tensor] | None = None,
        input_res_m: float = 10.0,
        location_query_patch_size: int | None = None,
    ) -> EncoderOutput:
        """The same as ``forward``, in the way whose gradients are cheap.

        Stochastic depth is drawn here, as the blocks would.
        """
        sensors = [m for m in self.config.modalities if m in values]
        base = self.config.base_patch_size
        patches = {m: resized_patches(values[m], base, patch_size) for m in sensors}
        masks = {}
        for m in sensors:
            shape = (*patches[m].shape[:4], len(self.config.band_sets[m]))
            seen = torch.ones(shape, dtype=torch.bool) if visible is None else visible[m]
            masks[m] = seen.cpu()
        device = timestamps.device
        n_samples = len(timestamps)
        selection = select(masks, torch.arange(n_samples)).to(device)
        encoded = self.encode_rows(
            patches,
            selection,
            timestamps,
            patch_size,
            branch_scale=self._draw_branch_scale(n_samples, device),
            location_query_patch_size=location_query_patch_size,
            input_res_m=input_res_m,
        )
        x = encoded.tokens
        keep = torch.cat([mask.flatten(1) for mask in masks.values()], dim=1)
        if not bool(keep.all()):
            place = keep.flatten().nonzero()[:, 0].to(device)
            x = x.new_zeros(keep.numel(), x.shape[-1]).index_copy(0, place, x)
        return EncoderOutput(
            tokens=split_tokens(
                x.unflatten(0, keep.shape), {m: mask.shape for m, mask in masks.items()}
            ),
            visible={m: mask.to(device) for m, mask in masks.items()},
            locations=encoded.locations,
        )

    def _draw_branch_scale(self, n_samples: int, device: torch.device) -> Tensor | None:
        """Stochastic depth [depth, 2, B] of a training step: 0 skips a branch of a sample."""
        shares = [cast("Block", block).drop_path for block in self.blocks]
        if not self.training or not any(shares):
            return None
        scale = torch.ones(len(shares), 2, n_samples, device=device)
        for branches, share in zip(scale, shares, strict=True):
            if share:
                # One draw a branch, as the blocks of ``forward`` draw: the same seed, the same run.
                for branch in branches:
                    branch.bernoulli_(1 - share).div_(1 - share)
        return scale


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Chosen tokens after the last norm."""

    tokens: Tensor
    """[n, D], row after row."""

    selection: Selection
    locations: Locations | None


class ProjectAndAggregate(nn.Module):
    """Contrastive head of pretraining: the mean of the visible tokens, projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(nn.Linear(width, width))

    def forward(self, output: EncoderOutput | EncodedRows) -> Tensor:
        """One vector [B, D] per sample; location tokens are read where they exist."""
        if output.locations is not None:
            mean = output.locations.tokens.mean(dim=(1, 2))
        elif isinstance(output, EncodedRows):
            mean = row_means(output.tokens, output.selection)
        else:
            x = flatten_tokens(list(output.tokens.values()))
            keep = torch.cat([v.flatten(1) for v in output.visible.values()], dim=1)[..., None]
            mean = (x * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
        projected: Tensor = self.projection(mean)
        return projected


def flatten_tokens(parts: list[Tensor]) -> Tensor:
    """Concatenate [B, h, w, T, S, D] of several modalities to one sequence [B, N, D]."""
    return torch.cat([part.flatten(1, -2) for part in parts], dim=1)


def split_tokens(x: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Undo ``flatten_tokens``: [B, N, D] to [B, h, w, T, S, D] per modality."""
    lengths = [shape[1:].numel() for shape in shapes.values()]
    pieces = torch.split(x, lengths, dim=1)
    return {
        m: piece.reshape(*shape, -1)
        for (m, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


def token_positions(
    config: PositionConfig, shape: torch.Size, timestamps: Tensor, step: float
) -> Tensor:
    """Coordinates [B, N, 2 or 3] of one modality's tokens of ``shape`` [B, h, w, T, S]."""
    n_batch, rows, cols, times, sets = shape
    grid = grid_positions(rows, cols, step * config.coordinate_scale, timestamps.device)
    grid = grid[None, :, :, None, None].expand(n_batch, -1, -1, times, sets, -1)
    if config.n_coordinates == 3:
        # A map has one timestep and takes the first stamp.
        days = days_since_first(timestamps)[:, :times] * config.temporal_coordinate_scale
        days = days[:, None, None, :, None, None].expand(*shape, 1)
        grid = torch.cat((days, grid), dim=-1)
    return grid.flatten(1, -2)


def row_positions(
    config: PositionConfig, selection: Selection, timestamps: Tensor, step: float
) -> Tensor:
    """Coordinates [n, 2 or 3] of chosen tokens, with stamps [B, T, 3] of the samples."""
    scale = step * config.coordinate_scale
    axes = [selection.cell_row * scale, selection.cell_col * scale]
    if config.n_coordinates == 3:
        # A map has no timestep of its own and takes the first stamp, which is day 0.
        days = functional.pad(days_since_first(timestamps), (0, 1))
        days = days[selection.sample, selection.slot]
        axes = [days * config.temporal_coordinate_scale, *axes]
    return torch.stack(axes, dim=-1).float()


def row_means(x: Tensor, selection: Selection) -> Tensor:
    """Mean [R, D] over the tokens [n, D] of each row; 0 for a row without any."""
    parts = x.split([g.n_rows * g.n_read for g in row_groups(selection.counts, selection.counts)])
    groups = row_groups(selection.counts, selection.counts)
    return torch.cat(
        [
            part.unflatten(0, (g.n_rows, -1)).mean(dim=1)
            if g.n_read
            else x.new_zeros(g.n_rows, x.shape[-1])
            for g, part in zip(groups, parts, strict=True)
        ]
    )


def initialize(module: nn.Module) -> None:
    """Xavier-uniform linear layers with zero bias; the convolutions of v1 keep torch's default."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
