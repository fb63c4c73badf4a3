"""Networks to pretrain: every release and every ablation of it is one call.

The starting point is a release (its band sets, patch embedding and position encoding); each option
replaces one ingredient, in the encoder and in the predictor alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from bocage.errors import ConfigError
from bocage.memory import keep_freed_memory
from bocage.models.config import POSITION_ENCODINGS, ModelConfig, default_band_sets
from bocage.models.predictor import PretrainingModel
from bocage.models.releases import SIZES, release_config
from bocage.pretrain.distillation import DistillationHead
from bocage.pretrain.objective_config import ObjectiveConfig
from bocage.pretrain.supervision import MAP_TASKS, SupervisionHead

RELEASES = ("v1", "v1.1", "v1.2", "v1.3")
BAND_SETS = ("v1", "single")
PATCH_EMBEDDINGS = ("convolution", "linear", "non_linear")


def model_config(
    size: str,
    release: str = "v1.2",
    *,
    band_sets: str | None = None,
    patch_embedding: str | None = None,
    pixel_hidden: int | None = None,
    position_encoding: str | None = None,
    drop_path: float | None = None,
) -> ModelConfig:
    """The network of a release at any size, with single ingredients replaced.

    ``band_sets``: "v1" (3 tokens of Sentinel-2, 2 of Landsat) or "single" (1 each).
    ``patch_embedding``: "convolution" (v1), "linear", or "non_linear" with ``pixel_hidden`` hidden
    channels per pixel (12 for nano, 64 for larger sizes). ``position_encoding``: one of
    POSITION_ENCODINGS. None keeps what the release has. Band dropout is an option of the
    objective, because it changes the training and not the network.
    """
    for name, value, allowed in (
        ("size", size, tuple(SIZES)),
        ("release", release, RELEASES),
        ("band_sets", band_sets, (None, *BAND_SETS)),
        ("patch_embedding", patch_embedding, (None, *PATCH_EMBEDDINGS)),
        ("position_encoding", position_encoding, (None, *POSITION_ENCODINGS)),
    ):
        if value not in allowed:
            raise ConfigError(
                got=f"{name} {value!r}",
                expected=f"one of {', '.join(str(a) for a in allowed if a is not None)}",
                fix=f"correct {name} of the model",
            )
    config = release_config(release, size)
    if band_sets is not None:
        config = replace(config, band_sets=default_band_sets(split=band_sets == "v1"))
    if patch_embedding is not None or pixel_hidden is not None:
        hidden = _hidden(config, size, patch_embedding, pixel_hidden)
        config = replace(config, pixel_hidden=hidden)
    if position_encoding is not None:
        config = _with_positions(config, position_encoding)
    if drop_path is not None:
        if not 0 <= drop_path < 1:
            raise ConfigError(
                got=f"drop_path {drop_path}",
                expected="a share from 0 to below 1",
                fix="correct drop_path of the model",
            )
        config = replace(config, drop_path=drop_path)
    return config


def _hidden(
    config: ModelConfig, size: str, patch_embedding: str | None, n_hidden: int | None
) -> tuple[int, ...] | None:
    """Hidden widths of the pixel network, in the terms of ModelConfig."""
    if patch_embedding in ("convolution", "linear") and n_hidden is not None:
        raise ConfigError(
            got=f"pixel_hidden {n_hidden} with patch_embedding {patch_embedding!r}",
            expected="hidden channels for a non_linear patch embedding only",
            fix="leave one of the two out",
        )
    if n_hidden is not None and n_hidden < 1:
        raise ConfigError(
            got=f"pixel_hidden {n_hidden}",
            expected="1 or more hidden channels",
            fix='pass patch_embedding="linear" for none',
        )
    if patch_embedding == "convolution":
        return None
    if patch_embedding == "linear":
        return ()
    default = 12 if size == "nano" else 64
    return (n_hidden or (config.pixel_hidden or (default,))[0],)


def _with_positions(config: ModelConfig, encoding: str) -> ModelConfig:
    """Another position encoding with the scales of v1.2 (rows in 10 m, time in months)."""
    scales = release_config("v1.2", "nano").positions
    positions = replace(scales, encoding=encoding)
    decoder = config.decoder
    if decoder is not None and not decoder.reads_locations:
        decoder = replace(decoder, positions=positions)
    return replace(config, positions=positions, decoder=decoder)


def make_pretraining_model(
    config: ModelConfig, seed: int, objective: ObjectiveConfig | None = None
) -> PretrainingModel:
    """A network with fresh weights, the same for the same seed, whatever was drawn before.

    With ``objective`` it has the extra heads that the objective reads. Parameters that no loss can
    reach are frozen: those of maps in the encoder, and what is in the official files without a
    part in this objective.
    """
    keep_freed_memory()  # activations of one step are those of the next: 8 % of a step on a CPU
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PretrainingModel(config)
        if objective is not None and config.pooler is not None:
            if objective.supervision_weight:
                maps = tuple(m for m in config.modalities if m in MAP_TASKS)
                model.supervision_head = SupervisionHead(config.pooler.width, maps)
            if objective.student_weight and config.pooler.student_dims:
                model.location_token_distillation_head = DistillationHead(
                    config.pooler.student_dims, config.pooler.width
                )
    for part in _unreached(model, config, objective or ObjectiveConfig()):
        part.requires_grad_(False)
    return model


def _unreached(
    model: PretrainingModel, config: ModelConfig, objective: ObjectiveConfig
) -> Iterator[nn.Module | nn.Parameter]:
    """What no loss of the objective depends on."""
    encoder = model.encoder
    for name in config.modalities:
        if name not in config.inputs:
            yield encoder.patch_embeddings.per_modality_embeddings[name]
            yield encoder.composite_encodings.per_modality_channel_embeddings[name]
    if model.decoder.location_tokens_to_decoder_embed is not None:
        yield model.decoder.input_norm
        yield model.decoder.encoder_to_decoder_embed
    if encoder.project_and_aggregate is not None and not objective.contrastive_weight:
        yield encoder.project_and_aggregate
    pooler = encoder.attention_pooler
    distilled = model.location_token_distillation_head is not None
    if pooler is not None and pooler.student is not None and not distilled:
        yield pooler.student
