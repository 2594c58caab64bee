"""The queue: never in the way of an answer, and every item delivered once or reported lost."""

import gc
import threading
import time
import weakref
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrm_monitor.records.counters import Counters
from fastrm_monitor.records.writer import Writer
from tests.writer.sink import Sink, stuck, writer_threads


def test_items_arrive_in_order(make, sink):
    """All items are delivered, in the order they were put, in batches of at most the given size."""
    writer = make(batch=4)
    for i in range(50):
        writer.put(i, keep=bool(i % 2))
    assert writer.flush(5)
    assert sink.delivered == list(range(50))
    assert max(map(len, sink.batches)) <= 4
    assert (sink.lost, writer.pending) == ([], 0)


def test_nothing_starts_before_the_first_put(make):
    """Making a writer, flushing it and closing it start no thread; the first put does."""
    before = len(writer_threads())
    unused, used = make(), make()
    assert unused.flush(0)
    unused.close()
    assert len(writer_threads()) == before
    used.put(1, keep=True)
    assert len(writer_threads()) == before + 1
    assert writer_threads()[-1].daemon


def test_put_never_blocks(make, sink):
    """While a delivery hangs, two thousand puts into a full queue take next to no time and are all accounted for."""
    writer = make(size=10)
    stuck(writer, sink)
    began = time.monotonic()
    for i in range(2000):
        writer.put(i, keep=bool(i % 2))
    assert time.monotonic() - began < 1.0
    assert (writer.pending, len(sink.lost)) == (11, 1990)


def test_unflagged_go_first(make, sink):
    """When the queue is full, the newest item that need not be kept goes; a keeper only among keepers, the newest."""
    writer = make(size=4)
    stuck(writer, sink)
    for item in ("a-", "b+", "c-", "d+"):
        writer.put(item, keep=item.endswith("+"))
    for item in ("e-", "f+", "g-", "h+", "i+", "j-"):
        writer.put(item, keep=item.endswith("+"))
    assert sink.lost == [(item, "queue_full") for item in ("e-", "c-", "g-", "a-", "i+", "j-")]
    sink.gate.set()
    assert writer.flush(5)
    assert sink.delivered == ["first", "b+", "d+", "f+", "h+"]


def test_bytes_are_bounded_too(make, sink):
    """Queued items and the batch in delivery never have more bytes than the bound; the newest unflagged go first."""
    writer = make(most_bytes=100)
    sink.gate.clear()
    writer.put("first", keep=False, size=40)
    assert sink.entered.wait(5)
    for item, size in (("a-", 20), ("b+", 20), ("c-", 20)):
        writer.put(item, keep=item.endswith("+"), size=size)
    assert sink.lost == []
    writer.put("d-", keep=False, size=1)
    writer.put("e+", keep=True, size=30)
    writer.put("f+", keep=True, size=11)
    writer.put("g+", keep=True, size=10)
    assert sink.lost == [(item, "queue_full") for item in ("d-", "c-", "a-", "f+")]
    sink.gate.set()
    assert writer.flush(5)
    assert sink.delivered == ["first", "b+", "e+", "g+"]
    for item in ("h-", "i+"):
        writer.put(item, keep=item.endswith("+"), size=100)
    assert writer.flush(5)
    assert sink.delivered[4:] in (["i+"], ["h-", "i+"])  # whether the first was delivered before the second came


def test_what_can_never_fit_is_too_large(make, sink):
    """An item that is larger than the whole bound drives nothing out, and is lost as "too_large"."""
    writer = make(most_bytes=100)
    stuck(writer, sink)
    writer.put("a-", keep=False, size=60)
    writer.put("b+", keep=True, size=101)
    assert sink.lost == [("b+", "too_large")]


