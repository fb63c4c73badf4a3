"""What pretraining adds to the encoder: the predictor and the frozen targets that it predicts.

The names of all parameters are those of an official file whose target is the patch embedding alone
(``projection_only_target``), so a state dict goes both ways unchanged.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets, N tokens,
D width of the encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bocage.errors import ModelError
from bocage.models.attention import Block
from bocage.models.config import DecoderConfig, ModelConfig
from bocage.models.encoder import (
    Encoder,
    EncoderOutput,
    flatten_tokens,
    initialize,
    split_tokens,
    token_positions,
)
from bocage.models.encodings import CompositeEncodings
from bocage.models.packing import plan_packing
from bocage.models.patch_embedding import PatchEmbeddings


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

    def _context(
        self, encoded: EncoderOutput, timestamps: Tensor, step: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the queries read: location tokens (v1.3) or the visible tokens."""
        if self.location_tokens_to_decoder_embed is not None:
            if encoded.locations is None:
                raise ModelError(
                    got="an encoder output without location tokens",
                    expected="location tokens: this predictor reads nothing else",
                    fix="use the encoder of the same configuration",
                )
            tokens = encoded.locations.tokens.flatten(1, 2)
            embedded: Tensor = self.location_tokens_to_decoder_embed(tokens)
            return embedded, encoded.locations.positions, None
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


class PretrainingModel(nn.Module):
    """Encoder, predictor and targets, named as in official files."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, modalities=config.modalities, with_projection=True)
        self.decoder = Predictor(config)
        self.target_encoder = FrozenTarget(self.encoder.patch_embeddings)


def _decoder_of(config: ModelConfig) -> DecoderConfig:
    if config.decoder is None:
        raise ModelError(
            got="a configuration without decoder_config",
            expected="one with a decoder, as pretraining needs",
            fix="use the config.json of a pretrained model",
        )
    return config.decoder
