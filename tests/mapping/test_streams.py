"""Threads that share the tasks of a run: order, limits, ends."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

from bocage import embed, load_model
from bocage.geo import lay_out
from bocage.mapping.blend import BlockSums, BlockWork, Cells
from bocage.mapping.streams import (
    MOST_WAITING,
    WAITING_THREADS,
    Clock,
    Task,
    run_streams,
    streams_for,
)

from .conftest import PatchMean
from .test_embed import files


def crew():
    """Threads of a run; those that have said good-bye get a moment to be gone."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        found = [t for t in threading.enumerate() if t.name.startswith("bocage-stream")]
        if not found:
            break
        time.sleep(0.01)
    return found


class Watched:
    """A run of reads that each make some encodes and a write, and what was going on at once."""

    def __init__(self, n_reads, n_encodes, pause_s=0.001):
        self.n_reads, self.n_encodes, self.pause_s = n_reads, n_encodes, pause_s
        self.done = {"read": [], "encode": [], "write": []}
        self.now = dict.fromkeys(self.done, 0)
        self.most = dict.fromkeys(self.done, 0)
        self.most_unencoded = 0
        self.lock = threading.Lock()

    def reading(self):
        for i in range(self.n_reads):
            yield self.task("read", i, lambda i=i: self.encodes(i))

    def encodes(self, i):
        return [self.encode(i, j) for j in range(self.n_encodes)]

    def encode(self, i, j):
        last = j == self.n_encodes - 1
        return self.task("encode", (i, j), lambda: [self.task("write", i, list)] if last else [])

    def task(self, stage, what, more):
        def run():
            with self.lock:
                self.now[stage] += 1
                self.most[stage] = max(self.most[stage], self.now[stage])
            time.sleep(self.pause_s)
            with self.lock:
                self.now[stage] -= 1
                self.done[stage].append(what)
                waiting = len(self.done["read"]) * self.n_encodes - len(self.done["encode"])
                self.most_unencoded = max(self.most_unencoded, waiting)
            return more()

        return Task(stage, run)


@pytest.mark.parametrize("streams", [1, 2, 5])
def test_every_task_is_done_once_and_only_so_many_encode_at_a_time(streams):
    watched = Watched(n_reads=30, n_encodes=3)
    clock = Clock()
    run_streams(watched.reading(), streams=streams, clock=clock)
    assert sorted(watched.done["read"]) == sorted(watched.done["write"]) == list(range(30))
    assert sorted(watched.done["encode"]) == [(i, j) for i in range(30) for j in range(3)]
    assert watched.most["encode"] <= streams
    # Reading stops while enough waits: what runs, what waits, and reads that had begun.
    assert watched.most_unencoded <= 2 * streams + 3 * streams
    assert clock.read_s >= 0.03
    assert clock.encode_s >= 0.09
    assert crew() == []


def test_each_thread_enters_once_before_its_first_task():
    entered = []

    def enter():
        entered.append(threading.current_thread().name)

    def task():
        assert threading.current_thread().name in entered
        return []

    run_streams((Task("read", task) for _ in range(50)), streams=3, clock=Clock(), enter=enter)
    assert len(entered) == len(set(entered)) >= 3


@pytest.mark.parametrize("on_cpu", [True, False])
def test_reads_that_wait_for_a_server_go_on_beside_encoding(on_cpu):
    started = [threading.Event() for _ in range(10)]
    seen = []

    def read(i):
        started[i].set()
        time.sleep(0.05)
        return [Task("encode", lambda: encode(i))]

    def encode(i):
        # Ends only when the next read has begun, which it can with a thread of its own.
        seen.append(i == 9 or started[i + 1].wait(timeout=20))
        return []

    reading = (Task("read", lambda i=i: read(i)) for i in range(10))
    run_streams(reading, streams=1, clock=Clock(), on_cpu=on_cpu)
    assert seen == [True] * 10


