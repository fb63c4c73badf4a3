"""Which encoder and which precision a machine gets, and what is said about it."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from bocage.errors import BocageWarning, ConfigError
from bocage.models.engine import build, choose_batch, fast_encoder
from bocage.models.model import Model
from bocage.models.releases import release_config

from .gate import pair


def test_int8_says_where_it_cannot_run() -> None:
    with pytest.raises(ConfigError, match="width 128, which gains nothing"):
        fast_encoder(pair("v1.2", "nano")[0], precision="int8")
    with pytest.raises(ConfigError, match="compile=False"):
        fast_encoder(pair("v1.2", "small")[0], precision="int8", compile=False)


def test_without_a_compiler_the_plain_encoder_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, _ = pair("v1.2", "nano")
    monkeypatch.setattr(build.cpu, "why_unsuited", lambda *_: "no kernels")
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    build._warn_plain.cache_clear()
    with pytest.warns(BocageWarning, match="no C\\+\\+ compiler.*plain encoder"):
        assert fast_encoder(plain, precision="fp32") is None
    assert fast_encoder(plain, precision="fp32") is None  # once
    with pytest.raises(ConfigError, match="compile=True"):
        fast_encoder(plain, precision="fp32", compile=True)
    assert fast_encoder(plain, precision="fp32", compile=False) is None


def test_auto_says_what_it_picked_and_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nano, base = pair("v1.2", "nano")[0], pair("v1.2", "base")[0]
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    monkeypatch.setattr(build.cpu, "why_unsuited", lambda *_: None)
    assert build.choose_precision("auto", nano)[0] == "bf16"
    assert "width 128" in build.choose_precision("auto", nano)[1]
    assert build.choose_precision("auto", base)[0] == "int8"
    assert "cosine" in build.choose_precision("auto", base)[1]
    assert build.choose_precision("auto", base, False)[0] == "bf16"
    assert build.choose_precision("fp32", base) == ("fp32", "as asked")
    monkeypatch.setattr(build.cpu, "why_unsuited", lambda *_: "there is no compiler")
    assert build.choose_precision("auto", base)[0] == "bf16"
    monkeypatch.setattr(build, "cpu_flags", frozenset)
    assert build.choose_precision("auto", base)[0] == "fp32"
    with pytest.raises(ConfigError, match="precision='half'"):
        build.choose_precision("half", nano)
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        found = fast_encoder(pair("v1.2", "nano")[0])
    if found is not None:
        assert found.description in caplog.text
    encoder = pair("v1.2", "nano")[0]
    with caplog.at_level(logging.INFO):
        model = Model(encoder, name="m", weights_id="random:0", precision="auto")
    assert f"m runs in {model.precision}: " in caplog.text
    assert model.description.startswith(model.precision)
    assert model._precision_reason in model.description
    plain = Model(encoder, name="m", weights_id="random:0", precision="fp32", compile=False)
    assert plain.description == "fp32, plain encoder on cpu (as asked)"


def test_auto_picks_the_batch_that_fills_the_caches_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nano, base = release_config("v1.2", "nano"), release_config("v1.2", "base")
    cpu = torch.device("cpu")
    assert choose_batch(nano, 400, cpu, "bf16")[0] == 1024 * 768 // (400 * 128)
    assert choose_batch(base, 400, cpu, "bf16")[0] == 2
    assert choose_batch(base, 100_000, cpu, "bf16")[0] == 1
    assert choose_batch(nano, 1, cpu, "bf16")[0] == 64
    memory = SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    halves, why = choose_batch(base, 3072, torch.device("cuda"), "bf16")
    assert halves * 3072 * 768 * 12 * 2 <= 2 * 2**30 < (halves + 1) * 3072 * 768 * 12 * 2
    assert "16 GiB" in why
    assert choose_batch(base, 3072, torch.device("cuda"), "fp32")[0] == halves // 2
    model = Model(pair("v1.2", "nano")[0], name="m", weights_id="random:0", precision="fp32")
    with caplog.at_level(logging.INFO):
        assert model.windows_per_batch(400) == 15
    assert "m takes 15 windows at once: 15 x 400 tokens of width 128 fill the caches" in caplog.text