def test_nothing_is_driven_out_in_vain(make, sink):
    """An item for which even all unflagged ones could not make room is lost alone."""
    writer = make(most_bytes=100)
    stuck(writer, sink)
    for item, size in (("a-", 20), ("b+", 70), ("c+", 40)):
        writer.put(item, keep=item.endswith("+"), size=size)
    assert sink.lost == [("c+", "queue_full")]


def test_batches_are_gathered(make, sink):
    """Items that come one by one within a moment are delivered together, and a flush does not wait for that moment."""
    writer = make()
    for number in range(10):
        writer.put(number, keep=True)
        time.sleep(0.001)
    began = time.monotonic()
    assert writer.flush(5)
    assert time.monotonic() - began < 0.04
    assert len(sink.batches) <= 3


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 6), keeps=st.lists(st.booleans(), max_size=40))
def test_drops_follow_the_rule(size, keeps):
    """For any sequence of puts, what remains and what is lost, in order, are what the rule says."""
    queue, lost = [], []  # the rule, written down as plainly as possible
    for item in enumerate(keeps):
        if len(queue) < size:
            queue.append(item)
            continue
        droppable = [queued for queued in queue if not queued[1]]
        if item[1] and droppable:
            queue.remove(droppable[-1])
            lost.append(droppable[-1])
            queue.append(item)
        else:
            lost.append(item)

    sink = Sink()
    writer = Writer(sink.deliver, size=size, flush_seconds=5, dropped=sink.dropped, batch=3)
    stuck(writer, sink)
    for item in enumerate(keeps):
        writer.put(item, keep=item[1])
    sink.gate.set()
    assert writer.flush(5)
    writer.close()
    assert sink.delivered == ["first", *queue]
    assert [item for item, _ in sink.lost] == lost


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit(1)])
def test_failed_delivery_is_reported(make, sink, error, caplog):
    """A batch whose delivery raises, whatever, is reported item by item, logged once, and the next is delivered."""
    writer = make(batch=2)
    sink.fails = error
    for i in range(4):
        writer.put(i, keep=True)
    assert writer.flush(5)
    sink.fails = None
    writer.put(4, keep=True)
    assert writer.flush(5)
    assert sink.lost == [(i, "store_error") for i in range(4)]
    assert sink.delivered == [4]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_failing_report_hurts_nobody(sink):
    """When even the report of a loss fails, put does not raise, and the thread lives on."""

    def dropped(item, reason):
        raise RuntimeError("no counters")

    writer = Writer(sink.deliver, size=1, flush_seconds=5, dropped=dropped)
    stuck(writer, sink)
    writer.put("a", keep=True)
    writer.put("b", keep=True)
    sink.fails = OSError("gone")
    sink.gate.set()
    assert writer.flush(5)
    sink.fails = None
    writer.put("c", keep=True)
    assert writer.flush(5)
    writer.close()
    assert sink.delivered == ["c"]


def test_flush_waits_no_longer_than_told(make, sink):
    """A flush of a hanging delivery is False after its time; once the delivery goes on, it is True."""
    writer = make()
    stuck(writer, sink)
    began = time.monotonic()
    assert not writer.flush(0.1)
    assert 0.05 < time.monotonic() - began < 1.0
    assert writer.pending == 1
    sink.gate.set()
    assert writer.flush()
    assert writer.pending == 0


def test_flush_does_not_wait_for_later_items(make, sink):
    """A flush returns when what was put before it is delivered, though puts never pause."""
    writer = make(size=10_000, batch=1)
    stop = threading.Event()

    def keep_putting():
        while not stop.wait(0.0005):
            writer.put("more", keep=False)

    writer._deliver = lambda items: time.sleep(0.001)
    thread = threading.Thread(target=keep_putting)
    thread.start()
    try:
        assert writer.flush(5)
        time.sleep(0.05)
        assert writer.flush(5)
    finally:
        stop.set()
        thread.join()


def test_flush_inside_a_delivery_does_not_wait_for_itself(make, sink):
    """A delivery that flushes gets False at once."""
    answers = []
    writer = make()
    writer._deliver = lambda items: answers.append(writer.flush())
    writer.put(1, keep=True)
    assert writer.flush(5)
    assert answers == [False]


