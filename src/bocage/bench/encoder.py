"""Encoder benchmark: ours and the official package, interleaved in one process, gate first.

A row is one way of running one model on one shape and batch. All ways of the same model, shape
and batch are timed in turn, so that a busy machine slows all of them alike; a way that fails the
gate is logged and not reported.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bocage.bench.gate import Gate, check_gate
from bocage.bench.inputs import Inputs, make_inputs
from bocage.bench.machine import PeakMemory, matmul_peak, synchronize
from bocage.bench.peer import official_encoder, official_forward, with_weights_of
from bocage.bench.work import Shape, multiply_adds
from bocage.errors import ConfigError
from bocage.models.config import ModelConfig
from bocage.models.encoder import Encoder
from bocage.models.engine import FastEncoder, fast_encoder
from bocage.models.load import random_encoder
from bocage.models.releases import Release, find_release
from bocage.types import PathLike

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EncoderBenchmark:
    """What to run."""

    models: tuple[str, ...] = ("olmoearth-v1.2-nano",)
    shapes: tuple[Shape, ...] = (Shape(),)
    precisions: tuple[str, ...] = ("fp32", "bf16")
    compile: tuple[bool, ...] = (True,)
    """False is the plain encoder."""

    batch_sizes: tuple[int, ...] = (1, 8)
    peer: bool = True
    """Time the official package too, and take it as the reference of the gate."""

    repeats: int = 5
    """At least so many timed forwards of each way."""

    seconds: float = 1.0
    """And at least so much time for all ways of a model, shape and batch together."""

    gsd_m: float = 10.0
    device: str = "cpu"
    scene: PathLike | None = None
    """A raster or folder of Sentinel-2 for the gate and the timing; None takes smooth noise."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 1 or not self.models or not self.shapes or min(self.batch_sizes) < 1:
            raise ConfigError(
                got=f"repeats={self.repeats}, {len(self.models)} models, batch sizes "
                f"{self.batch_sizes}",
                expected="at least one of each",
                fix="pass models, shapes and batch sizes",
            )


@dataclass(kw_only=True)
class Way:
    """One way of running: a function to time and what is known of it."""

    implementation: str
    precision: str
    compiled: bool
    forward: Callable[[], Tensor]
    build_s: float
    first_call_s: float = 0.0
    description: str = ""
    gate: Gate | None = None
    seconds: list[float] = field(default_factory=list)
    peak_memory_mb: float = float("nan")


def run_encoder_benchmark(job: EncoderBenchmark) -> Iterator[Row]:
    """Rows as they are measured; see ``table.COLUMNS`` for what they hold."""
    device = torch.device(job.device)
    peaks = {p: matmul_peak(DTYPES[p], device) for p in job.precisions if p in DTYPES}
    for name in job.models:
        release = find_release(name)
        if release is None:
            raise ConfigError(
                got=f"model {name!r}",
                expected="a name from bocage models",
                fix="run bocage models for the list",
            )
        official = official_encoder(release.version, release.size, job.seed) if job.peer else None
        plain = (
            (
                random_encoder(release.config, job.seed)
                if official is None
                else with_weights_of(official, release.config)
            )
            .to(device)
            .eval()
        )
        if official is not None:
            official = official.to(device)
        for shape in job.shapes:
            for batch in job.batch_sizes:
                inputs = make_inputs(
                    shape, batch, release.config, scene=job.scene, seed=job.seed, device=device
                )
                for precision in job.precisions:
                    ways = list(
                        _ways(
                            job,
                            plain=plain,
                            official=official,
                            inputs=inputs,
                            shape=shape,
                            precision=precision,
                        )
                    )
                    reference = _reference(plain, official, inputs, shape)
                    passed = [way for way in ways if _passes(way, reference, release.name)]
                    _time(passed, job, device)
                    yield from _rows(
                        passed,
                        job,
                        release=release,
                        shape=shape,
                        batch=batch,
                        peak=peaks[precision],
                    )


def _ways(
    job: EncoderBenchmark,
    *,
    plain: Encoder,
    official: Any,
    inputs: Inputs,
    shape: Shape,
    precision: str,
) -> Iterator[Way]:
    values, stamps, patch_size = inputs.values, inputs.timestamps, shape.patch_size
    if official is not None and precision in ("fp32", "bf16"):
        forward = official_forward(official, values, stamps, patch_size, precision)
        yield Way(
            implementation="official",
            precision=precision,
            compiled=False,
            forward=forward,
            build_s=0.0,
            description="olmoearth-pretrain-minimal, fast_pass",
        )
    for compiled in job.compile:
        started = time.perf_counter()
        engine = fast_encoder(plain, precision=precision, compile=compiled)
        built = time.perf_counter() - started
        forward = plain_forward(plain, inputs, patch_size, precision)
        description = "plain encoder"
        if engine is not None:
            description = engine.description
            forward = engine_forward(engine, inputs, patch_size, plain.config)
        yield Way(
            implementation="bocage",
            precision=precision,
            compiled=compiled,
            forward=forward,
            build_s=built,
            description=description,
        )


