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


@pytest.mark.parametrize("busy", [False, True])
def test_a_producers_exception_reaches_the_consumer(busy):
    def produce():
        yield 1
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        list(read_ahead(produce(), ahead=1, clock=Clock(), cores_are_busy=busy))


def reading_threads(produce, *, cores_are_busy):
    clock = Clock()
    threads = list(read_ahead(produce, ahead=1, clock=clock, cores_are_busy=cores_are_busy))
    return [thread == threading.get_ident() for thread in threads], clock


def working():
    for _ in range(3):
        start = time.thread_time()
        while time.thread_time() < start + 0.02:
            pass
        yield threading.get_ident()


def waiting():
    for _ in range(3):
        time.sleep(0.05)
        yield threading.get_ident()


def test_beside_busy_cores_only_waiting_gets_a_thread(monkeypatch):
    # Other processes may take the core from this one, so work is known by a clock of its own.
    monkeypatch.setattr("bocage.mapping.pipeline.time.perf_counter", time.thread_time)
    here, clock = reading_threads(working(), cores_are_busy=True)
    assert here == [True, True, True]
    assert clock.read_s >= 0.05
    monkeypatch.undo()
    here, clock = reading_threads(waiting(), cores_are_busy=True)
    assert here == [True, False, False]
    assert clock.read_s >= 0.14
    assert reading_threads(working(), cores_are_busy=False)[0] == [False, False, False]


def test_nothing_to_read_is_no_item():
    assert list(read_ahead(iter(()), ahead=1, clock=Clock(), cores_are_busy=True)) == []


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
