"""Several processes give the curve of one; a killed process loses nothing that was saved."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import bocage
from bocage.pretrain.checkpoint import latest_checkpoint, load_checkpoint
from bocage.pretrain.export import export
from bocage.pretrain.metrics_log import read_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 8


def command(out: Path, release: str, recipe: dict, options: dict, processes: int = 1) -> list[str]:
    start = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("", 0))
            port = str(free.getsockname()[1])
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        start += ["--master-port", port]
    return [
        *start,
        *("-m", "tests.pretrain.one_process", str(out), release),
        *(json.dumps(recipe), json.dumps(options)),
    ]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*args, **kwargs) -> None:
    done = subprocess.run(
        command(*args, **kwargs),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def curve(folder: Path) -> np.ndarray:
    return np.array([(r["step"], r["loss"], r["gradient_norm"]) for r in read_metrics(folder)])


@pytest.mark.parametrize("release", ["v1", "v1.2", "v1.3"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_equal_one_with_twice_the_batch(
    release: str, strategy: str, tmp_path: Path
) -> None:
    recipe = {"steps": STEPS, "learning_rate": 1e-3}
    one, two = tmp_path / "one", tmp_path / "two"
    run(one, release, recipe, {})
    run(two, release, recipe, {"strategy": strategy}, processes=2)
    assert len(curve(two)) == STEPS
    np.testing.assert_allclose(curve(two), curve(one), rtol=1e-4, atol=1e-4)
    a, b = (load_checkpoint(latest_checkpoint(p)).model for p in (one, two))
    assert set(a) == set(b)
    worst = max(float((a[name] - b[name]).abs().max()) for name in a)
    assert worst <= 1e-4
    export(two, tmp_path / "model")
    assert bocage.load_model(tmp_path / "model").release == release


@pytest.mark.parametrize(("first", "second"), [("fsdp2", "auto"), ("auto", "fsdp2")])
def test_a_run_goes_on_with_another_number_of_processes(
    first: str, second: str, tmp_path: Path
) -> None:
    recipe = {"steps": STEPS}
    run(tmp_path / "straight", "v1.2", recipe, {})
    for strategy, stop in ((first, 4), (second, None)):
        options = {"strategy": strategy, "stop_after": stop}
        run(tmp_path / "run", "v1.2", recipe, options, processes=1 + (strategy == "fsdp2"))
    np.testing.assert_allclose(
        curve(tmp_path / "run"), curve(tmp_path / "straight"), rtol=1e-4, atol=1e-4
    )


def test_kill_9_at_random_moments_gives_the_same_curve(tmp_path: Path) -> None:
    recipe = {"steps": 24}
    run(tmp_path / "straight", "v1.2", recipe, {})
    options = {"checkpoint_steps": 4}
    killed = 0
    rng = random.Random(0)
    folder = tmp_path / "run"
    for _ in range(60):
        before = latest_checkpoint(folder)
        process = subprocess.Popen(
            command(folder, "v1.2", recipe, options),
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
        )
        # Start-up is most of the time: wait for the first new checkpoint, then a random moment.
        while process.poll() is None and latest_checkpoint(folder) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert process.returncode == 0
    assert killed >= 3
    np.testing.assert_array_equal(curve(folder), curve(tmp_path / "straight"))
    a, b = (load_checkpoint(latest_checkpoint(p)) for p in (folder, tmp_path / "straight"))
    for kind in ("model", "optimizer"):
        x, y = getattr(a, kind), getattr(b, kind)
        assert all(torch.equal(x[name], y[name]) for name in y)


def test_sigterm_saves_the_step_it_is_at(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path / "run", "v1.2", {"steps": 100_000}, {}),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    while len(read_metrics(tmp_path / "run")) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    steps = len(read_metrics(tmp_path / "run"))
    assert said.strip() == f"step {steps}"
    assert latest_checkpoint(tmp_path / "run").name == f"step_{steps:08d}"


def test_a_loss_that_is_not_finite_stops_all_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path / "run", "v1.2", {"learning_rate": 1e30, "steps": 50}, {}, processes=2),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    (found,) = (tmp_path / "run").glob("not_finite_step_*.json")
    assert len(json.loads(found.read_text())["ids"]) == 8
