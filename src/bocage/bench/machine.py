"""What the benchmark runs on, and the fastest matrix product this machine can do."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

PEAK_SHAPES = ((2048, 768, 2304), (2048, 768, 3072), (2048, 3072, 768), (4096, 4096, 4096))
"""Rows, depth and columns of the products tried: those of the base model, and a large square."""


def describe_machine(device: torch.device | str) -> dict[str, Any]:
    """Facts for the record beside every table of numbers."""
    device = torch.device(device)
    facts: dict[str, Any] = {
        "device": device.type,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory_bytes() / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        facts |= {"gpu": found.name, "gpu_memory_gb": round(found.total_memory / 2**30, 1)}
    return facts


def processor_name() -> str:
    """Name of the processor as the system gives it."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def matmul_peak(dtype: torch.dtype, device: torch.device, seconds: float = 0.3) -> float:
    """Operations per second of the fastest product among ``PEAK_SHAPES``, best of many runs."""
    best = 0.0
    for m, k, n in PEAK_SHAPES:
        x = torch.randn(m, k, device=device, dtype=dtype)
        weight = torch.randn(n, k, device=device, dtype=dtype)
        started, runs = time.perf_counter(), 0
        while runs < 3 or time.perf_counter() - started < seconds:
            before = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            synchronize(device)
            if runs:
                best = max(best, 2 * m * k * n / (time.perf_counter() - before))
            runs += 1
    return best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Peak memory of a piece of work: ``with PeakMemory(device) as peak: ...; peak.mb``.

    On a GPU what torch allocated; on a CPU resident memory above that at the start (Linux only,
    elsewhere NaN).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mb = float("nan")
        self._before = float("nan")

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        try:
            # Freed memory that the C library keeps would hide what the work needs.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self._before = _status_kb("VmRSS")
        except (OSError, AttributeError):
            self._before = float("nan")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mb = torch.cuda.max_memory_allocated(self.device) / 2**20
        else:
            self.mb = (_status_kb("VmHWM") - self._before) / 1024


def _status_kb(key: str) -> float:
    path = Path("/proc/self/status")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith(key):
            return float(line.split()[1])
    return float("nan")
