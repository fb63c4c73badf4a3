"""A map of change killed with SIGKILL and started again has the bytes of one left alone."""

import subprocess
import sys
import time

import numpy as np
import pytest

from bocage.change import map_change
from bocage.errors import StoreError
from bocage.learn.predict.lock import alone

from .conftest import write_store

CHILD = """
import sys, time
from bocage.change import components, detection, map_change, moments

def slowly(function):
    def slow(*args):
        time.sleep(0.05)
        return function(*args)
    return slow

if __name__ == "__main__":
    print("ready", flush=True)
    components.Components.apply = slowly(components.Components.apply)
    moments.vectors = slowly(moments.vectors)
    map_change(*sys.argv[1:3], out=sys.argv[3], method="pca", components=3, codec="float32")
"""


def start(before, after, out):
    command = [sys.executable, "-c", CHILD, str(before), str(after), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def content(folder):
    """Bytes of every file but the records, which hold times."""
    return {
        p.name: p.read_bytes()
        for p in sorted(folder.iterdir())
        if not p.name.endswith((".run.json", ".stac.json"))
    }


@pytest.fixture
def large(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, (5, 60, 52)).astype(np.float32)
    years = [base, base + rng.normal(0, 0.2, base.shape).astype(np.float32)]
    return [
        write_store(tmp_path / f"{i}.zarr", [np.kron(x, np.ones((1, 20, 20), np.float32))],
                    (2024 + i,), shard_cells=512)
        for i, x in enumerate(years)
    ]  # fmt: skip


def test_killed_in_every_stage_and_run_again(tmp_path, large):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert start(*large, whole / "map.tif").wait(120) == 0
    # One after the other on one map: in the fit, among the blocks, while the map is written.
    for stage in ("map.fit.npz", "map.strengths.zarr/bocage/2025_1_0.json", ".map.tif.*.partial"):
        process = start(*large, killed / "map.tif")
        while not list(killed.glob(stage)):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (killed / "map.tif.run.json").exists()
    assert start(*large, killed / "map.tif").wait(120) == 0
    assert content(killed) == content(whole)
    assert set(content(whole)) == {"map.tif", "map.npz", "map.png", "map.qml"}


def test_a_killed_run_keeps_its_fit_and_its_blocks(tmp_path, large, monkeypatch):
    """What was finished before the kill is not made again."""
    process = start(*large, tmp_path / "map.tif")
    markers = tmp_path / "map.strengths.zarr" / "bocage"
    for _ in range(1200):
        if len(list(markers.glob("2025_*.json"))) >= 2:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    n_kept = len(list(markers.glob("2025_*.json")))
    assert n_kept >= 2

    def fit(*_args, **_options):
        raise AssertionError("fitted again")

    monkeypatch.setattr("bocage.change.detection.fit_measure", fit)
    said = []
    options = {"method": "pca", "components": 3, "codec": "float32"}
    map_change(*large, out=tmp_path / "map.tif", report=said.append, **options)
    assert f"resume   {n_kept} block(s)" in said[-1]
    assert not (tmp_path / "map.strengths.zarr").exists()
    assert not (tmp_path / "map.fit.npz").exists()


def test_other_options_do_not_go_on_with_a_killed_run(tmp_path, large):
    process = start(*large, tmp_path / "map.tif")
    while not (tmp_path / "map.strengths.zarr" / "bocage" / "identity.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    with pytest.raises(StoreError, match=r"made with .*options"):
        map_change(*large, out=tmp_path / "map.tif", method="pca", components=2, codec="float32")


def test_two_processes_do_not_write_one_map(tmp_path, large):
    (tmp_path / ".map.other.tif.0123abcd.partial").mkdir()
    (tmp_path / ".map.binary.tif.0123abcd.partial").mkdir()
    with alone(tmp_path / "map.tif"):
        assert (tmp_path / ".map.other.tif.0123abcd.partial").exists()
        assert not (tmp_path / ".map.binary.tif.0123abcd.partial").exists()
        code = "import sys; from bocage.change import map_change;" \
            "map_change(*sys.argv[1:3], out=sys.argv[3])"  # fmt: skip
        command = [sys.executable, "-c", code, *map(str, large), str(tmp_path / "map.tif")]
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert other.returncode == 1 and "another process is writing" in other.stderr
    assert not (tmp_path / "map.tif").exists()
    assert not (tmp_path / ".map.tif.lock").exists()
