"""The published protocol of ThroughputBench (github.com/calebrob6/throughput-bench), its columns.

Random weights; one random batch on the device; 20 warm-ups; then at least 30 s of forwards, each
waited for; images per second is the number of images over the whole time. Encoder and mean pool,
12 x 128 x 128 inputs at patch size 8 by default. fp32 allows TF32 on a GPU, as there; bf16 casts
the official weights and inputs, as there.

One column differs from the published tables on purpose: ``macs_G`` counts multiply-adds (theirs are
operations) and attention (theirs leaves it out). The share of the matmul peak, the area rate and
the gate stand behind the published columns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from statistics import fmean, quantiles
from typing import Any

import torch
from torch import Tensor

from bocage.bench.gate import check_gate
from bocage.bench.inputs import make_inputs
from bocage.bench.machine import PeakMemory, matmul_peak, memory_bytes, processor_name, synchronize
from bocage.bench.peer import official_encoder, official_forward, official_sample, with_weights_of
from bocage.bench.work import Shape, multiply_adds
from bocage.errors import ConfigError
from bocage.models.engine import fast_encoder
from bocage.models.releases import Release, find_release

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class ThroughputBench:
    """What to run; the defaults are the published protocol."""

    models: tuple[str, ...] = (
        "olmoearth-v1-nano",
        "olmoearth-v1-tiny",
        "olmoearth-v1-base",
        "olmoearth-v1-large",
        "olmoearth-v1.2-nano",
        "olmoearth-v1.2-tiny",
        "olmoearth-v1.2-small",
        "olmoearth-v1.2-base",
    )
    precisions: tuple[str, ...] = ("fp32", "bf16")
    compile: tuple[bool, ...] = (False, True)
    batch_size: int = 512
    """Halved while the device runs out of memory."""

    shape: Shape = field(default_factory=Shape)
    warmup: int = 20
    timed_s: float = 30.0
    device: str = "cuda"
    gsd_m: float = 10.0
    seed: int = 0


def run_throughputbench(job: ThroughputBench) -> Iterator[dict[str, Any]]:
    """Rows of the official package and of ours, compiled and not, on the same device."""
    device = torch.device(job.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            got="device cuda, which torch does not see",
            expected="a CUDA device",
            fix='pass device="cpu", with a smaller batch_size',
        )
    torch.set_float32_matmul_precision("high")
    peaks = {p: matmul_peak(DTYPES[p], device) for p in job.precisions}
    for name in job.models:
        release = find_release(name)
        if release is None:
            raise ConfigError(
                got=f"model {name!r}",
                expected="a published model",
                fix="run bocage models for the list",
            )
        for precision in job.precisions:
            for implementation, compiled in product(("official", "bocage"), job.compile):
                row = _largest_batch(job, release, precision, implementation, compiled=compiled)
                if row is not None:
                    row["share_of_peak"] = row["tflops"] * 1e12 / peaks[precision]
                    yield row
                torch._dynamo.reset()


def _largest_batch(
    job: ThroughputBench, release: Release, precision: str, implementation: str, *, compiled: bool
) -> dict[str, Any] | None:
    batch = job.batch_size
    while batch >= 1:
        try:
            return _row(job, release, precision, implementation, compiled=compiled, batch=batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            batch //= 2
    return None


def _row(
    job: ThroughputBench,
    release: Release,
    precision: str,
    implementation: str,
    *,
    compiled: bool,
    batch: int,
) -> dict[str, Any] | None:
    device, config, shape = torch.device(job.device), release.config, job.shape
    official = official_encoder(release.version, release.size, job.seed).to(device)
    plain = with_weights_of(official, config).to(device)
    inputs = make_inputs(shape, batch, config, scene=None, seed=job.seed, device=device)
    few = {name: x[:4] for name, x in inputs.values.items()}
    torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        expected = official_forward(
            official, few, inputs.timestamps[:4], shape.patch_size, "fp32", mean=True
        )()
    torch.set_float32_matmul_precision("high")
    forward: Callable[[], Tensor]
    if implementation == "official":
        forward = _official(
            official,
            inputs.values,
            inputs.timestamps,
            patch_size=shape.patch_size,
            precision=precision,
            compiled=compiled,
        )
    else:
        engine = fast_encoder(plain, precision=precision, compile=compiled)
        if engine is None:
            plain = plain.to(DTYPES[precision]) if precision == "bf16" else plain
            cast = {name: x.to(DTYPES[precision]) for name, x in inputs.values.items()}

            def forward() -> Tensor:
                tokens = plain(cast, inputs.timestamps, shape.patch_size).tokens
                return torch.stack([x.mean(dim=(3, 4)) for x in tokens.values()]).mean(dim=0)

        else:

            def forward() -> Tensor:
                return engine.pooled(inputs.values, inputs.timestamps, shape.patch_size)

    tf32 = device.type == "cuda" and precision == "fp32"
    with torch.inference_mode():
        started = time.perf_counter()
        result = forward()
        synchronize(device)
        first_call = time.perf_counter() - started
        gate = check_gate(expected, result[:4], "tf32" if tf32 else precision)
        if implementation == "bocage" and not gate.passed:
            logger.error("%s %s is not reported: %s", release.name, precision, gate)
            return None
        for _ in range(job.warmup):
            forward()
        synchronize(device)
        latencies: list[float] = []
        with PeakMemory(device) as peak:
            begun = time.perf_counter()
            while time.perf_counter() - begun < job.timed_s or len(latencies) < 3:
                before = time.perf_counter()
                forward()
                synchronize(device)
                latencies.append(time.perf_counter() - before)
            total = time.perf_counter() - begun
    rate = batch * len(latencies) / total
    cuts = quantiles(latencies, n=100, method="inclusive")
    macs = multiply_adds(config, shape)
    is_gpu = device.type == "cuda"
    n_bands = sum(x.shape[-1] for x in inputs.values.values())
    return {
        "model_name": f"{release.name}/{implementation}",
        "display_name": f"{release.name}/{shape.patch_size}",
        "model_family": "OlmoEarth",
        "model_type": "geo",
        "precision": precision,
        "compiled": compiled,
        "compile_mode": "default" if compiled else "none",
        "gpu_name": torch.cuda.get_device_name(device) if is_gpu else processor_name(),
        "gpu_mem_gb": (
            torch.cuda.get_device_properties(device).total_memory if is_gpu else memory_bytes()
        )
        / 2**30,
        "batch_size": batch,
        "throughput_mean": rate,
        "pixels_per_sec": rate * n_bands * shape.size_px**2 * shape.times,
        "latency_mean_ms": 1000 * fmean(latencies),
        "latency_p50_ms": 1000 * cuts[49],
        "latency_p95_ms": 1000 * cuts[94],
        "latency_p99_ms": 1000 * cuts[98],
        "params_M": sum(p.numel() for p in plain.parameters()) / 1e6,
        "macs_G": macs / 1e9,
        "peak_memory_mb": peak.mb,
        "tf32_enabled": tf32,
        "input_channels": n_bands,
        "input_size": shape.size_px,
        "pytorch_version": torch.__version__,
        "cuda_version": torch.version.cuda or "",
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "implementation": implementation,
        "flops_G": 2 * macs / 1e9,
        "tflops": 2 * macs * rate / 1e12,
        "km2_per_s": rate * shape.area_km2(job.gsd_m),
        "first_call_s": first_call,
        "gate": str(gate),
    }


def _official(
    official: Any,
    values: dict[str, Tensor],
    timestamps: Tensor,
    *,
    patch_size: int,
    precision: str,
    compiled: bool,
) -> Callable[[], Tensor]:
    """The official encoder as that benchmark calls it: sample and masks are made in each call."""
    encoder = official.to(DTYPES[precision])
    cast = {name: x.to(DTYPES[precision]) for name, x in values.items()}

    def forward() -> Tensor:
        sample = official_sample(cast, timestamps)
        tokens = encoder(sample, patch_size=patch_size, fast_pass=True)
        means = [getattr(tokens["tokens_and_masks"], name).mean(dim=(3, 4)) for name in values]
        return torch.stack(means).mean(dim=0)

    return torch.compile(forward) if compiled else forward
