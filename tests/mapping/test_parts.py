import threading

import numpy as np
import pytest

from bocage import embed, open_stack
from bocage.errors import StoreError
from bocage.mapping import job as job_module
from bocage.mapping import parts as parts_module
from bocage.mapping.markers import Markers
from bocage.mapping.parts import KEEP_S, Parts

from .conftest import WindowMean, write_scene
from .test_embed import files


@pytest.fixture
def markers(tmp_path):
    markers = Markers(store=tmp_path)
    markers.prepare({})
    return markers


def part(value, n=4):
    return {"own": np.full(n, value, np.float32), "0_1": np.full(2, -value, np.float32)}


def put(parts, key, **options):
    claim = parts.markers.claim(key)
    parts.put(key, part(**options), claim)


def test_a_part_is_the_same_in_memory_and_from_disk(markers):
    parts = Parts(markers=markers)
    put(parts, "a", value=7)
    assert not markers.part("a").exists()
    (in_memory,) = parts.get("a", "own")
    parts.spill()
    assert markers.part("a").exists()
    others = Parts(markers=markers)
    assert others.has("a") and not others.has("b")
    own, border = others.get("a", "own", "0_1")
    np.testing.assert_array_equal(own, in_memory)
    np.testing.assert_array_equal(border, [-7, -7])


def test_a_block_is_held_until_others_can_see_that_it_is_encoded(markers):
    parts = Parts(markers=markers)
    put(parts, "a", value=1)
    put(parts, "b", value=2)
    assert markers.claim("a") is None
    parts.drop("a")
    assert not parts.has("a")
    markers.claim("a").release()
    assert markers.claim("b") is None
    parts.spill()
    markers.claim("b").release()


def test_above_the_bound_of_memory_those_that_came_first_go_to_disk(markers, monkeypatch):
    monkeypatch.setattr(parts_module, "KEEP_BYTES", 60)  # a part has 24
    parts = Parts(markers=markers)
    for key in ("a", "b", "c"):
        put(parts, key, value=1)
    assert [markers.part(key).exists() for key in ("a", "b", "c")] == [True, False, False]


def test_what_was_in_memory_for_long_goes_to_disk_with_all_the_rest(markers, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(parts_module.time, "monotonic", lambda: now[0])
    parts = Parts(markers=markers, _spilled_at=now[0])
    on_disk = []
    for key, seconds in (("a", 0), ("b", KEEP_S), ("c", KEEP_S - 1), ("d", 1)):
        now[0] += seconds
        put(parts, key, value=1)
        on_disk.append("".join(k for k in "abcd" if markers.part(k).exists()))
    assert on_disk == ["", "ab", "ab", "abcd"]  # The time runs anew each time.


def test_a_part_dropped_while_it_is_written_leaves_no_file(markers, monkeypatch):
    parts = Parts(markers=markers)
    put(parts, "a", value=1)
    savez = np.savez

    def dropped_meanwhile(file, **arrays):
        savez(file, **arrays)
        parts.drop("a")

    monkeypatch.setattr(np, "savez", dropped_meanwhile)
    parts.spill()
    assert not markers.part("a").exists()
    markers.claim("a").release()


def test_a_damaged_file_is_named(markers):
    parts = Parts(markers=markers)
    put(parts, "a", value=1)
    parts.spill()
    markers.part("a").write_bytes(b"PK not a part")
    with pytest.raises(StoreError, match=r"a\.part\.npz.*damaged"):
        parts.get("a", "own")


def test_a_run_that_writes_parts_at_once_and_one_that_never_does_give_the_same_bytes(
    tmp_path, monkeypatch
):
    stack = open_stack(write_scene(tmp_path, (203, 147))[0])
    options = {"patch_size": 4, "window_px": 32, "halo_px": 8, "block_px": 48, "batch_size": 3}
    written = []
    write = Parts._write
    monkeypatch.setattr(Parts, "_write", lambda *a: (written.append(a[1]), write(*a))[1])
    embed(stack, WindowMean(), out=tmp_path / "memory.zarr", **options)
    assert not written
    monkeypatch.setattr(parts_module, "KEEP_S", 0.0)
    embed(stack, WindowMean(), out=tmp_path / "disk.zarr", **options)
    assert written
    assert files(tmp_path / "disk.zarr") == files(tmp_path / "memory.zarr")


def test_parts_lost_with_a_killed_process_are_made_again_even_of_finished_blocks(
    tmp_path, monkeypatch
):
    stack = open_stack(write_scene(tmp_path, (203, 147))[0])
    options = {"patch_size": 4, "window_px": 32, "halo_px": 8, "block_px": 48, "batch_size": 3}
    embed(stack, WindowMean(), out=tmp_path / "whole.zarr", **options)

    class Stops(WindowMean):
        calls = 0

        def window_encoder(self, **kwargs):
            encode = super().window_encoder(**kwargs)

            def stops(values, timestamps):
                type(self).calls += 1
                if self.calls == 40:
                    raise KeyboardInterrupt
                return encode(values, timestamps)

            return stops

    out = tmp_path / "x.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(Parts, "spill", lambda *_: None)  # As if killed.
        with pytest.raises(KeyboardInterrupt):
            embed(stack, Stops(), out=out, **options)
    assert list(out.glob("bocage/[0-9]*.json")) and not list(out.glob("bocage/*.npz"))
    embed(stack, WindowMean(), out=out, **options)
    assert files(out) == files(tmp_path / "whole.zarr")


def test_a_disk_that_fills_up_while_shards_are_written_spoils_no_part(tmp_path, monkeypatch):
    stack = open_stack(write_scene(tmp_path, (203, 147))[0])
    options = {"patch_size": 4, "window_px": 32, "halo_px": 8, "block_px": 48, "batch_size": 3}
    embed(stack, WindowMean(), out=tmp_path / "whole.zarr", **options)

    def full(*_):
        raise StoreError(got="no space left", expected="a disk", fix="free some space")

    out = tmp_path / "x.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("bocage.embeddings.store.put_shard", full)
        with pytest.raises(StoreError, match="no space left"):
            embed(stack, WindowMean(), out=out, **options)
    assert list(out.glob("bocage/*.npz"))
    embed(stack, WindowMean(), out=out, **options)
    assert files(out) == files(tmp_path / "whole.zarr")


def test_a_run_shows_its_parts_before_it_looks_for_those_of_others(tmp_path, monkeypatch):
    # Two processes that look first and show then would both leave the blocks between them.
    stack = open_stack(write_scene(tmp_path, (203, 147))[0])
    options = {"patch_size": 4, "window_px": 32, "halo_px": 8, "block_px": 48}
    finish, in_memory = job_module._finish_block, []

    def look(job, year, block):
        if threading.current_thread() is threading.main_thread():
            in_memory.append(len(job.parts._kept))
        return finish(job, year, block)

    monkeypatch.setattr(job_module, "_finish_block", look)
    embed(stack, WindowMean(), out=tmp_path / "x.zarr", shard="1/2", **options)
    assert in_memory and set(in_memory) == {0}
    assert list((tmp_path / "x.zarr").glob("bocage/*.npz"))
