"""How many windows an encoder takes at once."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from bocage.models.engine import choose_batch
from bocage.models.model import Model
from bocage.models.releases import release_config

from .gate import pair


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
