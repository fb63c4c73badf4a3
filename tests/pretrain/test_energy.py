"""Energy is read where the machine tells, else assumed and said."""

import time
from pathlib import Path

import pytest
import torch

from bocage.pretrain import energy
from bocage.pretrain.energy import Energy, EnergyMeter, energy_table


def package(root: Path, name: str, joules: float) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "max_energy_range_uj").write_text("1000000000")  # 1000 J
    (folder / "energy_uj").write_text(str(int(joules * 1e6)))
    return folder


def test_counters_of_all_packages_are_added_and_may_start_again(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 990)
    package(tmp_path, "intel-rapl:1", 100)
    package(tmp_path, "intel-rapl:0:0", 5)  # a part of package 0 counts once
    counter = energy._rapl(tmp_path)
    assert counter is not None
    joules, source = counter
    assert joules() == 0
    package(tmp_path, "intel-rapl:0", 15)  # passed its maximum: 25 J
    package(tmp_path, "intel-rapl:1", 130)
    assert joules() == pytest.approx(55)
    package(tmp_path, "intel-rapl:1", 131)
    assert joules() == pytest.approx(56)
    assert "RAPL" in source


def test_an_unreadable_counter_is_no_counter(tmp_path: Path) -> None:
    assert energy._rapl(tmp_path) is None
    folder = package(tmp_path, "intel-rapl:0", 1)
    (folder / "energy_uj").unlink()
    assert energy._rapl(tmp_path) is None


def test_an_assumed_power_is_time_times_watts_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_rapl", lambda: None)
    meter = EnergyMeter(torch.device("cpu"))
    assert "assumed" in meter.source
    meter = EnergyMeter(torch.device("cpu"), power_w=3.6e6)  # 1 kWh per second
    time.sleep(0.2)
    hours, kwh = meter.read()
    assert kwh == pytest.approx(hours * 3600, rel=0.05)
    assert 0.2 <= kwh < 5
    assert "stated" in meter.source


def test_what_processes_share_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_rapl", lambda: (lambda: 3.6e6, "RAPL"))
    first = EnergyMeter(torch.device("cpu"), first=True)
    second = EnergyMeter(torch.device("cpu"), first=False)
    assert first.read()[1] + second.read()[1] == pytest.approx(1.0)


def test_the_table_names_the_assumption() -> None:
    text = energy_table(
        Energy(
            device="CPU",
            hours=2,
            device_hours=4,
            kwh=0.08,
            kg_co2e=0.04,
            source="assumed 20 W",
            grid_g_per_kwh=500,
        )
    )
    assert "| CPU | 4 | 0.08 | 0.04 | assumed 20 W; 500 g CO2e per kWh |" in text
