"""Threads that read, encode and write pieces of a map side by side, the most urgent task first.

A network that runs on all cores at once waits after every layer for the slowest of them, and a
thread that reads or writes beside it makes one of them slow. So each stream takes whole batches, on
its own share of the cores, and reads and writes in between; nobody waits until nothing is left.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

BATCHES_PER_STREAM = 4
"""With fewer batches for each, streams would stand idle at the end of a run for longer than they
save: then several cores share a stream, or all of them one batch at a time."""


WAITING_THREADS = 2
"""Threads beyond the streams, for reads that wait, or beside a model on another device; and as many
for tasks that wait."""

MOST_WAITING = 4
"""Tasks that wait for a thread; with more the streams do them, or a slow disk would fill memory."""

MOSTLY = 0.5
"""Share of a core from which reading is work and not waiting."""

LOOK_S = 0.5
"""Between looks at interrupts that the system gave to another thread."""


@dataclass
class Clock:
    """Seconds that each stage was busy, added up over threads: they may exceed the wall."""

    read_s: float = 0.0
    encode_s: float = 0.0
    write_s: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Count the time of a ``with`` block for a stage: read, encode or write."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds, name = time.perf_counter() - start, f"{stage}_s"
            with self._lock:
                setattr(self, name, getattr(self, name) + seconds)


@dataclass(frozen=True)
class Task:
    """Something to do; what it returns is to be done afterwards."""

    stage: Literal["read", "encode", "write"]
    run: Callable[[], Iterable[Task]]
    waits: bool = False
    """Whether it mostly waits, for a disk, and keeps no core from encoding."""

    @property
    def kind(self) -> str:
        """What it counts as among running tasks."""
        return "wait" if self.waits else self.stage


@runtime_checkable
class RunsInStreams(Protocol):
    """A model that several threads may call at once, each on its share of the cores."""

    def streams(self) -> int:
        """Threads that keep the device busiest with many batches."""

    def in_streams(self, n: int) -> AbstractContextManager[Callable[[], None]]:
        """Share the cores between ``n`` threads, each of which first calls what this gives."""


@contextmanager
def streams_for(model: object, n_batches: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """How many streams a run of so many batches keeps busy, and what each calls first."""
    if isinstance(model, RunsInStreams):
        cores, most = model.streams(), n_batches // BATCHES_PER_STREAM
        streams = max((n for n in range(2, min(cores, most) + 1) if cores % n == 0), default=1)
        if streams > 1:
            with model.in_streams(streams) as enter:
                yield streams, enter
            return
    yield 1, lambda: None


def run_streams(
    reading: Iterable[Task],
    *,
    streams: int,
    clock: Clock,
    enter: Callable[[], None] = lambda: None,
    on_cpu: bool = True,
) -> None:
    """Do all tasks: those of ``reading`` are fetched one by one, when encoding is about to starve.

    Writing goes before everything, since it frees memory; reading goes before encoding while fewer
    tasks than ``streams`` wait to be encoded (two more where the model is elsewhere). At most
    ``streams`` tasks are at work at once, but tasks that wait do not count, nor do reads that
    mostly wait, for a server; nor do reads and writes at all where the model does not work
    ``on_cpu``. Each thread calls ``enter`` first. The first exception of a task stops all and is
    raised here.
    """
    crew = _Crew(
        reading=iter(reading),
        streams=streams,
        n_threads=streams + 2 * WAITING_THREADS,
        clock=clock,
        on_cpu=on_cpu,
    )

    def work() -> None:
        try:
            enter()
            crew.work()
        except BaseException as error:
            crew.stop(error)
        finally:
            crew.leave()

    for n in range(crew.n_threads):
        threading.Thread(target=work, name=f"bocage-stream-{n}", daemon=True).start()
    try:
        crew.wait()
    finally:
        crew.stop(None)  # An interrupt ends the wait above while threads still work.
        crew.wait()
    if crew.error is not None:
        raise crew.error


@dataclass
class _Crew:
    """What the threads share."""

    reading: Iterator[Task]
    streams: int
    n_threads: int
    clock: Clock
    on_cpu: bool
    error: BaseException | None = None
    waiting: deque[Task] = field(default_factory=deque)
    writing: deque[Task] = field(default_factory=deque)
    encoding: deque[Task] = field(default_factory=deque)
    n_running: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("read", "encode", "write", "wait"), 0)
    )
    is_fetching: bool = False
    is_exhausted: bool = False
    is_stopped: bool = False
    read_s: float = 0.0
    read_core_s: float = 0.0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def work(self) -> None:
        """Do tasks until none can come any more."""
        while (task := self._take()) is not None:
            wall, core = time.perf_counter(), time.thread_time()
            with self.clock.time(task.stage):
                more = list(task.run())
            wall, core = time.perf_counter() - wall, time.thread_time() - core
            with self.changed:
                if task.stage == "read" and (more or wall > core):
                    self.read_s, self.read_core_s = self.read_s + wall, self.read_core_s + core
                for one in more:
                    self._add(one)
                self.n_running[task.kind] -= 1
                self.changed.notify_all()

    def stop(self, error: BaseException | None) -> None:
        """Let every thread end after its task; the first error is kept."""
        with self.changed:
            self.is_stopped = True
            self.error = self.error or error
            self.changed.notify_all()

    def leave(self) -> None:
        """Say that a thread has ended."""
        with self.changed:
            self.n_threads -= 1
            self.changed.notify_all()

    def wait(self) -> None:
        """Until all threads have ended.

        Not by joining them: after an interrupt Python 3.11 takes a thread in work for an ended one.
        """
        with self.changed:
            while self.n_threads:
                self.changed.wait(LOOK_S)

    def _take(self) -> Task | None:
        with self.changed:
            while True:
                if self.is_stopped:
                    return None
                is_free = self._n_at_work() < self.streams
                if self._wants_waiting():
                    return self._start(self.waiting.popleft())
                if self.writing and (is_free or not self.on_cpu):
                    return self._start(self.writing.popleft())
                if self._wants_reading() and (is_free or self._reading_waits()):
                    self.is_fetching = True
                    self.n_running["read"] += 1
                    break
                if self.encoding and is_free:
                    return self._start(self.encoding.popleft())
                if self._is_done():
                    self.changed.notify_all()
                    return None
                self.changed.wait()
        return Task("read", self._fetch_and_read)

    def _add(self, task: Task) -> None:
        queues = {"wait": self.waiting, "write": self.writing}
        queues.get(task.kind, self.encoding).append(task)

    def _wants_waiting(self) -> bool:
        has_thread = self.n_running["wait"] < WAITING_THREADS
        return bool(self.waiting) and (has_thread or len(self.waiting) > MOST_WAITING)

    def _wants_reading(self) -> bool:
        waiting = len(self.encoding) + self.n_running["read"]
        enough = self.streams + (0 if self.on_cpu else WAITING_THREADS)
        return waiting < enough and not self.is_fetching and not self.is_exhausted

    def _reading_waits(self) -> bool:
        """Whether reading does not keep a core from encoding."""
        return not self.on_cpu or self.read_core_s < MOSTLY * self.read_s

    def _n_at_work(self) -> int:
        """Tasks that keep a core, or the other device, busy."""
        n = self.n_running
        if not self.on_cpu:
            return n["encode"]
        return n["encode"] + n["write"] + (0 if self._reading_waits() else n["read"])

    def _is_done(self) -> bool:
        nothing_waits = not (self.encoding or self.writing or self.waiting)
        return self.is_exhausted and nothing_waits and not any(self.n_running.values())

    def _start(self, task: Task) -> Task:
        self.n_running[task.kind] += 1
        return task

    def _fetch_and_read(self) -> Iterable[Task]:
        """Fetching is for one thread at a time, reading what was fetched is not."""
        try:
            task = next(self.reading, None)
        finally:
            with self.changed:
                self.is_fetching = False
                self.changed.notify_all()
        if task is None:
            with self.changed:
                self.is_exhausted = True
                self.changed.notify_all()
            return []
        return task.run()
