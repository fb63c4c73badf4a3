"""Benchmarks count work as published, refuse wrong answers, and write what they promise."""

from __future__ import annotations

import csv
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bocage.bench import (
    EncoderBenchmark,
    Shape,
    ThroughputBench,
    describe_machine,
    format_rows,
    multiply_adds,
    run_encoder_benchmark,
    run_scene_benchmark,
    run_throughputbench,
    write_table,
)
from bocage.bench import encoder as encoder_module
from bocage.bench.gate import check_gate
from bocage.bench.inputs import make_inputs
from bocage.bench.peer import official_encoder, official_forward
from bocage.errors import ConfigError
from bocage.models.encoder import Encoder
from bocage.models.releases import find_release, release_config

PUBLISHED_COLUMNS = """
model_name,display_name,model_family,model_type,precision,compiled,compile_mode,gpu_name,
gpu_mem_gb,batch_size,throughput_mean,pixels_per_sec,latency_mean_ms,latency_p50_ms,
latency_p95_ms,latency_p99_ms,params_M,macs_G,peak_memory_mb,tf32_enabled,input_channels,
input_size,pytorch_version,cuda_version,timestamp
"""


@pytest.mark.parametrize(
    ("version", "size", "gflop"),
    [
        ("v1", "nano", 2.42 + 0.05),  # the derived figure leaves the patch embedding out
        ("v1", "tiny", 13.59),
        ("v1", "base", 152.2),
        ("v1", "large", 521.8),
        ("v1.2", "nano", 0.59),
        ("v1.2", "tiny", 3.75),
        ("v1.2", "small", 12.9),
        ("v1.2", "base", 47.5),
    ],
)
def test_work_is_the_derived_figure_with_attention(version: str, size: str, gflop: float) -> None:
    macs = multiply_adds(release_config(version, size), Shape())
    assert 2 * macs / 1e9 == pytest.approx(gflop, rel=0.01)


