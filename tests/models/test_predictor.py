"""The predictor, the targets and the contrastive head are those of the official package."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.config import Config

from bocage.models.config import ModelConfig
from bocage.models.config_json import config_to_json
from bocage.models.predictor import PretrainingModel
from bocage.models.releases import release_config
from bocage.sensors import MAPS, SENSORS

from .official import TOLERANCE, official_model, official_sample, random_dates, randomize

NANO = ["v1", "v1.1", "v1.2", "v1.3"]
PATCH, SIDE, TIMES = 4, 3, 3


def our_pretraining_model(official: torch.nn.Module, config: ModelConfig) -> PretrainingModel:
    ours = PretrainingModel(config)
    weights = official.state_dict()
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    return ours.eval()


def masked_batch(config: ModelConfig, seed: int = 0):
    """Values of all nine modalities and random masks 0 encode, 1 target, 2 decode, 3 missing."""
    generator = torch.Generator().manual_seed(seed)
    values, masks = {}, {}
    for name in config.modalities:
        bands = len(SENSORS[name].bands if name in SENSORS else MAPS[name].bands)
        times, codes = (TIMES, [0, 1, 2, 3]) if name in SENSORS else (1, [1, 2, 3])
        values[name] = torch.rand(2, SIDE * PATCH, SIDE * PATCH, times, bands, generator=generator)
        shape = (2, SIDE, SIDE, times, len(config.band_sets[name]))
        index = torch.randint(len(codes), shape, generator=generator)
        masks[name] = torch.tensor(codes)[index]
    return values, masks


def to_pixels(mask: torch.Tensor) -> torch.Tensor:
    return mask.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)


@pytest.mark.parametrize("version", NANO)
def test_predictions_targets_and_contrastive_head_match(version: str) -> None:
    config = release_config(version, "nano")
    official = official_model(version, "nano")
    ours = our_pretraining_model(official, config)
    values, masks = masked_batch(config)
    dates = random_dates(2, TIMES)
    sample = official_sample(values, dates)
    sample = sample._replace(**{f"{m}_mask": to_pixels(mask) for m, mask in masks.items()})

    # Only in training mode does the official encoder hide padding; without dropped paths the two
    # modes are otherwise the same.
    for block in official.encoder.blocks:
        block.drop_path = torch.nn.Identity()
    official.encoder.train()
    with torch.no_grad():
        latent, decoded, pooled, _, _ = official(sample, patch_size=PATCH)
        targets = official.target_encoder(
            sample, patch_size=PATCH, token_exit_cfg=dict.fromkeys(config.modalities, 0)
        )["tokens_and_masks"]
        encoded = ours.encoder(
            {m: values[m] for m in config.inputs},
            dates,
            PATCH,
            visible={m: masks[m] == 0 for m in config.inputs},
        )
        predictions = ours.decoder(encoded, {m: k == 2 for m, k in masks.items()}, dates, PATCH)
        our_targets = ours.target_encoder(values, PATCH)
        our_pooled = ours.encoder.project_and_aggregate(encoded)

    for name in config.inputs:
        assert (encoded.tokens[name] - getattr(latent, name)).abs().max() <= TOLERANCE
    for name, mask in masks.items():
        difference = predictions[name] - getattr(decoded, name)
        assert difference[mask == 2].abs().max() <= TOLERANCE, name
        assert (our_targets[name] - getattr(targets, name)).abs().max() <= TOLERANCE, name
    assert (our_pooled - pooled).abs().max() <= TOLERANCE


@pytest.mark.parametrize("version", NANO)
def test_the_official_package_loads_what_we_train_and_the_reverse(version: str) -> None:
    config = dataclasses.replace(release_config(version, "nano"), projection_only_target=True)
    ours = PretrainingModel(config)
    randomize(ours, 1)
    official = Config.from_dict(config_to_json(config)["model"]).build()
    official.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(official.state_dict(), strict=True)


def test_targets_stay_as_they_were_when_the_encoder_learns() -> None:
    model = PretrainingModel(release_config("v1.2", "nano"))
    before = {n: p.clone() for n, p in model.target_encoder.named_parameters()}
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[n], p) for n, p in model.target_encoder.named_parameters())
    assert not any(p.requires_grad for p in model.target_encoder.parameters())


def test_a_predictor_gets_gradients_into_encoder_and_mask_token() -> None:
    config = release_config("v1.3", "nano")
    model = PretrainingModel(config)
    values, masks = masked_batch(config)
    dates = random_dates(2, TIMES)
    encoded = model.encoder(
        {m: values[m] for m in config.inputs},
        dates,
        PATCH,
        visible={m: masks[m] == 0 for m in config.inputs},
    )
    predictions = model.decoder(encoded, {m: k == 2 for m, k in masks.items()}, dates, PATCH)
    sum(x.square().sum() for x in predictions.values()).backward()
    assert model.decoder.mask_token.grad.abs().max() > 0
    assert model.encoder.blocks[0].attn.rope_mixed_freqs.grad.abs().max() > 0
