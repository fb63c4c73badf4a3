"""Checkpoints are whole or absent, and hold no pickle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bocage.errors import ModelError
from bocage.pretrain.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


def make(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        step=step,
        model={"a.weight": torch.randn(3, 2, generator=generator).T, "b": torch.tensor(step)},
        optimizer={"exp_avg/a.weight": torch.randn(2, 3, generator=generator)},
        state={"samples": 8 * step, "energy": {"kwh": 0.5}},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(7))
    assert path == latest_checkpoint(tmp_path)
    found = load_checkpoint(path)
    assert found.step == 7
    assert found.state["samples"] == 56
    assert torch.equal(found.model["a.weight"], make(7).model["a.weight"])
    assert torch.equal(found.optimizer["exp_avg/a.weight"], make(7).optimizer["exp_avg/a.weight"])
    # plain safetensors, which anyone can read
    assert set(load_file(path / "model.safetensors")) == {"a.weight", "b"}
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 10, 30):
        save_checkpoint(tmp_path, make(step), keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000010", "step_00000030"]


def test_leftovers_of_a_killed_run_are_ignored_and_removed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1))
    half = tmp_path / "checkpoints" / ".step_00000002.abcdef01.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).name == "step_00000001"
    save_checkpoint(tmp_path, make(3))
    assert not half.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, make(4))
    (path / name).write_bytes((path / name).read_bytes()[:20])
    with pytest.raises(ModelError, match=f"{name}.*delete the folder .*step_00000004"):
        load_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_checkpoint(path)


WRITER = """
import sys, torch
from pathlib import Path
from bocage.pretrain.checkpoint import Checkpoint, save_checkpoint
for step in range(1, 100000):
    x = torch.full((200_000,), float(step))
    save_checkpoint(Path(sys.argv[1]), Checkpoint(step=step, model={"x": x},
                    optimizer={"exp_avg/x": x}, state={}), keep=2)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_9_at_random_moments_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    for i in range(6):
        run = tmp_path / str(i)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(run)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.013 * (i + 1))
        os.kill(writer.pid, signal.SIGKILL)
        said = [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        for path in list_checkpoints(run):
            found = load_checkpoint(path)
            assert (found.model["x"] == found.step).all()
            assert (found.optimizer["exp_avg/x"] == found.step).all()
            assert json.loads((path / "state.json").read_text())["step"] == found.step
        assert load_checkpoint(latest_checkpoint(run)).step >= max(said, default=1)
