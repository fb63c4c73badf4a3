"""Reading and using what was read at the same time, with few pieces between them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_END = object()


@dataclass
class _Failure:
    error: BaseException


def read_ahead(items: Iterable[T], *, ahead: int) -> Generator[T, None, None]:
    """Iterate in another thread, at most ``ahead`` items in front of the consumer.

    An exception of the producer is raised at the consumer. Closing the generator stops the
    producer and waits for it; a consumer that may fail does so with `contextlib.closing`.
    """
    iterator = iter(items)
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
