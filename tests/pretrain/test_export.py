"""An exported run is an official model: strict load there, the same tokens there and here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from olmoearth_pretrain_minimal.model_loader import load_model_from_path
from safetensors.torch import load_file

import bocage
from bocage.errors import ConfigError, ModelError, StoreError
from bocage.models.load import read_pretraining_model
from bocage.pretrain.checkpoint import latest_checkpoint
from bocage.pretrain.export import export
from bocage.pretrain.loop import pretrain
from bocage.pretrain.run_options import RunOptions

from ..models.official import (
    TOLERANCE,
    max_difference,
    official_sample,
    random_dates,
    random_values,
)
from .training_samples import QUIET, SamplesInMemory, small_recipe

RELEASES = ["v1", "v1.1", "v1.2", "v1.3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run of each release."""
    root = tmp_path_factory.mktemp("runs")
    data = SamplesInMemory(8)
    for release in RELEASES:
        recipe = small_recipe(release, steps=2, learning_rate=1e-2)
        pretrain(
            recipe, data, root / release, options=RunOptions(**QUIET, checkpoint_steps=1, keep=9)
        )
    return {release: root / release for release in RELEASES}


@pytest.mark.parametrize("release", RELEASES)
def test_the_official_package_loads_it_strictly_and_gives_the_same_tokens(
    runs: dict[str, Path], release: str, tmp_path: Path
) -> None:
    written = export(runs[release], tmp_path / "model")
    assert written.step == 2
    official = load_model_from_path(tmp_path / "model").eval()  # strict inside
    ours = bocage.load_model(tmp_path / "model", compile=False)
    assert ours.weights_id == written.weights_id
    assert ours.release == release

    values, dates = (
        random_values(("sentinel2_l2a", "sentinel1"), (2, 16, 16, 2)),
        random_dates(2, 2),
    )
    with torch.no_grad():
        theirs = official.encoder(official_sample(values, dates), patch_size=4, fast_pass=True)
        tokens = ours.encode(values, dates, patch_size=4, normalize=False).tokens
    assert max_difference(tokens, theirs["tokens_and_masks"]) <= TOLERANCE
    # training moved the encoder, never the targets
    start = official.target_encoder.state_dict()
    moved = official.encoder.state_dict()
    sensor = "patch_embeddings.per_modality_embeddings.sentinel2_l2a.sentinel2_l2a__0.proj.weight"
    assert not torch.equal(start[sensor], moved[sensor])
    mapped = "patch_embeddings.per_modality_embeddings.worldcover.worldcover__0.proj.weight"
    assert torch.equal(start[mapped], moved[mapped])


@pytest.mark.parametrize("release", RELEASES)
def test_safetensors_hold_what_pretraining_can_go_on_with(
    runs: dict[str, Path], release: str, tmp_path: Path
) -> None:
    export(runs[release], tmp_path / "model", format="safetensors")
    tensors = load_file(tmp_path / "model" / "weights.safetensors")
    ours = bocage.load_model(tmp_path / "model", compile=False)
    read_pretraining_model(ours.config, tmp_path / "model" / "weights.safetensors")
    assert any(name.startswith("decoder.") for name in tensors)
    full = any(name.startswith("target_encoder.blocks.") for name in tensors)
    assert full == (release != "v1.3")


def test_a_half_precision_encoder_is_small_and_close(runs: dict[str, Path], tmp_path: Path) -> None:
    full = export(runs["v1.2"], tmp_path / "full")
    half = export(runs["v1.2"], tmp_path / "half", format="encoder", dtype="fp16")
    assert half.n_bytes < 4e6 < full.n_bytes
    ours = [bocage.load_model(tmp_path / n, compile=False) for n in ("full", "half")]
    assert half.weights_id == ours[1].weights_id
    values, dates = random_values(("sentinel2_l2a",), (1, 16, 16, 2)), random_dates(1, 2)
    a, b = (m.encode(values, dates, normalize=False).pooled() for m in ours)
    assert 0 < (a - b).abs().max() < 0.02


def test_a_whitened_start_exports_with_the_targets_it_was_trained_against(tmp_path: Path) -> None:
    recipe = small_recipe(steps=1, whiten=True)
    pretrain(recipe, SamplesInMemory(8), tmp_path / "run", options=RunOptions(**QUIET))
    export(tmp_path / "run", tmp_path / "model")
    official = load_model_from_path(tmp_path / "model")
    saved = load_file(latest_checkpoint(tmp_path / "run") / "model.safetensors")
    targets = {n: x for n, x in saved.items() if n.startswith("target_encoder.")}
    assert targets
    assert all(torch.equal(official.state_dict()[n], x) for n, x in targets.items())


def test_any_kept_step_can_be_exported(runs: dict[str, Path], tmp_path: Path) -> None:
    first = export(runs["v1.2"], tmp_path / "first", step=1)
    last = export(runs["v1.2"], tmp_path / "last")
    assert (first.step, last.step) == (1, 2)
    assert first.weights_id != last.weights_id
    assert json.loads((tmp_path / "first" / "export.json").read_text())["step"] == 1
    with pytest.raises(ModelError, match="checkpoints 1, 2; expected one of step 5"):
        export(runs["v1.2"], tmp_path / "none", step=5)


def test_wrong_wishes_leave_nothing_behind(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format 'onnx'"):
        export(runs["v1.2"], tmp_path / "a", format="onnx")
    with pytest.raises(ConfigError, match="dtype 'fp16'"):
        export(runs["v1.2"], tmp_path / "a", dtype="fp16")
    with pytest.raises(ModelError, match=r"without a readable run\.json"):
        export(tmp_path, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("x")
    with pytest.raises(StoreError, match="exists already"):
        export(runs["v1.2"], tmp_path / "b")
