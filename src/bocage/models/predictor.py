"""What pretraining adds to the encoder: the predictor and the frozen targets that it predicts.

The names of all parameters are those of an official file whose target is the patch embedding alone
(``projection_only_target``), so a state dict goes both ways unchanged.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets, N tokens,
D width of the encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bocage.errors import ModelError
from bocage.models.attention import Block
from bocage.models.config import DecoderConfig, ModelConfig
from bocage.models.encoder import (
    EncodedRows,
    Encoder,
    EncoderOutput,
    flatten_tokens,
    initialize,
    row_positions,
    split_tokens,
    token_positions,
)
from bocage.models.encodings import CompositeEncodings
from bocage.models.packing import plan_packing
from bocage.models.patch_embedding import PatchEmbeddings, resized_patches
from bocage.models.pooler import Locations
from bocage.models.selection import Selection, row_groups
from bocage.models.training import linear


class Predictor(nn.Module):
    """Cross-attention from mask tokens to what the encoder saw; queries never see each other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        decoder = _decoder_of(config)
        self.config, self.decoder = config, decoder
        self.mask_token = nn.Parameter(torch.zeros(decoder.width))
        self.input_norm = nn.LayerNorm(config.width)
        self.encoder_to_decoder_embed = nn.Linear(config.width, decoder.width)
        self.location_tokens_to_decoder_embed: nn.Linear | None = None
        if decoder.reads_locations and config.pooler is not None:
            self.location_tokens_to_decoder_embed = nn.Linear(config.pooler.width, decoder.width)
        self.composite_encodings = CompositeEncodings(
            config, decoder.width, decoder.positions, config.modalities
        )
        self.blocks = nn.ModuleList(
            Block(decoder.width, decoder.heads, decoder.mlp_ratio, decoder.positions)
            for _ in range(decoder.depth)
        )
        self.norm = nn.LayerNorm(decoder.width)
        self.to_output_embed = nn.Linear(decoder.width, decoder.output_width or config.width)
        initialize(self)

    def forward(
        self,
        encoded: EncoderOutput,
        decode: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        *,
        input_res_m: float = 10.0,
    ) -> dict[str, Tensor]:
        """Predict the tokens where ``decode`` [B, h, w, T, S] is True, zeros elsewhere.

        ``decode`` may hold modalities that the encoder did not read. Returns {modality:
        [B, h, w, T, S, D]}.
        """
        step = input_res_m * patch_size / 10
        shapes = {m: decode[m].shape for m in self.config.modalities if m in decode}
        encodings, positions = self._places(shapes, timestamps, step)
        packing = plan_packing(torch.cat([decode[m].flatten(1) for m in shapes], dim=1))
        queries = self.mask_token + packing.pack(encodings)
        query_positions = packing.pack(positions)

        context, context_positions, valid = self._context(encoded, timestamps, step)
        rotates = self.decoder.positions.n_coordinates > 0
        for block in self.blocks:
            queries = block(
                queries,
                query_positions if rotates else None,
                context=context,
                context_positions=context_positions if rotates else None,
                context_valid=valid,
            )
        predictions = packing.unpack(self.to_output_embed(self.norm(queries)))
        return split_tokens(predictions, shapes)

    def predict_rows(
        self,
        encoded: EncodedRows,
        selection: Selection,
        timestamps: Tensor,
        patch_size: int,
        *,
        input_res_m: float = 10.0,
    ) -> Tensor:
        """Predictions [n, D] of chosen tokens, each row from the same row of ``encoded``."""
        step = input_res_m * patch_size / 10
        context, context_positions, counts = self._row_context(encoded, timestamps, step)
        groups = row_groups(selection.counts, counts)
        queries = self.mask_token + self.composite_encodings.at(selection, timestamps, step)
        rotates = self.decoder.positions.n_coordinates > 0
        query_positions = row_positions(self.decoder.positions, selection, timestamps, step)
        for block in self.blocks:
            queries = block(
                queries,
                query_positions if rotates else None,
                context=context,
                context_positions=context_positions if rotates else None,
                groups=groups,
            )
        last = self.to_output_embed
        return linear(queries, last.weight, last.bias, norm=self.norm)

    def _row_context(
        self, encoded: EncodedRows, timestamps: Tensor, step: float
    ) -> tuple[Tensor, Tensor, Sequence[int]]:
        """What the queries read and how much of it each row has: location or visible tokens."""
        if self.location_tokens_to_decoder_embed is not None:
            tokens, positions, _ = self._locations(encoded.locations)
            counts = [tokens.shape[1]] * len(tokens)
            return tokens.flatten(0, 1), positions.flatten(0, 1), counts
        first = self.encoder_to_decoder_embed
        embedded = linear(encoded.tokens, first.weight, first.bias, norm=self.input_norm)
        context = embedded + self.composite_encodings.at(encoded.selection, timestamps, step)
        positions = row_positions(self.decoder.positions, encoded.selection, timestamps, step)
        return context, positions, encoded.selection.counts

    def _locations(self, locations: Locations | None) -> tuple[Tensor, Tensor, None]:
        if locations is None or self.location_tokens_to_decoder_embed is None:
            raise ModelError(
                got="an encoder output without location tokens",
                expected="location tokens: this predictor reads nothing else",
                fix="use the encoder of the same configuration",
            )
        tokens = locations.tokens.flatten(1, 2)
        return self.location_tokens_to_decoder_embed(tokens), locations.positions, None

    def _context(
        self, encoded: EncoderOutput, timestamps: Tensor, step: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the queries read: location tokens (v1.3) or the visible tokens."""
        if self.location_tokens_to_decoder_embed is not None:
            return self._locations(encoded.locations)
        shapes = {m: x.shape for m, x in encoded.visible.items()}
        encodings, positions = self._places(shapes, timestamps, step)
        packing = plan_packing(torch.cat([v.flatten(1) for v in encoded.visible.values()], dim=1))
        tokens = packing.pack(flatten_tokens(list(encoded.tokens.values())))
        context = self.encoder_to_decoder_embed(self.input_norm(tokens)) + packing.pack(encodings)
        return context, packing.pack(positions), packing.key_valid

    def _places(
        self, shapes: Mapping[str, torch.Size], timestamps: Tensor, step: float
    ) -> tuple[Tensor, Tensor]:
        """Encodings [B, N, D] and positions [B, N, X] of all tokens of the given shapes."""
        encodings = [
            self.composite_encodings(m, tuple(shape[1:3]), timestamps, step).expand(*shape, -1)
            for m, shape in shapes.items()
        ]
        positions = [
            token_positions(self.decoder.positions, shape, timestamps, step)
            for shape in shapes.values()
        ]
        return flatten_tokens(encodings), torch.cat(positions, dim=1)


class FrozenTarget(nn.Module):
    """Targets of pretraining: patch embeddings as they were at the start, never trained."""

    def __init__(self, patch_embeddings: PatchEmbeddings) -> None:
        super().__init__()
        self.patch_embeddings = copy.deepcopy(patch_embeddings).requires_grad_(False)

    @torch.no_grad()
    def forward(self, values: Mapping[str, Tensor], patch_size: int) -> dict[str, Tensor]:
        """Targets [B, h, w, T, S, D] of normalized values [B, H, W, T, C], maps included."""
        return {m: self.patch_embeddings(m, x, patch_size) for m, x in values.items()}

    @torch.no_grad()
    def embed(self, patches: Mapping[str, Tensor], selection: Selection) -> Tensor:
        """Targets [n, D] of chosen tokens, in fp32."""
        with torch.autocast(next(iter(patches.values())).device.type, enabled=False):
            return self.patch_embeddings.embed(patches, selection)


@dataclass(frozen=True, kw_only=True)
class PretrainingOutput:
    """What one step predicts and should have predicted. Rows are those of the selections."""

    encoded: EncodedRows
    predictions: Tensor
    """[n, D] at the decoded tokens, row after row."""

    targets: Tensor
    """[u, D] of all tokens that any row decodes, by band set."""

    pooled: Tensor | None
    """[R, D] from the contrastive head, if asked for."""

    maps: dict[str, Tensor]
    """Per map what the supervision head predicts (v1.3), of the rows asked for."""

    back_projections: dict[int, Tensor]
    """Location tokens [R r_h r_w, D] as prefixes of the readout remember them (v1.3)."""


class PretrainingModel(nn.Module):
    """Encoder, predictor and targets, named as in official files."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, modalities=config.modalities, with_projection=True)
        self.decoder = Predictor(config)
        self.target_encoder = FrozenTarget(self.encoder.patch_embeddings)
        # Extra heads of training, which an objective may ask for (v1.3).
        self.supervision_head: nn.Module | None = None
        self.location_token_distillation_head: nn.Module | None = None

    def forward(
        self,
        values: Mapping[str, Tensor],
        timestamps: Tensor,
        patch_size: int,
        *,
        encode: Selection,
        decode: Selection,
        target: Selection,
        band_keep: Mapping[str, Tensor] | None = None,
        branch_scale: Tensor | None = None,
        pooled: bool = False,
        location_query_patch_size: int | None = None,
        map_rows: Mapping[str, Tensor] | None = None,
    ) -> PretrainingOutput:
        """Encode, predict and look up the targets of one step.

        ``values`` [B, H, W, T, C] normalized, maps included; ``timestamps`` [B, T, 3]; the rows of
        ``encode`` and ``decode`` belong together, ``target`` holds one row per sample with
        everything that its rows decode. ``map_rows`` [k] says per map which rows predict it.
        """
        base = self.config.base_patch_size
        known = [m for m in self.config.modalities if m in values]
        patches = {m: resized_patches(values[m], base, patch_size) for m in known}
        encoded = self.encoder.encode_rows(
            patches,
            encode,
            timestamps,
            patch_size,
            band_keep=band_keep,
            branch_scale=branch_scale,
            location_query_patch_size=location_query_patch_size,
        )
        project, at = self.encoder.project_and_aggregate, encoded.locations
        supervise, distill = self.supervision_head, self.location_token_distillation_head
        return PretrainingOutput(
            encoded=encoded,
            predictions=self.decoder.predict_rows(encoded, decode, timestamps, patch_size),
            targets=self.target_encoder.embed(patches, target),
            pooled=project(encoded) if pooled and project is not None else None,
            maps={} if supervise is None or at is None else supervise(at.tokens, map_rows or {}),
            back_projections={}
            if distill is None or at is None or at.student is None
            else distill(at.student.flatten(0, 2)),
        )


def _decoder_of(config: ModelConfig) -> DecoderConfig:
    if config.decoder is None:
        raise ModelError(
            got="a configuration without decoder_config",
            expected="one with a decoder, as pretraining needs",
            fix="use the config.json of a pretrained model",
        )
    return config.decoder