def plain_forward(
    plain: Encoder, inputs: Inputs, patch_size: int, precision: str
) -> Callable[[], Tensor]:
    """The plain encoder and its map: the student of v1.3, otherwise the mean."""

    def forward() -> Tensor:
        device = inputs.timestamps.device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            output = plain(inputs.values, inputs.timestamps, patch_size)
            if output.locations is not None and output.locations.student is not None:
                student: Tensor = output.locations.student
                return student.float()
            means = [x.float().mean(dim=(3, 4)) for x in output.tokens.values()]
            return torch.stack(means).mean(dim=0)

    return forward


def engine_forward(
    engine: FastEncoder, inputs: Inputs, patch_size: int, config: ModelConfig
) -> Callable[[], Tensor]:
    """The engine and the same map."""

    def forward() -> Tensor:
        if config.pooler is None or not config.pooler.student_dims:
            return engine.pooled(inputs.values, inputs.timestamps, patch_size)
        locations = engine(inputs.values, inputs.timestamps, patch_size).locations
        assert locations is not None
        assert locations.student is not None
        return locations.student

    return forward


def _reference(plain: Encoder, official: Any, inputs: Inputs, shape: Shape) -> Tensor:
    """Official fp32, or our plain encoder, which the tests hold equal to it."""
    with torch.inference_mode():
        if official is None:
            return plain_forward(plain, inputs, shape.patch_size, "fp32")()
        return official_forward(
            official, inputs.values, inputs.timestamps, shape.patch_size, "fp32"
        )()


def _passes(way: Way, reference: Tensor, model: str) -> bool:
    """Run once, note how long the first call took, and compare."""
    with torch.inference_mode():
        started = time.perf_counter()
        result = way.forward()
        synchronize(result.device)
        way.first_call_s = time.perf_counter() - started
    way.gate = check_gate(reference, result, way.precision)
    if way.implementation == "bocage" and not way.gate.passed:
        logger.error(
            "%s %s %s is not reported: %s", model, way.precision, way.description, way.gate
        )
        return False
    return True


def _time(ways: list[Way], job: EncoderBenchmark, device: torch.device) -> None:
    with torch.inference_mode():
        for way in ways:
            way.forward()
            with PeakMemory(device) as peak:
                way.forward()
                synchronize(device)
            way.peak_memory_mb = peak.mb
        started = time.perf_counter()
        while (
            any(len(way.seconds) < job.repeats for way in ways)
            or time.perf_counter() - started < job.seconds
        ):
            for way in ways:
                before = time.perf_counter()
                way.forward()
                synchronize(device)
                way.seconds.append(time.perf_counter() - before)


def _rows(
    ways: list[Way],
    job: EncoderBenchmark,
    *,
    release: Release,
    shape: Shape,
    batch: int,
    peak: float,
) -> Iterator[Row]:
    macs = multiply_adds(release.config, shape)
    theirs = [median(way.seconds) for way in ways if way.implementation == "official"]
    fastest = [min(way.seconds) for way in ways if way.implementation == "official"]
    for way in ways:
        assert way.gate is not None
        middle, low, high = median(way.seconds), min(way.seconds), max(way.seconds)
        yield {
            "model": release.name,
            "release": release.version,
            "size": release.size,
            "implementation": way.implementation,
            "description": way.description,
            "precision": way.precision,
            "compiled": way.compiled,
            "sensors": "+".join(shape.sensors),
            "input_size": shape.size_px,
            "timesteps": shape.times,
            "patch_size": shape.patch_size,
            "tokens": shape.n_tokens(release.config),
            "batch_size": batch,
            "repeats": len(way.seconds),
            "seconds": way.seconds,
            "images_per_s": batch / middle,
            "images_per_s_low": batch / high,
            "images_per_s_high": batch / low,
            "km2_per_s": batch * shape.area_km2(job.gsd_m) / middle,
            "latency_ms": middle * 1000,
            "speedup": theirs[0] / middle if theirs else float("nan"),
            "speedup_best": fastest[0] / low if fastest else float("nan"),
            "macs_G": macs / 1e9,
            "flops_G": 2 * macs / 1e9,
            "tflops": 2 * macs * batch / middle / 1e12,
            "matmul_peak_tflops": peak / 1e12,
            "share_of_peak": 2 * macs * batch / middle / peak,
            "peak_memory_mb": way.peak_memory_mb,
            "build_s": way.build_s,
            "first_call_s": way.first_call_s,
            "gate": str(way.gate),
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        }
