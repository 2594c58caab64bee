"""The counts: nothing is counted twice, nothing is lost, neither between threads nor between minutes."""

import os
import threading
from datetime import UTC, datetime

import pytest

from fastrm_monitor.records.counters import NAMES, Balance, Counters
from fastrm_monitor.records.store import Store
from tests.forking import forks, in_child

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


def rows_of(counters):
    """The unsent rows of a process whose clock never went back."""
    return [row for _, rows in counters.unsent() for row in rows]


def test_unsent_by_minute():
    """What the store lacks comes by UTC minute with its whole count, until the store has it; totals stay."""
    clock = Clock(FIRST.replace(second=59, microsecond=999))
    counters = Counters(clock)
    counters.add("seen")
    clock.moment = SECOND
    counters.add("seen", value=2)
    counters.add("failed", "store")
    ((server, rows),) = counters.unsent()
    assert rows == [(FIRST, "seen", "", 1.0), (SECOND, "seen", "", 2.0), (SECOND, "failed", "store", 1.0)]
    counters.sent(server, rows)
    assert counters.unsent() == []
    counters.add("seen")
    assert counters.unsent() == [(server, [(SECOND, "seen", "", 3.0)])]
    assert counters.snapshot() == {("seen", ""): 4.0, ("failed", "store"): 1.0}


def test_what_came_while_it_was_written_is_not_lost():
    """A count that is added between reading the rows and writing them comes again, with the whole count."""
    counters = Counters(Clock())
    counters.add("seen")
    ((server, rows),) = counters.unsent()
    counters.add("seen")
    counters.sent(server, rows)
    assert counters.unsent() == [(server, [(FIRST, "seen", "", 2.0)])]


def test_a_clock_that_is_set_back_loses_nothing():
    """Counts of a minute that was written and forgotten, and comes again, are those of another name: none is hidden."""
    clock = Clock(FIRST)
    counters = Counters(clock)
    counters.add("seen", value=5)
    clock.moment = SECOND
    counters.add("seen", value=7)
    ((before, rows),) = counters.unsent()
    counters.sent(before, rows)
    clock.moment = FIRST
    counters.add("seen", value=2)
    counters.add("seen", value=1)
    ((after, rows),) = counters.unsent()
    assert rows == [(FIRST, "seen", "", 3.0)]
    assert before != after


def test_names_are_of_one_process_alone():
    """Two counters of the same process, as two processes with a pid that came again, write under different names."""
    first, second = Counters(Clock()), Counters(Clock())
    first.add("seen")
    second.add("seen")
    ((one, _),), ((other, _),) = first.unsent(), second.unsent()
    assert one != other
    assert one.split(":")[1] == other.split(":")[1] == str(os.getpid())


def test_balance_follows_every_answer():
    """An answer is on its way from its beginning to its end; adopted ones count beside the scored."""
    counters = Counters()
    for name in ("seen", "seen", "seen"):
        counters.add(name)
    counters.add("skipped", "no_image")
    for _ in range(2):
        with counters.together():
            counters.add("scored")
            counters.begin()
    counters.end("dropped", "queue_full")
    counters.adopt(3)
    counters.end("stored", count=2)
    counters.end("stored", count=0)
    assert counters.balance() == Balance(
        seen=3, scored=2, skipped=1, adopted=3, stored=2, sampled_out=0, dropped=1, pending=2
    )
    assert counters.balance().holds
    counters.add("stored")  # without its end
    assert not counters.balance().holds


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
    assert rows_of(counters) == [(FIRST, "confidence_sum", "", 0.5)]


def test_unsent_minutes_are_bounded_without_loss():
    """While nobody takes them for three days the minutes kept stay bounded, and their sum is whole."""
    clock = Clock()
    counters = Counters(clock)
    counters.add("seen", value=100)
    ((server, rows),) = counters.unsent()
    counters.sent(server, rows)  # the store has part of the first minute: adding it to another would count it twice
    start = FIRST.timestamp()
    for minute in range(3 * 1440):
        clock.moment = datetime.fromtimestamp(start + 60 * minute, UTC)
        counters.add("seen")
    rows = rows_of(counters)
    assert len(rows) == 1440
    assert rows[0] == (FIRST, "seen", "", 101.0)
    assert sum(value for *_, value in rows) == 100 + 3 * 1440
    assert rows[-1] == (clock.moment, "seen", "", 1.0)


def test_threads_lose_no_count(store_url):
    """Counts of eight threads, written meanwhile and now and then without the word that they were, add up exactly."""
    counters, stop = Counters(), threading.Event()
    with Store(store_url) as store:

        def write():
            turn = 0
            while not stop.is_set():
                turn += 1
                for server, rows in counters.unsent():
                    store.add_traffic(server, rows)
                    if turn % 3:
                        counters.sent(server, rows)

        def add():
            for _ in range(2000):
                counters.add("seen")

        writer = threading.Thread(target=write)
        adders = [threading.Thread(target=add) for _ in range(8)]
        for thread in (writer, *adders):
            thread.start()
        for thread in adders:
            thread.join()
        stop.set()
        writer.join()
        for server, rows in counters.unsent():
            store.add_traffic(server, rows)
        assert counters.snapshot() == {("seen", ""): 16000.0}
        assert store.totals() == counters.snapshot()


@forks
def test_child_begins_at_zero():
    """A forked child does not write its parent's counts a second time; the parent keeps them."""
    counters = Counters(Clock())
    counters.add("seen")

    def count():
        counters.add("scored")
        return counters.snapshot(), rows_of(counters), len(counters.unsent())

    assert in_child(count) == repr(({("scored", ""): 1.0}, [(FIRST, "scored", "", 1.0)], 1))
    assert rows_of(counters) == [(FIRST, "seen", "", 1.0)]


def test_rows_are_what_the_store_takes(store_url):
    """What is written to a store is what its totals say, however often it is written."""
    counters = Counters()
    counters.add("seen")
    counters.add("dropped", "queue_full", 3)
    with Store(store_url) as store:
        for _ in range(2):
            for server, rows in counters.unsent():
                store.add_traffic(server, rows)
        assert store.totals() == counters.snapshot()
