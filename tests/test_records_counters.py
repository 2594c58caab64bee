"""The counts: nothing is counted twice, nothing is lost, neither between threads nor between minutes."""

import os
import threading
from datetime import UTC, datetime

import pytest

from fastrm_monitor.records.counters import NAMES, Counters
from fastrm_monitor.records.store import Store
from tests.forking import forks

FIRST = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
SECOND = datetime(2026, 1, 2, 3, 5, tzinfo=UTC)


class Clock:
    """A clock that stands where it is set."""

    def __init__(self, moment=FIRST):
        self.moment = moment

    def __call__(self):
        return self.moment.timestamp()


def test_names():
    """The names that the invariants are about are there, and each fits its column."""
    invariants = {
        "seen",
        "scored",
        "skipped",
        "flagged",
        "stored",
        "sampled_out",
        "dropped",
        "failed",
        "confidence_sum",
    }
    assert invariants <= set(NAMES)
    assert max(map(len, NAMES)) <= 32


def test_totals_by_name_and_reason():
    """A snapshot has the sum of each name and reason, and is a copy."""
    counters = Counters()
    counters.add("seen")
    counters.add("seen")
    counters.add("skipped", "no_image")
    counters.add("confidence_sum", value=0.25)
    snapshot = counters.snapshot()
    assert snapshot == {("seen", ""): 2.0, ("skipped", "no_image"): 1.0, ("confidence_sum", ""): 0.25}
    snapshot.clear()
    assert counters.snapshot()[("seen", "")] == 2.0


def test_drain_by_minute():
    """A drain has what was added since the last one, each in its UTC minute; totals stay."""
    clock = Clock(FIRST.replace(second=59, microsecond=999))
    counters = Counters(clock)
    counters.add("seen")
    clock.moment = SECOND
    counters.add("seen", value=2)
    counters.add("failed", "store")
    assert counters.drain() == [(FIRST, "seen", "", 1.0), (SECOND, "seen", "", 2.0), (SECOND, "failed", "store", 1.0)]
    assert counters.drain() == []
    counters.add("seen")
    assert counters.drain() == [(SECOND, "seen", "", 1.0)]
    assert counters.snapshot() == {("seen", ""): 4.0, ("failed", "store"): 1.0}


def test_restored_rows_are_drained_again():
    """Rows that could not be written come with the next drain, added to what came since, and are in no total twice."""
    counters = Counters(Clock())
    counters.add("seen")
    rows = counters.drain()
    counters.add("seen")
    counters.restore(rows)
    assert counters.drain() == [(FIRST, "seen", "", 2.0)]
    assert counters.snapshot() == {("seen", ""): 2.0}


def test_unknown_name_is_refused():
    """A name that no invariant knows is a mistake in the code and is said to be one."""
    with pytest.raises(ValueError, match="There is no counter 'sean'; the counters are seen, scored"):
        Counters().add("sean")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_spoils_no_sum(value):
    """One answer whose confidence is not a number does not make the mean of all one."""
    counters = Counters(Clock())
    counters.add("confidence_sum", value=0.5)
    counters.add("confidence_sum", value=value)
    assert counters.snapshot() == {("confidence_sum", ""): 0.5}
    assert counters.drain() == [(FIRST, "confidence_sum", "", 0.5)]


def test_undrained_minutes_are_bounded_without_loss():
    """While nobody drains for three days the minutes kept stay bounded, and their sum is whole."""
    clock = Clock()
    counters = Counters(clock)
    start = FIRST.timestamp()
    for minute in range(3 * 1440):
        clock.moment = datetime.fromtimestamp(start + 60 * minute, UTC)
        counters.add("seen")
    rows = counters.drain()
    assert len(rows) == 1440
    assert sum(value for *_, value in rows) == 3 * 1440
    assert rows[-1] == (clock.moment, "seen", "", 1.0)


def test_threads_lose_no_count():
    """Counts of eight threads, drained and now and then put back meanwhile, add up exactly."""
    counters, drained = Counters(), []
    stop = threading.Event()

    def drain():
        turn = 0
        while not stop.is_set():
            rows = counters.drain()
            turn += 1
            counters.restore(rows) if turn % 3 == 0 else drained.extend(rows)

    def add():
        for _ in range(2000):
            counters.add("seen")

    drainer = threading.Thread(target=drain)
    adders = [threading.Thread(target=add) for _ in range(8)]
    for thread in (drainer, *adders):
        thread.start()
    for thread in adders:
        thread.join()
    stop.set()
    drainer.join()
    drained += counters.drain()
    assert counters.snapshot() == {("seen", ""): 16000.0}
    assert sum(value for *_, value in drained) == 16000.0


@forks
def test_child_begins_at_zero():
    """A forked child does not write its parent's counts a second time; the parent keeps them."""
    counters = Counters(Clock())
    counters.add("seen")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        counters.add("scored")
        os.write(write, repr((counters.snapshot(), len(counters.drain()))).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == repr(({("scored", ""): 1.0}, 1))
    os.waitpid(pid, 0)
    assert counters.drain() == [(FIRST, "seen", "", 1.0)]


def test_drained_rows_are_what_the_store_takes(tmp_path):
    """What is drained and added to a store is what its totals say."""
    counters = Counters()
    counters.add("seen")
    counters.add("dropped", "queue_full", 3)
    with Store(f"sqlite:///{tmp_path / 'store.db'}") as store:
        store.add_traffic("s", counters.drain())
        assert store.totals() == counters.snapshot()
