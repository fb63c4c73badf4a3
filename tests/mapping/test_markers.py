import multiprocessing
import os
import signal
import time

import pytest

from bocage.errors import StoreError
from bocage.mapping.markers import Markers


@pytest.fixture
def markers(tmp_path):
    found = Markers(store=tmp_path / "x.zarr")
    found.prepare({"model": "a", "patch_size": 4})
    return found


def hold(store, ready):
    claim = Markers(store=store).claim("b")
    ready.set()
    time.sleep(60)
    claim.release()


def test_a_finished_block_is_remembered_with_its_facts(markers):
    assert not markers.is_done("2020_0_0")
    markers.finish("2020_0_0", {"n_valid": 3})
    assert Markers(store=markers.store).is_done("2020_0_0")
    assert markers.facts("2020_0_0") == {"n_valid": 3}


def test_the_same_configuration_goes_on_and_another_is_refused_by_name(markers):
    markers.prepare({"model": "a", "patch_size": 4})
    with pytest.raises(StoreError, match=r"patch_size 4 \(now 8\)"):
        markers.prepare({"model": "a", "patch_size": 8})


def test_a_block_held_by_a_process_is_free_again_when_the_process_is_killed(markers):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(markers.store, ready))
    process.start()
    assert ready.wait(30)
    assert markers.claim("b") is None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    claim = markers.claim("b")
    assert claim is not None
    claim.release()


def test_two_claims_in_one_process_exclude_each_other(markers):
    first = markers.claim("b")
    assert markers.claim("b") is None
    first.release()
    first.release()
    assert markers.claim("b") is not None
