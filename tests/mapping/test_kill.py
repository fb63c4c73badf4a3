"""A run killed with SIGKILL and started again ends in the same bytes as one left alone."""

import random
import subprocess
import sys
import time

import pytest

from .conftest import write_scene
from .test_embed import files

CHILD = """
import sys, time
from bocage import embed, open_stack
from tests.mapping.conftest import WindowMean

class Slow(WindowMean):
    def window_encoder(self, **kwargs):
        encode = super().window_encoder(**kwargs)
        def slowly(values, timestamps):
            time.sleep(0.01)
            return encode(values, timestamps)
        return slowly

embed(open_stack(sys.argv[1]), Slow(), out=sys.argv[2], patch_size=4, window_px=32, halo_px=8,
      block_px=64, batch_size=4)
"""


def start(path, out):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(out)])


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_moment_and_run_again(tmp_path, seed):
    path, _ = write_scene(tmp_path, (260, 196))
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    assert start(path, whole).wait(60) == 0
    process = start(path, killed)
    deadline = time.monotonic() + 30
    while not list(killed.glob("bocage/identity.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.6))
    process.kill()
    process.wait()
    assert start(path, killed).wait(60) == 0
    assert files(killed) == files(whole)


def test_two_processes_share_a_store_without_writing_a_shard_twice(tmp_path):
    path, _ = write_scene(tmp_path, (260, 196))
    whole, shared = tmp_path / "whole.zarr", tmp_path / "shared.zarr"
    assert start(path, whole).wait(60) == 0
    # Both create the store at the same moment, or one finds the other's: either is fine.
    both = [start(path, shared), start(path, shared)]
    assert [p.wait(60) for p in both] == [0, 0]
    assert files(shared) == files(whole)
