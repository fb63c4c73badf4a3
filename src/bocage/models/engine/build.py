"""Choose precision, batch and engine for this machine, and say which and why."""

from __future__ import annotations

import logging
import shutil
import warnings
from functools import lru_cache

import torch

from bocage.errors import BocageWarning, ConfigError
from bocage.models.config import ModelConfig
from bocage.models.encoder import Encoder
from bocage.models.engine import cpu, locations
from bocage.models.engine.compiled import CompiledBackend
from bocage.models.engine.cpu import CpuBackend
from bocage.models.engine.fast import NUMBERS_AT_ONCE, FastEncoder
from bocage.models.native import cpu_flags

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "int8")
INT8_MIN_WIDTH = 768
"""Narrower networks gain too little over bf16: small 1.02 to 1.13 times, tiny 0.92. Base gains
1.2 to 1.3 times in every shape tried (2 cores with AMX, 2026-11-21)."""

MAX_WINDOWS = 64
"""On a CPU: more only delays the first result."""

MAX_GPU_WINDOWS = 512
"""The batch of the published benchmark."""

LIVE_NUMBERS = 12
"""Numbers per token and width that are alive together: tokens, q, k, v and the wide layer."""


def choose_precision(
    precision: str,
    encoder: Encoder,
    compile: bool | str = "auto",  # noqa: A002
) -> tuple[str, str]:
    """The precision that "auto" means for an encoder where it is, with the reason in words.

    "auto" is the fastest that passes the gate of its precision. It is a rule and not a measurement,
    so that one machine always gives one answer and a map can be resumed.
    """
    device = encoder.norm.weight.device
    if precision not in PRECISIONS:
        raise ConfigError(
            got=f"precision={precision!r}",
            expected=f"one of {', '.join(PRECISIONS)}",
            fix='pass precision="auto" or "fp32"',
        )
    if precision != "auto":
        return precision, "as asked"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "the GPU multiplies bfloat16 natively"
    if device.type == "cpu" and "amx_bf16" in cpu_flags():
        refusal = _int8_refusal(encoder, compile)
        if refusal is None:
            return "int8", (
                f"the fastest from width {INT8_MIN_WIDTH} on a processor with AMX, 1.2 to 1.3 "
                "times bf16; mean cosine to fp32 0.9998, that of bf16 is 0.99997"
            )
        return "bf16", f"the processor has AMX; no int8 for {refusal}"
    return "fp32", "this device has no fast bfloat16"


def choose_batch(
    config: ModelConfig, n_tokens: int, device: torch.device, precision: str
) -> tuple[int, str]:
    """Windows of ``n_tokens`` tokens for one call, with the reason in words.

    A rule and not a measurement, so that one machine always gives one answer and a map can be
    resumed: on a CPU as many as fill the caches (that is where speed stops growing), on a GPU as
    many as use an eighth of its memory.
    """
    numbers = n_tokens * config.width
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        item = 4 if precision == "fp32" else 2
        n = max(1, min(MAX_GPU_WINDOWS, memory // 8 // (numbers * LIVE_NUMBERS * item)))
        return n, f"an eighth of the {memory / 2**30:.0f} GiB of the GPU"
    n = max(1, min(MAX_WINDOWS, NUMBERS_AT_ONCE // numbers))
    return n, f"{n} x {n_tokens} tokens of width {config.width} fill the caches, more gain nothing"


def fast_encoder(
    encoder: Encoder,
    *,
    precision: str = "auto",
    compile: bool | str = "auto",  # noqa: A002
) -> FastEncoder | None:
    """The encoder in its fastest form for the device it is on; None means the plain one.

    ``precision`` is fp32, bf16, int8 or auto. ``compile``: "auto" uses a compiler where there is
    one and warns once where there is none; True insists; False compiles nothing. The weights are
    copied: a later change of ``encoder`` does not reach the result.
    """
    check_compile(compile)
    device = encoder.norm.weight.device
    precision, reason = choose_precision(precision, encoder, compile)
    refusal = _int8_refusal(encoder, compile) if precision == "int8" else None
    if refusal is not None:
        raise ConfigError(
            got=f'precision="int8" with {refusal}',
            expected="a CPU with AMX, a compiler, and a model of size base or larger",
            fix='pass precision="auto"',
        )
    if compile is False:
        return None
    why_not = None if device.type != "cpu" else cpu.why_unsuited(encoder.config, precision)
    if device.type == "cpu" and why_not is None:
        description = f"{precision} with AMX kernels ({reason})"
        backend = CpuBackend(encoder, precision)
        if encoder.attention_pooler is not None and backend.pooler is None:
            why = locations.why_unsuited(encoder.config)
            description += f"; the pooler as plain modules, because {why}"
        engine = FastEncoder(encoder, backend, description)
    elif why_no_compiler(device) is None:
        description = f"{precision} with torch.compile on {device.type} ({reason})"
        if why_not is not None:
            description += f"; no AMX kernels, because {why_not}"
        engine = FastEncoder(
            encoder, CompiledBackend(encoder, precision, compile=True), description
        )
    else:
        if compile is True:
            raise ConfigError(
                got="compile=True",
                expected=f"a compiler, but {why_no_compiler(device)}",
                fix='install g++, or pass compile="auto" to run without',
            )
        _warn_plain(why_no_compiler(device) or "")
        return None
    logger.info("engine: %s", description)
    return engine


def _int8_refusal(encoder: Encoder, compile: bool | str) -> str | None:  # noqa: A002
    """Why int8 cannot run, or is known to gain nothing; None if it is worth it."""
    device = encoder.norm.weight.device
    if device.type != "cpu":
        return f"a {device.type} device"
    if compile is False:
        return "compile=False"
    if encoder.config.width < INT8_MIN_WIDTH:
        return f"a network of width {encoder.config.width}, which gains nothing"
    return cpu.why_unsuited(encoder.config, "int8")


def check_compile(compile: bool | str) -> None:  # noqa: A002
    """Raise ConfigError unless it is "auto", True or False."""
    if compile not in ("auto", True, False):
        raise ConfigError(
            got=f"compile={compile!r}",
            expected='"auto", True or False',
            fix='pass compile="auto"',
        )


def why_no_compiler(device: torch.device) -> str | None:
    """The reason why ``torch.compile`` cannot run for a device, or None if it can."""
    if device.type == "cuda":
        try:
            import triton  # type: ignore[import-not-found,unused-ignore] # noqa: F401
        except ImportError:
            return "triton is not installed"
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        return "there is no C++ compiler"
    return None


@lru_cache(maxsize=4)
def _warn_plain(reason: str) -> None:
    warnings.warn(
        f"{reason}: the plain encoder runs instead of the engine, two to four times slower",
        BocageWarning,
        stacklevel=4,
    )
