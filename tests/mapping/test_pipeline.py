import threading
import time

import pytest

from bocage.mapping.pipeline import Clock, WriteBehind, read_ahead


def test_items_arrive_in_order_and_never_more_than_ahead_are_made():
    made = []

    def produce():
        for i in range(20):
            made.append(i)
            yield i

    seen = []
    for item in read_ahead(produce(), ahead=2, clock=Clock()):
        time.sleep(0.002)
        seen.append(item)
        # Two wait in the queue and one is held by the producer.
        assert len(made) - len(seen) <= 3
    assert seen == list(range(20))


def test_a_producers_exception_reaches_the_consumer():
    def produce():
        yield 1
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        list(read_ahead(produce(), ahead=1, clock=Clock()))


def test_a_consumer_that_stops_early_stops_the_producer():
    def produce():
        while True:
            yield 0

    before = threading.active_count()
    for _ in read_ahead(produce(), ahead=1, clock=Clock()):
        break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_writes_happen_in_order_and_a_failed_one_is_raised():
    written = []

    def write(piece):
        if piece == 3:
            raise OSError("disk full")
        written.append(piece)

    with pytest.raises(OSError, match="disk full"), WriteBehind(write, Clock()) as writer:
        for i in range(10):
            writer.put(i)
    assert written == [0, 1, 2]


def test_a_failing_producer_does_not_hang_the_writer():
    with pytest.raises(KeyError), WriteBehind(lambda _: None, Clock()) as writer:
        writer.put(1)
        raise KeyError