@pytest.mark.parametrize("version", ["v1", "v1.2", "v1.3"])
def test_work_is_what_torch_counts(version: str) -> None:
    config = release_config(version, "nano")
    shape = Shape(sensors=("sentinel2_l2a", "landsat"), size_px=32, times=2, patch_size=8)
    encoder = Encoder(config).eval()
    values = {
        "sentinel2_l2a": torch.rand(1, 32, 32, 2, 12),
        "landsat": torch.rand(1, 32, 32, 2, 11),
    }
    dates = torch.tensor([[[1, 0, 2020], [1, 1, 2020]]])
    counter = FlopCounterMode(display=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        encoder(values, dates, 8)
    # On a CPU the counter knows no fused attention; by parts it counts the products.
    assert 2 * multiply_adds(config, shape) == pytest.approx(counter.get_total_flops(), rel=0.005)


def test_rows_hold_the_comparison(tmp_path: Path) -> None:
    job = EncoderBenchmark(
        shapes=(Shape(size_px=16, patch_size=4),),
        batch_sizes=(1,),
        seconds=0.0,
        compile=(True, False),
    )
    rows = list(run_encoder_benchmark(job))
    ways = {(row["implementation"], row["precision"], row["compiled"]) for row in rows}
    assert ways == {
        (i, p, c)
        for i, c in (("official", False), ("bocage", True), ("bocage", False))
        for p in ("fp32", "bf16")
    }
    for row in rows:
        assert row["repeats"] >= 5
        assert row["images_per_s_low"] <= row["images_per_s"] <= row["images_per_s_high"]
        assert row["km2_per_s"] == pytest.approx(row["images_per_s"] * 0.16**2)
        assert row["gate"].startswith("passed")
        assert row["speedup"] > 0
    out = tmp_path / "rows.csv"
    assert write_table(out, rows, describe_machine(torch.device("cpu"))) == len(rows)
    with out.open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    machine = json.loads((tmp_path / "rows_hardware.json").read_text())
    assert machine["torch"] == torch.__version__
    assert "olmoearth-v1.2-nano" in format_rows(rows)


@pytest.mark.slow
def test_rows_of_v1_3_read_the_student() -> None:
    job = EncoderBenchmark(
        models=("olmoearth-v1.3-base",),
        shapes=(Shape(size_px=16, times=2, patch_size=4),),
        precisions=("bf16",),
        batch_sizes=(1,),
        compile=(True, False),
        repeats=1,
        seconds=0.0,
    )
    release = find_release("olmoearth-v1.3-base")
    assert release is not None
    official = official_encoder("v1.3", "base", 0)
    inputs = make_inputs(
        job.shapes[0], 1, release.config, scene=None, seed=0, device=torch.device("cpu")
    )
    with torch.inference_mode():
        forward = official_forward(official, inputs.values, inputs.timestamps, 4, "fp32")
        assert forward().shape == (1, 4, 4, 128)
    rows = list(run_encoder_benchmark(job))
    assert [row["implementation"] for row in rows] == ["official", "bocage", "bocage"]
    assert all(row["gate"].startswith("passed") for row in rows)


def test_a_row_that_fails_its_gate_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong:
        description = "wrong"

        def pooled(self, values, timestamps, patch_size):  # type: ignore[no-untyped-def]
            return torch.ones(1, 4, 4, 128)

    monkeypatch.setattr(encoder_module, "fast_encoder", lambda *_, **__: Wrong())
    job = EncoderBenchmark(
        shapes=(Shape(size_px=16, patch_size=4),), batch_sizes=(1,), precisions=("bf16",), seconds=0
    )
    with caplog.at_level(logging.ERROR):
        rows = list(run_encoder_benchmark(job))
    assert {row["implementation"] for row in rows} == {"official"}
    assert "not reported" in caplog.text


def test_the_gate_has_the_stated_bounds() -> None:
    x = torch.randn(50, 128)
    assert check_gate(x, x + 1.9e-5, "fp32").passed
    assert not check_gate(x, x + 2.3e-5, "fp32").passed
    # Noise of relative size e has a cosine of about 1 - e^2 / 2.
    noise = torch.randn(50, 128)
    assert check_gate(x, x + 0.02 * noise, "bf16").passed
    assert not check_gate(x, x + 0.05 * noise, "bf16").passed
    assert check_gate(x, x + 0.04 * noise, "int8").passed
    one_bad = x.clone()
    one_bad[0] = x[0] + 0.1 * noise[0]
    assert not check_gate(x, one_bad, "bf16").passed  # the 1st percentile sees it


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_throughputbench_gives_the_published_columns(compiled: bool) -> None:
    job = ThroughputBench(
        models=("olmoearth-v1.2-nano", "olmoearth-v1-nano"),
        compile=(compiled,),
        precisions=("bf16",),
        batch_size=2,
        shape=Shape(size_px=32),
        warmup=1,
        timed_s=0.1,
        device="cpu",
    )
    rows = list(run_throughputbench(job))
    assert [row["implementation"] for row in rows] == ["official", "bocage"] * 2
    for row in rows:
        assert ",".join(row).startswith(PUBLISHED_COLUMNS.replace("\n", ""))
        assert row["latency_p50_ms"] <= row["latency_p95_ms"] <= row["latency_p99_ms"]
        assert row["throughput_mean"] > 0
        assert row["input_channels"] == 12
        assert row["compile_mode"] == ("default" if compiled else "none")


def test_unknown_models_and_missing_devices_are_named() -> None:
    with pytest.raises(ConfigError, match="olmoearth-v9-nano"):
        list(run_encoder_benchmark(EncoderBenchmark(models=("olmoearth-v9-nano",))))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="cuda"):
            list(run_throughputbench(ThroughputBench()))
    with pytest.raises(ConfigError, match="batch sizes"):
        EncoderBenchmark(batch_sizes=(0,))
    assert find_release("olmoearth-v1.2-nano") is not None


def test_scene_benchmark_times_every_stage() -> None:
    folder = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    tile = folder / "s2_india_2024_2025" / "delhi" / "2024" / "tile_000.tif"
    if not tile.exists():
        pytest.skip(f"no real tile {tile} (set BOCAGE_DATA)")
    lines: list[str] = []
    row = run_scene_benchmark(
        tile,
        "olmoearth-v1.2-nano",
        patch_size=8,
        date="2024-07-01",
        repeats=2,
        report=lines.append,
    )
    assert row["n_windows"] > 0
    assert len(lines) == 2  # the warm-up does not count
    assert min(row["read_s"], row["encode_s"], row["write_s"]) > 0
    assert row["wall_s"] * (row["streams"] + 2) >= row["encode_s"]
    assert 0 < row["encoder_share_min"] <= row["encoder_share"] <= row["encoder_share_max"]
    assert row["one_by_one_s"] > 0
    assert row["km2_per_s"] == pytest.approx(2.57**2 / row["wall_s"], rel=0.01)


def test_a_scene_benchmark_without_a_repeat_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="repeats=0"):
        run_scene_benchmark(tmp_path, "olmoearth-v1.2-nano", repeats=0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size_px": 0}, "size 0 px"),
        ({"times": 0}, "0 dates"),
        ({"patch_size": 0}, "patch size 0"),
        ({"size_px": 30}, "whole patches"),
        ({"sensors": ("sentinel3",)}, "sentinel3"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Shape(**options)
