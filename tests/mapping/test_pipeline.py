import threading
import time

import pytest

from bocage.mapping.pipeline import read_ahead


def test_items_arrive_in_order_and_never_more_than_ahead_are_made():
    made = []

    def produce():
        for i in range(20):
            made.append(i)
            yield i

    seen = []
    for item in read_ahead(produce(), ahead=2):
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
        list(read_ahead(produce(), ahead=1))


def test_nothing_to_read_is_no_item():
    assert list(read_ahead(iter(()), ahead=1)) == []


def test_a_consumer_that_stops_early_stops_the_producer():
    def produce():
        while True:
            yield 0

    before = threading.active_count()
    for _ in read_ahead(produce(), ahead=1):
        break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