def test_reads_that_work_take_the_turn_of_encoding(monkeypatch):
    # Other processes may take the core from this one; that must not look like waiting.
    monkeypatch.setattr("bocage.mapping.streams.time.perf_counter", time.thread_time)
    now, most, lock = [0], [0], threading.Lock()

    def work(more):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass
        with lock:
            now[0] -= 1
        return more

    reading = (Task("read", lambda: work([Task("encode", lambda: work([]))])) for _ in range(20))
    run_streams(reading, streams=1, clock=Clock())
    assert most == [1]


def test_a_finished_block_is_written_before_more_is_encoded():
    order = []

    def task(stage, name, *more):
        return Task(stage, lambda: order.append(name) or list(more))

    first = task("encode", "encode 1", task("write", "write"))
    reading = task("read", "read", first, task("encode", "encode 2"), task("encode", "encode 3"))
    run_streams([reading], streams=1, clock=Clock())
    assert order == ["read", "encode 1", "write", "encode 2", "encode 3"]


def test_a_task_that_waits_for_the_disk_lets_encoding_go_on():
    n_encoded, all_encoded = [0], threading.Event()

    def encode():
        n_encoded[0] += 1
        if n_encoded[0] == 5:
            all_encoded.set()
        return []

    def wait():
        # Ends only when all the rest is done: the only stream must not wait with it.
        assert all_encoded.wait(timeout=20)
        return []

    first = Task("encode", lambda: [Task("write", wait, waits=True)])
    reading = Task("read", lambda: [first, *(Task("encode", encode) for _ in range(5))])
    run_streams([reading], streams=1, clock=Clock())
    assert n_encoded == [5]


def test_a_slow_disk_neither_stops_encoding_nor_fills_memory():
    n_made, n_put, n_encoded, most, lock = [0], [0], [0], [0], threading.Lock()
    enough = threading.Event()

    def encode():
        n_encoded[0] += 1
        if n_encoded[0] == MOST_WAITING + WAITING_THREADS:
            enough.set()
        return [Task("write", make)]

    def make():
        with lock:
            n_made[0] += 1
            most[0] = max(most[0], n_made[0] - n_put[0])
        return [Task("write", put, waits=True)]

    def put():
        assert enough.wait(timeout=20)  # As many wait as may, and encoding goes on.
        time.sleep(0.02)
        with lock:
            n_put[0] += 1
        return []

    reading = (Task("read", lambda: [Task("encode", encode)]) for _ in range(40))
    run_streams(reading, streams=1, clock=Clock())
    assert n_put == n_made == [40]
    # Those in the queue, the one too many, and one for every thread.
    assert 3 <= most[0] <= MOST_WAITING + 1 + 1 + 2 * WAITING_THREADS


@pytest.mark.parametrize(("on_cpu", "ahead"), [(True, 1), (False, 3)])
def test_a_model_elsewhere_has_more_waiting_for_it(on_cpu, ahead):
    n_read, most, lock = [0], [0], threading.Lock()

    def read():
        time.sleep(0.02)
        with lock:
            n_read[0] += 1
        return [Task("encode", encode)]

    def encode():
        time.sleep(0.3)  # Long enough to read all that may be read meanwhile.
        with lock:
            n_read[0] -= 1
            most[0] = max(most[0], n_read[0])
        return []

    reading = (Task("read", read) for _ in range(6))
    run_streams(reading, streams=1, clock=Clock(), on_cpu=on_cpu)
    assert most == [ahead]


@pytest.mark.parametrize("where", ["read", "encode", "write", "fetch", "enter"])
def test_the_first_failure_ends_all_and_is_raised(where):
    fetched = []

    def fail():
        raise OSError(f"{where} failed")

    def reading():
        for i in range(1000):
            fetched.append(i)
            if i == 20 and where == "fetch":
                fail()
            run = fail if i == 20 else list
            if where in {"encode", "write"}:
                yield Task("read", lambda run=run: [Task(where, run)])
            else:
                yield Task("read", run)

    enter = fail if where == "enter" else lambda: None
    with pytest.raises(OSError, match=f"{where} failed"):
        run_streams(reading(), streams=2, clock=Clock(), enter=enter)
    assert len(fetched) < 100
    assert crew() == []


