"""Every ablation is one option, and every network that comes out of it can be trained."""

from __future__ import annotations

import pytest
import torch

from bocage.errors import ConfigError
from bocage.models.config import POSITION_ENCODINGS
from bocage.models.releases import SIZES, release_config
from bocage.pretrain.architecture import (
    BAND_SETS,
    PATCH_EMBEDDINGS,
    RELEASES,
    make_pretraining_model,
    model_config,
)
from bocage.pretrain.masking import MaskingConfig
from bocage.pretrain.objective import Objective, ObjectiveConfig

from .batches import random_batch

ONE_VIEW = {"n_views": 1, "contrastive_weight": 0.0}
HEADS = {**ONE_VIEW, "supervision_weight": 1.0, "student_weight": 1.0}


def check_step(
    config, objective: ObjectiveConfig, *, precision=torch.float32, n_samples: int = 8
) -> None:
    """One step gives every trainable parameter a finite gradient, and the target none."""
    model = make_pretraining_model(config, 0, objective).train()
    batch = random_batch(config, n_samples=n_samples, missing=0.0, n_times=2)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        losses = Objective(objective)(model, batch, torch.Generator().manual_seed(0))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert bool(parameter.grad.isfinite().all()), name
            # Bias of keys and the like may have no effect; whole tensors of weights must have.
            if name.endswith("weight"):
                assert bool(parameter.grad.abs().max() > 0), name
    assert not any(p.requires_grad for p in model.target_encoder.parameters())


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_every_release_trains(release: str, precision: torch.dtype) -> None:
    options = HEADS if release == "v1.3" else {}
    check_step(model_config("nano", release), ObjectiveConfig(**options), precision=precision)


@pytest.mark.parametrize(
    "options",
    [
        *({"position_encoding": p} for p in POSITION_ENCODINGS),
        *({"patch_embedding": p} for p in PATCH_EMBEDDINGS),
        *({"band_sets": b} for b in BAND_SETS),
        {"pixel_hidden": 5},
        {"drop_path": 0.0},
    ],
    ids=str,
)
def test_every_ablation_trains(options: dict) -> None:
    check_step(model_config("nano", "v1.2", **options), ObjectiveConfig())


@pytest.mark.parametrize(
    "options",
    [
        {"band_dropout": 0.0},
        {"band_dropout": 0.9, "band_dropout_modalities": ("sentinel1",)},
        {"same_target": None},
        {"masking": MaskingConfig(strategy="modality_cross_random")},
        {"masking": MaskingConfig(random_ratio=0.0)},
        ONE_VIEW,
    ],
    ids=str,
)
def test_every_objective_trains(options: dict) -> None:
    check_step(model_config("nano", "v1.2"), ObjectiveConfig(**options))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("release", RELEASES)
def test_every_size_of_every_release_is_what_was_published(size: str, release: str) -> None:
    assert model_config(size, release) == release_config(release, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [s for s in SIZES if s != "nano"])
def test_every_size_trains(size: str) -> None:
    check_step(model_config(size, "v1.2"), ObjectiveConfig(), n_samples=2)


def test_options_change_what_they_say() -> None:
    config = model_config("tiny", "v1.2", band_sets="v1", patch_embedding="convolution")
    assert [len(config.band_sets[m]) for m in config.inputs] == [3, 1, 2]
    assert config.pixel_hidden is None
    assert model_config("tiny", "v1", patch_embedding="non_linear").pixel_hidden == (64,)
    assert model_config("nano", "v1", patch_embedding="non_linear").pixel_hidden == (12,)
    assert model_config("nano", "v1.2", patch_embedding="linear").pixel_hidden == ()
    axial = model_config("nano", "v1.1", position_encoding="rope_3d")
    assert axial.positions.encoding == axial.decoder.positions.encoding == "rope_3d"
    assert axial.positions.temporal_coordinate_scale == pytest.approx(1 / 30)
    # The predictor of v1.3 reads a grid without time, whatever the encoder does.
    assert model_config("nano", "v1.3", position_encoding="rope_3d").decoder.positions == (
        model_config("nano", "v1.3").decoder.positions
    )


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    config = model_config("nano")
    first = make_pretraining_model(config, 3).state_dict()
    before = torch.random.get_rng_state()
    torch.rand(5)
    second = make_pretraining_model(config, 3).state_dict()
    other = make_pretraining_model(config, 4).state_dict()
    assert all(torch.equal(first[n], second[n]) for n in first)
    name = "encoder.blocks.0.attn.q.weight"
    assert not torch.equal(first[name], other[name])
    torch.random.set_rng_state(before)
    with_heads = make_pretraining_model(
        model_config("nano", "v1.3"), 3, ObjectiveConfig(**HEADS)
    ).state_dict()
    extra = {n.split(".")[0] for n in with_heads} - {"encoder", "decoder", "target_encoder"}
    assert extra == {"supervision_head", "location_token_distillation_head"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"size": "huge"}, "size"),
        ({"release": "v2"}, "release"),
        ({"band_sets": "two"}, "band_sets"),
        ({"patch_embedding": "mlp"}, "patch_embedding"),
        ({"position_encoding": "rope4"}, "position_encoding"),
        ({"pixel_hidden": 0}, "pixel_hidden"),
        ({"patch_embedding": "linear", "pixel_hidden": 8}, "pixel_hidden"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_an_impossible_network_is_refused(options: dict, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        model_config(**{"size": "nano", **options})
