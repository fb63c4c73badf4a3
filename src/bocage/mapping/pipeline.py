"""Reading, encoding and writing at the same time, with a bounded number of pieces between them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MOSTLY = 0.5
"""Share of processor time from which reading is work. Beside a network on two cores a thread that
works only takes turns with it: the 19 km scene took 3.45 s with one, 3.29 without (2026-11-21)."""

_END = object()


@dataclass
class Clock:
    """Seconds that each stage was busy; stages overlap, so they may sum to more than the wall."""

    read_s: float = 0.0
    encode_s: float = 0.0
    write_s: float = 0.0

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Count the time of a ``with`` block for a stage: read, encode or write."""
        start = time.perf_counter()
        try:
            yield
        finally:
            name = f"{stage}_s"
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)


@dataclass
class _Failure:
    error: BaseException


def read_ahead(
    items: Iterable[T], *, ahead: int, clock: Clock, cores_are_busy: bool = False
) -> Generator[T, None, None]:
    """Iterate in another thread, at most ``ahead`` items in front of the consumer.

    An exception of the producer is raised at the consumer. Closing the generator stops the
    producer and waits for it; a consumer that may fail does so with `contextlib.closing`.

    Where the consumer keeps all cores busy itself (``cores_are_busy``), only waiting can be hidden
    behind it: if reading the first item is work and not waiting, there is no other thread.
    """
    iterator = iter(items)
    if cores_are_busy:
        wall, cpu = time.perf_counter(), time.process_time()
        with clock.time("read"):
            item = next(iterator, _END)
        worked = time.process_time() - cpu
        if worked > MOSTLY * (time.perf_counter() - wall):
            while item is not _END:
                yield item  # type: ignore[misc]
                with clock.time("read"):
                    item = next(iterator, _END)
            return
        if item is not _END:
            yield item  # type: ignore[misc]
    yield from _in_another_thread(iterator, ahead=ahead, clock=clock)


def _in_another_thread(
    iterator: Iterator[T], *, ahead: int, clock: Clock
) -> Generator[T, None, None]:
    pieces: queue.Queue[Any] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(piece: Any) -> bool:
        while not stopped.is_set():
            try:
                pieces.put(piece, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            while True:
                with clock.time("read"):
                    item = next(iterator, _END)
                if not put(item) or item is _END:
                    return
        except BaseException as error:
            put(_Failure(error))

    thread = threading.Thread(target=produce, name="bocage-read", daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not _END:
            if isinstance(piece, _Failure):
                raise piece.error
            yield piece
    finally:
        stopped.set()
        thread.join()


@dataclass
class WriteBehind(Generic[T]):
    """A thread that writes finished pieces, at most one waiting; use as a context manager."""

    write: Callable[[T], None]
    clock: Clock
    _pieces: queue.Queue[Any] = field(default_factory=lambda: queue.Queue(maxsize=1))
    _error: BaseException | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> WriteBehind[T]:
        self._thread = threading.Thread(target=self._run, name="bocage-write", daemon=True)
        self._thread.start()
        return self

    def put(self, piece: T) -> None:
        """Hand a piece over; raises what an earlier write raised."""
        if self._error is not None:
            raise self._error
        self._pieces.put(piece)

    def __exit__(self, kind: object, *_: object) -> None:
        self._pieces.put(_END)
        if self._thread is not None:
            self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not _END:
            if self._error is not None:
                continue  # keep taking pieces, so that the producer is not left waiting
            try:
                with self.clock.time("write"):
                    self.write(piece)
            except BaseException as error:
                self._error = error
