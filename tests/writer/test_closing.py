"""Closing: what is queued is delivered, rescued or reported, in bounded time."""

import logging
import threading
import time
import weakref

import pytest

from fastrm_monitor.records import ending
from fastrm_monitor.records.writer import Writer
from tests.writer.sink import stuck


def test_closing_delivers_flagged_items_first(make, sink):
    """When the process ends, what must be kept goes before what need not."""
    writer = make(batch=2)
    stuck(writer, sink)
    for item in ("a-", "b+", "c-", "d+"):
        writer.put(item, keep=item.endswith("+"))
    closing = threading.Thread(target=writer.close)
    closing.start()
    while not writer._closed:
        time.sleep(0.001)
    sink.gate.set()
    closing.join()
    assert sink.delivered == ["first", "b+", "d+", "a-", "c-"]


@pytest.mark.parametrize("passed_on", [True, False])
def test_a_hanging_delivery_is_rescued(sink, caplog, passed_on):
    """When the thread hangs, the queue is handed to `rescue` in time; what that cannot save is lost to "shutdown".

    So is the batch in delivery, and the thread is told when it comes back, unless the batch was passed on before.
    """
    saved, hurried, taken = [], [], []

    def deliver(items):
        if passed_on:
            assert writer.pass_on(lambda: taken.append(items))
        sink.deliver(items)
        if not passed_on:
            assert not writer.pass_on(lambda: taken.append(items))

    def rescue(items, until):
        saved.append((items[:1], 0 < until - time.monotonic() < 0.5))
        return items[1:]

    writer = Writer(
        deliver, size=9, dropped=sink.dropped, flush_seconds=0.5, rescue=rescue, hurry=lambda: hurried.append(True)
    )
    stuck(writer, sink)
    writer.put("a-", keep=False)
    writer.put("b+", keep=True)
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 0.6
    assert hurried == [True]
    if passed_on:
        assert (saved, taken) == ([(["b+"], True)], [["first"]])
        assert sink.lost == [("a-", "shutdown")]
        assert "closed with 1 records dropped and 0 in delivery" in caplog.text
    else:
        assert (saved, taken) == ([(["first"], True)], [])
        assert sink.lost == [("b+", "shutdown"), ("a-", "shutdown")]
    sink.gate.set()
    assert writer.flush(5)
    assert (len(sink.lost), writer.pending) == (1 if passed_on else 2, 0)


def test_a_failure_after_the_rescue_is_not_counted(sink):
    """A delivery that fails after `rescue` took its batch reports none of it: it was saved."""
    rescued = []

    def rescue(items, until):
        rescued.extend(items)
        return []

    writer = Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=0.2, rescue=rescue)
    sink.fails = OSError("disk full")
    stuck(writer, sink)
    writer.close()
    sink.gate.set()
    assert writer.flush(5)
    assert (rescued, sink.lost) == (["first"], [])


def test_after_a_flush_there_is_time_to_rescue(sink):
    """However little time is left for closing, as after the flush of SIGTERM, `rescue` has its whole share of it."""
    left = []

    def rescue(items, until):
        left.append(until - time.monotonic())
        return []

    writer = Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=2.0, rescue=rescue)
    stuck(writer, sink)
    writer.close(0.7)
    assert 0.6 < left[0] <= 0.7


def test_close_delivers_then_refuses(make, sink):
    """Closing delivers what is queued; later items are lost to "shutdown"; closing again changes nothing."""
    writer = make(batch=2)
    for i in range(9):
        writer.put(i, keep=False)
    writer.close()
    writer.put(9, keep=True)
    writer.close()
    assert sink.delivered == list(range(9))
    assert sink.lost == [(9, "shutdown")]
    assert writer.flush(0)


def test_close_of_a_hanging_delivery(make, sink, caplog):
    """Closing gives up after `flush_seconds`, reports the queue and logs one line.

    The batch under way stays pending, so that nothing is counted twice when the delivery does end.
    """
    writer = make(flush_seconds=0.1)
    stuck(writer, sink)
    writer.put("a", keep=False)
    writer.put("b", keep=True)
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 1.0
    assert sink.lost == [("b", "shutdown"), ("a", "shutdown")]
    assert writer.pending == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "fastrm-monitor: closed with 2 records dropped and 1 in delivery"
    ]
    sink.gate.set()
    assert writer.flush(5)
    assert (sink.delivered, len(sink.lost), writer.pending) == (["first"], 2, 0)


def test_close_during_the_last_delivery_is_prompt(make, sink):
    """A writer closed while its last batch is under way ends with that batch, not at the next tick of its clock."""
    writer = make(idle=sink.idle)
    stuck(writer, sink)
    threading.Timer(0.05, sink.gate.set).start()
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 0.6
    assert (sink.delivered, sink.idles) == (["first"], 2)


def test_a_stalled_delivery_leaves_the_time_to_the_rescue(sink):
    """What is queued behind a delivery that does not come back is rescued soon, not at the end of the wait."""
    left = []

    def rescue(items, until):
        left.append((len(items), until - time.monotonic()))
        return []

    writer = Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=4.0, rescue=rescue)
    stuck(writer, sink)
    writer.put("a", keep=True)
    writer.close()
    assert left[0][0] == 2
    assert 3.0 < left[0][1] < 4.0


def test_who_closes_second_waits_for_the_rescue(sink):
    """A thread that closes while another does returns only when everything is saved: it may end the process next."""
    saved, inside = [], threading.Event()

    def rescue(items, until):
        inside.set()
        time.sleep(0.3)
        saved.extend(items)
        return []

    writer = Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=0.2, rescue=rescue)
    stuck(writer, sink)
    writer.put("a", keep=True)
    threading.Thread(target=writer.close).start()
    assert inside.wait(5)
    writer.close()
    assert saved == ["first", "a"]


def test_each_writer_has_its_share_of_the_end(sink, monkeypatch):
    """A writer that hangs leaves another one its time: what that has is rescued, too."""
    monkeypatch.setattr(ending, "_closers", weakref.WeakSet())
    rescued, writers = [], []

    def rescue(items, until):
        assert until > time.monotonic()
        rescued.extend(items)
        return []

    for name in ("a", "b"):
        writers.append(Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=1.0, rescue=rescue))
        sink.entered.clear()
        sink.gate.clear()
        writers[-1].put(name, keep=True)
        assert sink.entered.wait(5)
    began = time.monotonic()
    ending.close_all()
    assert time.monotonic() - began < 1.3
    assert (sorted(rescued), sink.lost) == (["a", "b"], [])