def test_an_interrupt_waits_for_the_tasks_in_work_and_no_others():
    started, ended, once = [], [], threading.Lock()

    def task():
        started.append(1)
        if len(started) >= 3 and once.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        ended.append(1)
        return []

    with pytest.raises(KeyboardInterrupt):
        run_streams((Task("read", task) for _ in range(1000)), streams=2, clock=Clock())
    assert len(started) == len(ended) < 100
    assert crew() == []


class Model(PatchMean):
    def __init__(self, n):
        self.n, self.entered = n, 0

    def streams(self):
        return self.n

    @contextlib.contextmanager
    def in_streams(self, n):
        def enter():
            self.entered += 1

        yield enter


def test_streams_need_a_model_that_takes_them_and_enough_batches():
    def count(model, n_batches):
        with streams_for(model, n_batches) as (streams, _):
            return streams

    assert [count(Model(3), n) for n in (0, 11, 12, 500)] == [1, 1, 3, 3]
    assert [count(Model(64), n) for n in (7, 8, 100, 255, 256)] == [1, 2, 16, 32, 64]
    assert count(Model(1), 500) == 1
    assert count(PatchMean(), 500) == 1


@pytest.mark.parametrize("seed", range(5))
def test_batches_in_any_order_from_any_thread_add_up_to_the_same_bits(seed):
    rng = np.random.default_rng(seed)
    layout = lay_out((96, 96), patch_size=4, window_px=32, halo_px=8, block_px=96)
    (block,) = layout.blocks()
    cells = Cells(layout=layout, cell_px=4)
    windows = list(layout.windows(block))
    vectors = [rng.normal(0, 1e3, (8, 8, 5)).astype(np.float32) for _ in windows]
    strips = [  # Two windows a batch; the middle strip has nothing to encode.
        [[0, 1], [2, 3], [4]],
        [],
        [[k, k + 1] for k in range(5, len(windows) - 1, 2)],
    ]
    whole = BlockSums(cells, block, 5)
    for strip in strips:
        for batch in strip:
            for k in batch:
                whole.add(windows[k], vectors[k])
    work = BlockWork(BlockSums(cells, block, 5), len(strips))
    arrivals = [(s, b) for s, strip in enumerate(strips) for b in range(len(strip))]
    calls = [(work.expect, (s, len(strip))) for s, strip in enumerate(strips)]
    calls += [
        (work.arrive, (s, b, [(windows[k], vectors[k]) for k in strips[s][b]])) for s, b in arrivals
    ]
    rng.shuffle(calls)
    complete = []

    def some(mine):
        for call, arguments in mine:
            complete.append(call(*arguments))

    threads = [threading.Thread(target=some, args=(calls[i::3],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert complete.count(True) == 1
    np.testing.assert_array_equal(work.sums.weighted, whole.weighted)
    np.testing.assert_array_equal(work.sums.weight, whole.weight)


def test_the_number_of_streams_changes_no_byte_of_a_map(scene, tmp_path, monkeypatch):
    stack, _ = scene
    model = load_model("bocage-nano", precision="fp32")
    options = {"patch_size": 8, "window_px": 64, "halo_px": 16, "batch_size": 2, "block_px": 128}
    maps = []
    for n in (1, 2, 3):
        monkeypatch.setattr(model, "streams", lambda n=n: n)
        out = tmp_path / f"{n}.zarr"
        embed(stack, model, out=out, **options)
        maps.append({name: x for name, x in files(out).items() if "/c/" in name})
    assert len(maps[0]) > 4
    assert maps[0] == maps[1] == maps[2]


def test_every_core_is_given_back_after_a_run(scene, tmp_path):
    import torch

    stack, _ = scene
    before = 3  # Whatever the environment says: with one core nothing could be lost.
    given = torch.get_num_threads()
    torch.set_num_threads(before)
    model = load_model("bocage-nano", precision="fp32")
    with model.in_streams(before + 1) as enter:
        enter()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    found = []
    embed(stack, model, out=tmp_path / "x.zarr", patch_size=8, window_px=64, batch_size=1)
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    torch.set_num_threads(given)
    assert found == [before]
