"""Networks to pretrain: every release and every ablation of it is one call.

The starting point is a release (its band sets, patch embedding and position encoding); each option
replaces one ingredient, in the encoder and in the predictor alike.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from bocage.errors import ConfigError
from bocage.models.config import POSITION_ENCODINGS, ModelConfig, default_band_sets
from bocage.models.predictor import PretrainingModel
from bocage.models.releases import SIZES, release_config

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


def make_pretraining_model(config: ModelConfig, seed: int) -> PretrainingModel:
    """A network with fresh weights, the same for the same seed, whatever was drawn before.

    The embedders of maps in the encoder are frozen: they are part of the official files, and no
    loss ever reaches them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PretrainingModel(config)
    maps = [m for m in config.modalities if m not in config.inputs]
    for name in maps:
        model.encoder.patch_embeddings.per_modality_embeddings[name].requires_grad_(False)
        model.encoder.composite_encodings.per_modality_channel_embeddings[name].requires_grad_(
            False
        )
    return model
