"""The form that torch compiles passes the gate of the kernels, and is compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bocage.models.engine import FastEncoder
from bocage.models.engine.compiled import CompiledBackend

from ..official import ALL_SENSORS, random_dates, random_values
from .gate import check_gate, logs_of_two_processes, pair


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("version", ["v1", "v1.2"])
def test_the_portable_form_passes_the_gate(version: str, precision: str) -> None:
    plain, _ = pair(version, "nano")
    fast = FastEncoder(plain, CompiledBackend(plain, precision, compile=False), "portable")
    values, dates = random_values(ALL_SENSORS, (2, 10, 10, 2)), random_dates(2, 2)
    generator = torch.Generator().manual_seed(0)
    visible = {
        name: torch.rand(2, 2, 2, 2, len(sets), generator=generator) > 0.3
        for name, sets in plain.config.band_sets.items()
        if name in ALL_SENSORS
    }
    for shown in (None, visible):
        with torch.no_grad():
            expected = plain(values, dates, 5, visible=shown)
        ours = fast(values, dates, 5, visible=shown)
        for name, seen in expected.visible.items():
            check_gate(expected.tokens[name][seen], ours.tokens[name][seen], precision)
    with torch.no_grad():
        tokens = plain(values, dates, 5).tokens
    mean = torch.stack([x.mean(dim=(3, 4)) for x in tokens.values()]).mean(dim=0)
    check_gate(mean, fast.pooled(values, dates, 5), precision)


@pytest.mark.slow
def test_the_compiled_form_passes_the_gate() -> None:
    plain, _ = pair("v1.2", "nano")
    fast = FastEncoder(plain, CompiledBackend(plain, "fp32", compile=True), "compiled")
    values, dates = random_values(("sentinel2_l2a",), (2, 16, 16, 2)), random_dates(2, 2)
    with torch.no_grad():
        expected = plain(values, dates, 4).tokens["sentinel2_l2a"]
    check_gate(expected, fast(values, dates, 4).tokens["sentinel2_l2a"], "fp32")


@pytest.mark.slow
def test_a_second_process_reads_the_graphs_that_the_first_compiled(tmp_path: Path) -> None:
    code = """
import logging, sys, torch
from dataclasses import replace
from bocage.models.encoder import Encoder
from bocage.models.engine import FastEncoder
from bocage.models.engine.compiled import CompiledBackend
from bocage.models.releases import release_config
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
torch.manual_seed(0)
plain = Encoder(replace(release_config("v1.2", "nano"), depth=1)).eval()
fast = FastEncoder(plain, CompiledBackend(plain, "fp32", compile=True), "compiled")
dates = torch.tensor([[[1, 5, 2022]]])
for _ in range(3):
    fast.pooled({"sentinel2_l2a": torch.rand(1, 16, 16, 1, 12)}, dates, 8)
"""
    said = logs_of_two_processes(code, tmp_path)
    # Patches and blocks are a graph each; three windows of one shape share them.
    assert said[0].count("0 of 1 graphs from the cache") == 2, said[0]
    assert said[1].count("1 of 1 graphs from the cache") == 2, said[1]
    assert all(text.count("compiled in") == 2 for text in said)
    assert (tmp_path / "torch" / "fxgraph").is_dir()
