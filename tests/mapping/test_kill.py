"""A run killed with SIGKILL and started again ends in the same bytes as one left alone."""

import random
import subprocess
import sys
import time

import pytest

from bocage.mapping import parts

from .conftest import write_scene
from .test_embed import files

CHILD = """
import sys, time
from bocage import embed, open_stack
from bocage.mapping import parts
from tests.mapping.conftest import WindowMean

class Slow(WindowMean):
    def window_encoder(self, **kwargs):
        encode = super().window_encoder(**kwargs)
        def slowly(values, timestamps):
            time.sleep(0.01)
            return encode(values, timestamps)
        return slowly

parts.KEEP_S = float(sys.argv[3])
embed(open_stack(sys.argv[1]), Slow(), out=sys.argv[2], patch_size=4, window_px=32, halo_px=8,
      block_px=64, batch_size=4)
"""


def start(path, out, keep_s=parts.KEEP_S):
    return subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(out), str(keep_s)])


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A scene, and the bytes of its map when nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path, _ = write_scene(folder, (260, 196))
    assert start(path, folder / "whole.zarr").wait(60) == 0
    return path, files(folder / "whole.zarr")


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_moment_and_run_again(scene, tmp_path, seed):
    path, whole = scene
    killed = tmp_path / "killed.zarr"
    process = start(path, killed, (parts.KEEP_S, 0, 0.05)[seed % 3])
    deadline = time.monotonic() + 30
    while not list(killed.glob("bocage/identity.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.6))
    process.kill()
    process.wait()
    assert start(path, killed).wait(60) == 0
    assert files(killed) == whole


@pytest.mark.parametrize("keep_s", [parts.KEEP_S, 0.05])
def test_two_processes_share_a_store_without_writing_a_shard_twice(scene, tmp_path, keep_s):
    path, whole = scene
    shared = tmp_path / "shared.zarr"
    # Both create the store at the same moment, or one finds the other's: either is fine.
    both = [start(path, shared, keep_s), start(path, shared, keep_s)]
    assert [p.wait(60) for p in both] == [0, 0]
    assert files(shared) == whole