def test_idle_runs_after_batches_and_in_between(make, sink):
    """`idle` runs after a batch, again about a second later without any, and once more before the thread ends."""
    writer = make(idle=sink.idle)
    writer.put(1, keep=True)
    assert writer.flush(5)
    time.sleep(1.3)
    assert 2 <= sink.idles <= 4
    before = sink.idles
    writer.close()
    assert sink.idles == before + 1


def test_failing_idle_is_logged_and_forgotten(make, sink, caplog):
    """An `idle` that raises is logged once, and deliveries go on."""

    def idle():
        raise RuntimeError("no database")

    writer = make(idle=idle, batch=1)
    for i in range(5):
        writer.put(i, keep=True)
    assert writer.flush(5)
    writer.close()
    assert sink.delivered == list(range(5))
    assert [record.getMessage() for record in caplog.records] == [
        "fastrm-monitor: the idle work failed: RuntimeError: no database"
    ]


def test_no_thread_to_be_had(make, sink, monkeypatch):
    """When the system gives no thread, put does not raise and flush does not hang; the next put tries again."""

    def start(self):
        raise RuntimeError("can't start new thread")

    writer = make()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        writer.put(1, keep=True)
        assert not writer.flush()
        assert writer.pending == 1
    writer.put(2, keep=True)
    assert writer.flush(5)
    assert sink.delivered == [1, 2]


def test_abandoned_writer_goes_away(sink):
    """A writer that nobody holds delivers what it has, then it and its thread go away."""
    before = len(writer_threads())
    writer = Writer(sink.deliver, size=10, flush_seconds=5, dropped=sink.dropped)
    sink.gate.clear()
    writer.put("a", keep=True)
    writer.put("b", keep=False)
    gone = weakref.ref(writer)
    del writer
    gc.collect()
    sink.gate.set()
    patience = time.monotonic() + 5
    while (gone() is not None or len(writer_threads()) > before) and time.monotonic() < patience:
        gc.collect()
        time.sleep(0.02)
    assert gone() is None
    assert len(writer_threads()) == before
    assert (sink.delivered, sink.lost) == (["a", "b"], [])


def test_invariant_under_faults():
    """Whatever threads, a small queue and failing deliveries do, each answer is counted exactly once.

    seen = scored + skipped and scored = stored + sampled_out + dropped + pending.
    """
    counters, random = Counters(), Random(0)

    def deliver(batch):
        time.sleep(random.random() * 0.002)
        if random.random() < 0.3:
            raise OSError("disk full")
        for keep in batch:
            counters.add("stored" if keep else "sampled_out")

    writer = Writer(
        deliver, size=8, flush_seconds=5, batch=3, dropped=lambda _, reason: counters.add("dropped", reason)
    )

    def serve(seed):
        dice = Random(seed)
        for _ in range(400):
            counters.add("seen")
            if dice.random() < 0.1:
                counters.add("skipped", "no_image")
                continue
            counters.add("scored")
            writer.put(dice.random() < 0.5, keep=dice.random() < 0.5)
            if dice.random() < 0.1:
                time.sleep(0.001)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def check(seen):
        totals = {}
        for (name, _), value in counters.snapshot().items():
            totals[name] = totals.get(name, 0) + value
        assert totals["seen"] == totals["scored"] + totals["skipped"] == seen
        ended = totals["stored"] + totals["sampled_out"] + totals["dropped"]
        assert totals["scored"] == ended + writer.pending

    assert writer.flush(10)
    check(1600)
    writer.close()
    counters.add("seen")
    counters.add("scored")
    writer.put(True, keep=True)
    check(1601)
    reasons = {reason for (name, reason) in counters.snapshot() if name == "dropped"}
    assert reasons == {"queue_full", "store_error", "shutdown"}
