"""config.json in all its spellings gives the network of the release, and goes both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.config import Config

from bocage.errors import ModelError
from bocage.models.config_json import config_to_json, parse_config, read_config
from bocage.models.releases import RELEASES, release_config


@pytest.mark.parametrize("name", RELEASES)
def test_a_config_survives_json(name: str) -> None:
    config = RELEASES[name].config
    assert parse_config(json.loads(json.dumps(config_to_json(config)))) == config


@pytest.mark.parametrize("name", [n for n in RELEASES if n.endswith(("nano", "tiny"))])
def test_the_official_package_builds_the_same_tensors_from_our_json(name: str) -> None:
    import torch

    from bocage.models.predictor import PretrainingModel

    config = RELEASES[name].config
    official = Config.from_dict(config_to_json(config)["model"]).build().state_dict()
    with torch.device("meta"):
        ours = PretrainingModel(config).state_dict()
    assert {n: x.shape for n, x in ours.items()}.items() <= {
        n: x.shape for n, x in official.items()
    }.items()
    assert all(n in ours or n.startswith("target_encoder.") for n in official)


def raw(version: str = "v1.2") -> dict:
    return json.loads(json.dumps(config_to_json(release_config(version, "nano"))))


def test_the_old_name_of_the_position_encoding_is_read() -> None:
    old = raw()
    for part in ("encoder_config", "decoder_config"):
        old["model"][part]["spatial_pos_encoding"] = old["model"][part].pop("position_encoding")
    assert parse_config(old) == release_config("v1.2", "nano")


def test_old_files_without_new_keys_are_v1() -> None:
    old = raw("v1")
    keep = {"supported_modality_names", "embedding_size", "num_heads", "depth", "max_patch_size"}
    encoder = old["model"]["encoder_config"]
    old["model"]["encoder_config"] = {k: v for k, v in encoder.items() if k in keep}
    old["model"]["encoder_config"]["_CLASS_"] = "helios.nn.flexihelios.EncoderConfig"
    old["model"]["encoder_config"]["something_new"] = 1
    config = parse_config(old)
    assert (config.release, config.band_sets) == ("v1", release_config("v1", "nano").band_sets)


@pytest.mark.parametrize(
    "renamed",
    [
        {"perceiver_config": {"register_dim": 128, "latent_depth": 1}},
        {"use_register_bottleneck": True, "register_dim": 128, "register_depth": 1},
    ],
)
def test_development_names_of_the_pooler_are_read(renamed: dict) -> None:
    old = raw("v1.3")
    encoder = old["model"]["encoder_config"]
    pooler = encoder.pop("attention_pooler_config")
    extra = {k: pooler[k] for k in ("attn_dim", "student_dims", "student_output_norm")}
    if "perceiver_config" in renamed:
        encoder["perceiver_config"] = {**renamed["perceiver_config"], **extra}
    else:
        encoder |= renamed | {f"register_{k}": v for k, v in extra.items()}
    config = parse_config(old)
    assert config.pooler is not None
    assert (config.pooler.width, config.pooler.depth, config.pooler.heads) == (128, 1, 8)
    assert config.pooler.student_dims == (128, 64)


def test_modalities_that_were_only_decoded_are_no_inputs() -> None:
    old = raw()
    strategy = old.pop("train_module")["masking_config"]["strategy_config"]
    strategy["only_decode_modalities"].append("landsat")
    old["data_loader"] = {"masking_config": {"strategy_config": strategy}}
    assert parse_config(old).inputs == ("sentinel2_l2a", "sentinel1")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_register_tokens", 4),
        ("qk_norm", True),
        ("post_proj_hidden_sizes", [64]),
        ("position_encoding", "spherical"),
        ("supported_modality_names", ["naip"]),
        ("embedding_size", 130),
        ("embedding_size", "wide"),
    ],
)
def test_a_network_that_is_not_implemented_is_refused(key: str, value: object) -> None:
    changed = raw()
    changed["model"]["encoder_config"][key] = value
    with pytest.raises(ModelError):
        parse_config(changed)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 3}', '{"model": null}'])
def test_a_file_that_is_no_config_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(path)
