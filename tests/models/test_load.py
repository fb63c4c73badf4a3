"""Loading is strict: all tensors or an error, by whatever name and prefix."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.config import Config
from safetensors.torch import save_file

from bocage import list_models, load_model
from bocage.errors import BocageError, ConfigError, ModelError
from bocage.models.bundled import bundled_folder
from bocage.models.checkpoint import weights_hash
from bocage.models.config_json import config_to_json
from bocage.models.load import read_pretraining_model
from bocage.models.predictor import PretrainingModel
from bocage.models.releases import RELEASES, find_release, release_config

from .official import official_model

COUNTS = {  # spec: number of tensors and of parameters of the whole official file
    ("v1", "nano"): (287, 3_549_568),
    ("v1", "tiny"): (543, 14_260_800),
    ("v1.1", "nano"): (311, 4_222_080),
    ("v1.1", "tiny"): (567, 26_778_128),
    ("v1.2", "nano"): (323, 4_224_384),
    ("v1.2", "tiny"): (595, 26_786_192),
}


@pytest.fixture(name="weights", scope="module")
def _weights() -> dict[str, torch.Tensor]:
    return official_model("v1.2", "nano").state_dict()


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_json(release_config("v1.2", "nano"))))
    torch.save(weights, folder / "weights.pth")
    return folder


def test_names_of_all_published_models() -> None:
    assert list_models() == [*RELEASES, "bocage-nano"]
    assert len(RELEASES) == 12
    assert find_release("allenai/OlmoEarth-v1_2-Tiny") is RELEASES["olmoearth-v1.2-tiny"]
    assert find_release("OlmoEarth-v1-Large") is RELEASES["olmoearth-v1-large"]
    assert find_release("olmoearth-v1.3-nano") is None


def test_the_model_of_the_package_loads_offline_and_says_what_it_is(caplog, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = load_model("bocage-nano")
    assert "small demonstration model" in caplog.text
    assert model.weights_id == load_model("Bocage-Nano").weights_id
    assert model.config.inputs == ("sentinel2_l2a",)
    stamps = np.array([[[1, 6, 2020]]])
    with pytest.raises(BocageError, match="sentinel1"):
        model.encode({"sentinel1": np.full((1, 8, 8, 1, 2), -12.0, np.float32)}, stamps)
    folder = bundled_folder("bocage-nano")
    assert folder is not None
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6


@pytest.mark.parametrize(("version", "size"), COUNTS)
def test_official_files_load_whole_and_the_rest_is_accounted_for(
    tmp_path: Path, version: str, size: str
) -> None:
    n_tensors, n_parameters = COUNTS[version, size]
    state = official_model(version, size).state_dict()
    assert (len(state), sum(x.numel() for x in state.values())) == (n_tensors, n_parameters)
    torch.save(state, tmp_path / "weights.pth")
    model = load_model(f"olmoearth-{version}-{size}", weights=tmp_path / "weights.pth")
    report = model.load_report
    assert report.matched == len(model.encoder.state_dict())
    assert report.matched + sum(report.skipped.values()) == n_tensors
    for name, parameter in model.encoder.state_dict().items():
        assert torch.equal(parameter, state[f"encoder.{name}"]), name


def test_a_folder_is_loaded_with_its_config(folder: Path) -> None:
    model = load_model(folder)
    assert (model.name, model.release) == ("my-model", "v1.2")
    assert "tensors matched" in str(model.load_report)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("encoder_only", [False, True])
@pytest.mark.parametrize("form", ["pth", "safetensors", "lightning"])
def test_known_prefixes_and_containers_give_the_same_weights(
    tmp_path: Path,
    weights: dict[str, torch.Tensor],
    prefix: str,
    encoder_only: bool,
    form: str,
) -> None:
    if encoder_only:
        state = {
            prefix + n.removeprefix("encoder."): x.clone()
            for n, x in weights.items()
            if n.startswith("encoder.")
        }
    else:
        state = {prefix + n: x.clone() for n, x in weights.items()}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "lightning" else state, path)
    model = load_model("olmoearth-v1.2-nano", weights=path)
    kept = {f"encoder.{n}": x for n, x in model.encoder.state_dict().items()}
    assert all(torch.equal(x, weights[n]) for n, x in kept.items())
    assert model.weights_id == weights_hash({n: weights[n] for n in kept})


def test_old_names_are_renamed_and_training_heads_left(tmp_path: Path) -> None:
    state = official_model("v1.3", "nano").state_dict()
    old = {n.replace("attention_pooler.", "perceiver."): x for n, x in state.items()}
    old["encoder.composite_encodings.pos_embed"] = torch.zeros(12, 32)
    old["supervision_head.heads.srtm.weight"] = torch.zeros(2)
    old["location_token_distillation_head.weight"] = torch.zeros(2)
    folder = tmp_path / "v1.3"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_to_json(release_config("v1.3", "nano"))))
    torch.save(old, folder / "weights.pth")
    model = load_model(folder)
    assert model.load_report.skipped["supervision_head"] == 1
    assert torch.equal(
        model.encoder.attention_pooler.learned_query,
        state["encoder.attention_pooler.learned_query"],
    )


def test_weights_are_identified_by_their_values(
    folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    before = load_model(folder).weights_id
    changed = dict(weights)
    changed["encoder.norm.bias"] = weights["encoder.norm.bias"] + 1e-6
    torch.save(changed, folder / "weights.pth")
    assert load_model(folder).weights_id != before
    changed = dict(weights)
    changed["decoder.norm.bias"] = weights["decoder.norm.bias"] + 1
    torch.save(changed, folder / "weights.pth")
    assert load_model(folder).weights_id == before  # only what is kept counts


def test_the_file_may_change_while_the_model_is_in_use(folder: Path) -> None:
    model = load_model(folder)
    before = model.weights_id
    path = folder / "weights.pth"
    path.write_bytes(bytes(path.stat().st_size))
    kept = {f"encoder.{n}": x for n, x in model.encoder.state_dict().items()}
    assert weights_hash(kept) == before


def test_a_missing_tensor_is_named(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    state = {n: x for n, x in weights.items() if n != "encoder.norm.bias"}
    torch.save(state, folder / "weights.pth")
    with pytest.raises(ModelError, match=r"no encoder\.norm\.bias"):
        load_model(folder)


@pytest.mark.parametrize("name", ["encoder.blocks.0.attn.gate", "head.weight", "encoder.extra"])
def test_an_unknown_tensor_is_named(
    folder: Path, weights: dict[str, torch.Tensor], name: str
) -> None:
    torch.save({**weights, name: torch.zeros(1)}, folder / "weights.pth")
    with pytest.raises(ModelError, match=name):
        load_model(folder)


@pytest.mark.parametrize("other", [("v1.1", "nano"), ("v1.2", "tiny"), ("v1", "nano")])
def test_weights_of_another_release_or_size_are_refused(
    folder: Path, other: tuple[str, str]
) -> None:
    torch.save(official_model(*other).state_dict(), folder / "weights.pth")
    with pytest.raises(ModelError, match="release"):
        load_model(folder)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "garbage"])
def test_damaged_files_are_one_clear_error(
    tmp_path: Path, weights: dict[str, torch.Tensor], suffix: str, damage: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file({n: x.clone() for n, x in weights.items()}, path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[: len(whole) * 2 // 3],
            "empty": b"",
            "text": b"<html>404 not found</html>",
            "garbage": b"\x80\x02" + whole[2:200],
        }[damage]
    )
    with pytest.raises(ModelError, match="unreadable weights"):
        load_model("olmoearth-v1.2-nano", weights=path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"encoder.norm.bias": torch.zeros(3)}, {}])
def test_a_file_of_something_else_is_one_clear_error(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ModelError):
        load_model("olmoearth-v1.2-nano", weights=tmp_path / "weights.pth")


class _Code:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code from a file of weights was run",)


def test_code_in_a_file_of_weights_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"encoder.norm.bias": _Code()}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="unreadable"):
        load_model("olmoearth-v1.2-nano", weights=tmp_path / "weights.pth")
    assert not capsys.readouterr().out


def test_missing_and_ambiguous_files(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError, match="no weights at"):
        load_model("olmoearth-v1.2-nano", weights=folder / "other.pth")
    save_file({n: x.clone() for n, x in weights.items()}, folder / "weights.safetensors")
    with pytest.raises(ModelError, match="exactly one"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(folder)


@pytest.mark.parametrize("name", ["models/none", "./olmoearth-v1.2-nano", "olmoearth-v1.2-nanno"])
def test_an_unknown_name_is_not_guessed(name: str) -> None:
    with pytest.raises(ModelError, match="neither a known name nor an existing folder"):
        load_model(name, weights=None)


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(ModelError, match=r"did you mean olmoearth-v1\.2-nano"):
        load_model("olmoearth-v1.2-nanno")


@pytest.mark.parametrize("options", [{"precision": "fp8"}, {"device": "cuda:99"}, {"device": "x"}])
def test_options_that_cannot_be_used(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        load_model("olmoearth-v1.2-nano", weights=None, **options)


def test_random_weights_depend_on_the_seed_alone() -> None:
    first, second, other = (
        load_model("olmoearth-v1.2-nano", weights=None, seed=seed) for seed in (3, 3, 4)
    )
    state = torch.random.get_rng_state()
    assert first.weights_id == "random:3"
    same, different = (
        [
            torch.equal(a, b)
            for a, b in zip(first.encoder.parameters(), m.encoder.parameters(), strict=True)
        ]
        for m in (second, other)
    )
    assert all(same)
    assert not all(different)
    load_model("olmoearth-v1.2-nano", weights=None)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("version", ["v1", "v1.1", "v1.2", "v1.3"])
def test_fresh_weights_have_the_official_scale(version: str) -> None:
    config = release_config(version, "nano")
    torch.manual_seed(0)
    ours = PretrainingModel(config).state_dict()
    theirs = Config.from_dict(config_to_json(config)["model"]).build().state_dict()
    for name, x in ours.items():
        if x.numel() >= 1000:
            torch.testing.assert_close(x.std(), theirs[name].std(), rtol=0.1, atol=1e-3, msg=name)
        elif theirs[name].std() < 1e-6:
            torch.testing.assert_close(x, theirs[name], msg=name)  # zeros and ones


def test_a_pretraining_model_is_read_from_an_official_file(folder: Path, weights) -> None:
    model, report = read_pretraining_model(release_config("v1.2", "nano"), folder / "weights.pth")
    assert all(torch.equal(x, weights[n]) for n, x in model.state_dict().items())
    assert report.matched == len(model.state_dict())
    assert not any(p.requires_grad for p in model.target_encoder.parameters())
    assert all(p.requires_grad for n, p in model.encoder.named_parameters() if "month" not in n)


# --- hub -------------------------------------------------------------------------------------


def test_a_hub_that_never_answers_is_noticed_in_time(tmp_path: Path) -> None:
    """In a fresh process, because the client reads its endpoint and cache at import."""
    code = (
        "from bocage import errors, load_model\n"
        "try: load_model('olmoearth-v1.2-nano')\n"
        "except errors.ModelError as error: print(error)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, then says nothing
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - start
    assert "no answer within" in done.stdout
    assert "weights=PATH" in done.stdout
    assert "weights=None" in done.stdout
    # The bound is ten seconds after the imports, which on a busy machine take some more.
    assert seconds < 10 + 5


def test_official_files_come_from_the_cache_with_a_note_on_the_license(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub

    def cached(repo_id: str, filename: str) -> str:
        assert repo_id == "allenai/OlmoEarth-v1_2-Nano"
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    caplog.set_level(logging.INFO)
    model = load_model("olmoearth-v1.2-nano")
    assert model.name == "olmoearth-v1.2-nano"
    assert "OlmoEarth Artifact License" in caplog.text


@pytest.mark.parametrize(
    "name", ["olmoearth-v1-nano", "olmoearth-v1.2-nano", "olmoearth-v1.3-base"]
)
def test_shapes_alone_are_made_without_torchs_compiler(name):
    """Arithmetic of meta tensors would load it: 1.2 s before a file of weights is even opened."""
    probe = f"""
import sys, torch
from bocage.models.encoder import Encoder
from bocage.models.releases import find_release
with torch.device("meta"):
    Encoder(find_release({name!r}).config)
print("torch._dynamo" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "False", ran.stderr
