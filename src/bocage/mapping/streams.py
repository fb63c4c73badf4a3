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
"""Below this many batches for each, streams would stand idle at the end of a run for longer than
they save: then all cores work on one batch at a time."""


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
        streams = model.streams()
        if n_batches >= BATCHES_PER_STREAM * streams > BATCHES_PER_STREAM:
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
    others: int = 1,
) -> None:
    """Do all tasks: those of ``reading`` are fetched one by one, when encoding is about to starve.

    Writing goes before everything, since it frees memory; reading goes before encoding while fewer
    tasks than ``streams`` wait to be encoded. At most ``streams`` encode at once, and there are
    ``others`` more threads for the rest, so that waiting for a server holds nothing up. Each thread
    calls ``enter`` first. The first exception of a task stops all and is raised here.
    """
    crew = _Crew(reading=iter(reading), streams=streams, clock=clock)

    def work() -> None:
        try:
            enter()
            crew.work()
        except BaseException as error:
            crew.stop(error)

    threads = [
        threading.Thread(target=work, name=f"bocage-{n}", daemon=True)
        for n in range(streams + others)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(LOOK_S)
    finally:
        crew.stop(None)  # An interrupt leaves the loop above while threads still work.
        for thread in threads:
            thread.join()
    if crew.error is not None:
        raise crew.error


@dataclass
class _Crew:
    """What the threads share."""

    reading: Iterator[Task]
    streams: int
    clock: Clock
    error: BaseException | None = None
    writing: deque[Task] = field(default_factory=deque)
    encoding: deque[Task] = field(default_factory=deque)
    n_running: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("read", "encode", "write"), 0)
    )
    is_fetching: bool = False
    is_exhausted: bool = False
    is_stopped: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def work(self) -> None:
        """Do tasks until none can come any more."""
        while (task := self._take()) is not None:
            with self.clock.time(task.stage):
                more = list(task.run())
            with self.changed:
                for one in more:
                    (self.writing if one.stage == "write" else self.encoding).append(one)
                self.n_running[task.stage] -= 1
                self.changed.notify_all()

    def stop(self, error: BaseException | None) -> None:
        """Let every thread end after its task; the first error is kept."""
        with self.changed:
            self.is_stopped = True
            self.error = self.error or error
            self.changed.notify_all()

    def _take(self) -> Task | None:
        with self.changed:
            while True:
                if self.is_stopped:
                    return None
                if self.writing:
                    return self._start(self.writing.popleft())
                waiting = len(self.encoding) + self.n_running["read"]
                if waiting < self.streams and not self.is_fetching and not self.is_exhausted:
                    self.is_fetching = True
                    self.n_running["read"] += 1
                    break
                if self.encoding and self.n_running["encode"] < self.streams:
                    return self._start(self.encoding.popleft())
                if self.is_exhausted and not self.encoding and not any(self.n_running.values()):
                    self.changed.notify_all()
                    return None
                self.changed.wait()
        return Task("read", self._fetch_and_read)

    def _start(self, task: Task) -> Task:
        self.n_running[task.stage] += 1
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
