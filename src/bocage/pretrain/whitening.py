"""Starting weights that see decorrelated bands: for runs too short to learn them.

Bands of a scene are nearly copies of each other, and a small set of imagery fills a small part of
the range that the released constants allow for. A random projection of such pixels is nearly the
same vector for every patch, so that the loss, which tells patches apart, has little to hold on to.
Here the first linear map of encoder and target is multiplied by the whitening of the data's bands,
and the mean token is subtracted in the last bias. Both are changes of starting weights only: the
network, its files and its normalization stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bocage.errors import InputError
from bocage.models.patch_embedding import PatchEmbedding
from bocage.models.predictor import PretrainingModel
from bocage.pretrain.batch import Batch

FLOOR = 3e-3
"""Smallest variance along an axis, relative to the largest: noise is not blown up further."""


@torch.no_grad()
def whiten(model: PretrainingModel, batches: Iterable[Batch], *, floor: float = FLOOR) -> None:
    """Rewrite the patch embeddings of the sensors in ``batches``, in the encoder and the target.

    Bands that the batches never show keep their random weights. Raises InputError without data.
    """
    batches = list(batches)
    config = model.config
    parts: list[Any] = [model.encoder.patch_embeddings, model.target_encoder.patch_embeddings]
    for sensor in config.inputs:
        for number, bands in enumerate(config.band_sets[sensor]):
            pixels = _pixels(batches, sensor, number, list(bands))
            if not len(pixels):
                continue
            mean, axes = _whitening(pixels, floor)
            embedders = [p.per_modality_embeddings[sensor][f"{sensor}__{number}"] for p in parts]
            for embedder in embedders:
                _see_whitened(embedder, mean, axes)
            shift = _mean_token(embedders[-1], batches, sensor, number, list(bands))
            for embedder in embedders:
                bias: Any = embedder.proj.bias
                bias -= shift


def _pixels(batches: list[Batch], sensor: str, number: int, bands: list[int]) -> Tensor:
    """Pixels [n, C] of the patches that are there, in double precision."""
    found = []
    for batch in batches:
        if sensor not in batch.values:
            continue
        x = batch.values[sensor][:, :: batch.patch_size, :: batch.patch_size][..., bands]
        found.append(x[batch.present[sensor][..., number]])
    return torch.cat(found).double() if found else torch.empty(0, len(bands)).double()


def _whitening(pixels: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Mean [C] and the map [C, C] to uncorrelated axes of unit variance."""
    mean = pixels.mean(0)
    variance, axes = torch.linalg.eigh(torch.cov(pixels.T).reshape(len(mean), -1))
    if not float(variance[-1]) > 0:
        raise InputError(
            got="samples whose pixels are all the same",
            expected="imagery with some variation to whiten",
            fix="check the samples with `bocage pretrain describe`, or leave out --whiten",
        )
    variance = variance.clamp_min(float(variance[-1]) * floor)
    # The symmetric root has no free signs: the same data give the same start on every machine.
    return mean, (axes / variance.sqrt()) @ axes.T


def _see_whitened(embedder: PatchEmbedding, mean: Tensor, axes: Tensor) -> None:
    """Compose the first linear map with x -> axes (x - mean)."""
    is_convolution = isinstance(embedder.proj, nn.Conv2d)
    whole_patch = not is_convolution and not len(embedder.pixel_proj)
    first: Any = embedder.proj if is_convolution or whole_patch else embedder.pixel_proj[0]
    weight = first.weight.double()
    if whole_patch:  # channels are the fastest of [row, column, channel]
        weight = weight.unflatten(1, (-1, len(mean))).transpose(1, 2)
    composed = torch.einsum("oc...,cb->ob...", weight, axes)
    shift = torch.einsum("ob...,b->o...", composed, mean).reshape(len(weight), -1).sum(1)
    if whole_patch:
        composed = composed.transpose(1, 2).flatten(1)
    first.weight.copy_(composed)
    first.bias.copy_(first.bias.double() - shift)


def _mean_token(
    embedder: PatchEmbedding, batches: list[Batch], sensor: str, number: int, bands: list[int]
) -> Tensor:
    """Mean token [D] over the batches."""
    found = []
    for batch in batches:
        if sensor in batch.values:
            x = batch.values[sensor][..., bands].permute(0, 3, 4, 1, 2).flatten(0, 1)
            n_times = batch.values[sensor].shape[3]
            tokens = embedder(x, batch.patch_size).unflatten(0, (-1, n_times))
            there = batch.present[sensor][..., number].permute(0, 3, 1, 2)
            found.append(tokens[there])
    return torch.cat(found).mean(0)
