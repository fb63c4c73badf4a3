"""A prediction killed with SIGKILL and started again ends in the same bytes as one left alone."""

import random
import subprocess
import sys
import time

from .conftest import smooth, write_embeddings

CHILD = """
import sys, time
from bocage.learn.predict import predict
from tests.learn.predict.conftest import Softmax

class Slow(Softmax):
    def predict_proba(self, x):
        time.sleep(0.1)
        return super().predict_proba(x)

if __name__ == "__main__":
    print("ready", flush=True)
    predict(sys.argv[1], Slow(6), out=sys.argv[2])
"""


def start(source, out):
    command = [sys.executable, "-c", CHILD, str(source), str(out)]
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


def test_killed_at_random_moments_and_run_again(tmp_path):
    source = write_embeddings(tmp_path / "emb.zarr", smooth(6, (700, 600)))
    whole = tmp_path / "whole"
    whole.mkdir()
    started = time.monotonic()
    assert start(source, whole / "map.tif").wait(120) == 0
    took = time.monotonic() - started
    killed = tmp_path / "killed"
    killed.mkdir()
    # One after the other on one map: while scoring, while writing, wherever it falls.
    for seed in range(3):
        process = start(source, killed / "map.tif")
        time.sleep(random.Random(seed).uniform(0.1, 0.7) * took / (seed + 1))
        process.kill()
        process.wait()
    assert start(source, killed / "map.tif").wait(120) == 0
    assert content(killed) == content(whole)
