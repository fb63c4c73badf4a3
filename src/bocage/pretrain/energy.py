"""What a run costs in energy and carbon: measured where the machine tells, else assumed and said.

Processors: the counters of RAPL (Linux, often readable by root alone). NVIDIA GPUs: NVML. Where
neither can be read, hours x a stated power. Energy of memory, network and cooling is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

DEFAULT_GRID_G_PER_KWH = 473.0
"""World average of 2024 in g CO2e per kWh (Ember, Global Electricity Review 2025)."""

ASSUMED_CORE_W = 10.0
"""Watts per busy processor core where nothing can be measured: a server core under load."""

ASSUMED_GPU_W = 700.0
"""Watts of a GPU where nothing can be measured: the limit of an H100 SXM."""

_RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy and carbon of a run so far, over all its processes and restarts."""

    device: str
    """What did the work."""

    hours: float
    """Wall time in the loop."""

    device_hours: float
    """Hours times processes."""

    kwh: float
    kg_co2e: float
    source: str
    """Counters that were read, or the power that was assumed."""

    grid_g_per_kwh: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for run.json."""
        return asdict(self)


def energy_table(energy: Energy) -> str:
    """The row of a report: device, hours, kWh, kg CO2e."""
    return (
        "| device | device hours | kWh | kg CO2e | how |\n|---|---|---|---|---|\n"
        f"| {energy.device} | {energy.device_hours:.3g} | {energy.kwh:.3g} | "
        f"{energy.kg_co2e:.3g} | {energy.source}; {energy.grid_g_per_kwh:g} g CO2e per kWh |"
    )


class EnergyMeter:
    """Counts the energy of one process from the moment it is made."""

    def __init__(
        self, device: torch.device, *, power_w: float | None = None, first: bool = True
    ) -> None:
        """``power_w`` replaces every measurement: what the device draws, by your own meter.

        ``first`` is True in one process of each machine, which counts what its processes share.
        """
        self.started = time.monotonic()
        self._joules, self.source = _counter(device, power_w, first=first)

    def read(self) -> tuple[float, float]:
        """Hours and kWh since the start."""
        return (time.monotonic() - self.started) / 3600, self._joules() / 3.6e6


def _counter(
    device: torch.device, power_w: float | None, *, first: bool
) -> tuple[Callable[[], float], str]:
    """A function that gives the joules so far, and where they come from."""
    if power_w is None:
        measured = _nvml(device) if device.type == "cuda" else _rapl()
        if measured is not None:
            shared = device.type == "cpu" and not first
            return (lambda: 0.0, measured[1]) if shared else measured
        cores = torch.get_num_threads()
        gpu = device.type == "cuda"
        power_w = ASSUMED_GPU_W if gpu else ASSUMED_CORE_W * cores
        source = f"assumed {power_w:g} W" + ("" if gpu else f" ({cores} cores)")
    else:
        source = f"stated {power_w:g} W"
    started, watts = time.monotonic(), power_w
    return lambda: watts * (time.monotonic() - started), source


@dataclass
class _Package:
    counter: Path
    limit: int
    last: int


def _rapl(root: Path = _RAPL) -> tuple[Callable[[], float], str] | None:
    """Counters of all processor packages, which start again at a maximum."""
    packages: list[_Package] = []
    for folder in sorted(root.glob("intel-rapl:[0-9]*")):
        if ":" in folder.name.partition(":")[2]:
            continue  # a part of a package
        try:
            limit = int((folder / "max_energy_range_uj").read_text())
            last = int((folder / "energy_uj").read_text())
        except (OSError, ValueError):
            continue  # readable by root alone on many systems; then a stated power counts
        packages.append(_Package(folder / "energy_uj", limit, last))
    if not packages:
        return None
    total = 0

    def joules() -> float:
        nonlocal total
        for package in packages:
            now = int(package.counter.read_text())
            total += now - package.last + (package.limit if now < package.last else 0)
            package.last = now
        return total / 1e6

    return joules, "RAPL, processor packages as a whole"


def _nvml(device: torch.device) -> tuple[Callable[[], float], str] | None:
    """Energy counter of one GPU, where the bindings are installed and the card has one."""
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        first = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError, AttributeError):
        return None
    return (
        lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - first) / 1e3,
        "NVML energy counter",
    )
