"""Between writer and store: each case is stored once, waits on disk, or is dropped and counted, whatever happens."""

import logging
import sqlite3
import threading
import time
from contextlib import closing

import pytest
from sqlalchemy import func, select

from fastrm_monitor import guard
from fastrm_monitor.records.breaker import CircuitBreaker
from fastrm_monitor.records.counters import Counters
from fastrm_monitor.records.engine import StoreAwayError
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.outbox import Outbox
from fastrm_monitor.records.spool import Spool
from fastrm_monitor.records.store import Store


class Server:
    """An outbox with a real store and spool; `down` makes the store fail, `clock` is the breaker's."""

    def __init__(self, url, folder, limit=1 << 20, **options):
        self.store, self.counters = Store(url), Counters()
        self.spool = Spool(folder, limit) if limit else None
        self.down = self.crowded = False
        self.clock, self.calls, self.lost = 1000.0, 0, []
        self._add, self._add_traffic = self.store.add, self.store.add_traffic
        self.store.add, self.store.add_traffic = self.add, self.add_traffic
        self.outbox = Outbox(
            self.store,
            self.spool,
            self.counters,
            dropped=self.dropped,
            crowded=lambda: self.crowded,
            breaker=CircuitBreaker(clock=lambda: self.clock, draw=lambda: 0.0),
            **options,
        )

    def add(self, cases, patience=None):
        self.calls += 1
        if self.down:
            raise StoreAwayError("The store is away.")
        return self._add(cases, patience)

    def add_traffic(self, *arguments):
        self.calls += 1
        if self.down:
            raise StoreAwayError("The store is away.")
        self._add_traffic(*arguments)

    def dropped(self, reason, count):
        self.lost.append((reason, count))
        self.counters.end("dropped", reason, count)

    def deliver(self, *cases):
        for _ in cases:
            with self.counters.together():
                self.counters.add("seen")
                self.counters.add("scored")
                self.counters.begin()
        self.outbox.deliver(cases)
        assert self.counters.balance().holds

    def recover(self):
        self.down = False
        self.clock += 100
        self.outbox.idle()

    def stored(self):
        with self.store.session() as session:
            return sorted(session.scalars(select(Case.case_id)))

    @property
    def balance(self):
        found = self.counters.balance()
        assert found.holds
        return found.stored, found.dropped, found.pending


@pytest.fixture
def make(tmp_path, store_url):
    """Make a server; all share a store and a spool, and are closed at the end."""
    made = []

    def make(**options):
        made.append(Server(store_url, tmp_path / "spool", **options))
        return made[-1]

    yield make
    for server in made:
        server.outbox.close()
        server.store.close()


@pytest.fixture(autouse=True)
def unlimited_log(monkeypatch):
    """Each test logs as if nothing had been logged before."""
    monkeypatch.setattr(guard, "_last_logged", {})


def ids(cases):
    return sorted(case.case_id for case in cases)


def test_a_store_that_works(make, make_case):
    """Cases are stored at once, and nothing is left behind on the disk."""
    server = make()
    cases = [make_case(n) for n in range(3)]
    server.deliver(*cases)
    assert (server.stored(), server.balance) == (ids(cases), (3, 0, 0))
    assert not server.spool.folder.exists()


def test_a_failure_is_tried_again(make, make_case, monkeypatch):
    """A failure that passes within two tries more costs nothing."""
    server = make()
    failing = iter([True, True, False])
    add = server._add

    def sometimes(cases, patience):
        if next(failing):
            raise StoreAwayError("Just now.")
        return add(cases, patience)

    server._add = sometimes
    server.deliver(make_case(1))
    assert (server.calls, server.balance) == (3, (1, 0, 0))
    assert not server.outbox.circuit_open


def test_an_outage(make, make_case, caplog):
    """In an outage cases wait on disk, the store is asked ever less often, and the log has two lines in all."""
    server = make()
    server.down = True
    cases = [make_case(n) for n in range(12)]
    for case in cases:
        server.deliver(case)
    assert server.calls == 9  # three tries of the first three, then none
    assert server.outbox.circuit_open
    assert (server.balance, server.outbox.spooled) == ((0, 0, 12), 12)
    server.clock += 1.5
    for _ in range(3):
        server.outbox.idle()
    assert server.calls == 10
    server.recover()
    assert (server.stored(), server.balance, server.outbox.spooled) == (ids(cases), (12, 0, 0), 0)
    assert not server.outbox.circuit_open
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 2
    assert "the store is tried again later: The store is away." in lines[0]
    assert lines[1] == "fastrm-monitor: the store is back; 12 cases wait to be written"
    counts = server.counters.snapshot()
    assert (counts["failed", "store"], counts["failed", "store_circuit"]) == (4, 1)


def test_a_replay_that_fails_keeps_what_waits(make, make_case):
    """When the store goes away again while what waits is written, it goes on waiting, and is written later."""
    server = make()
    server.down = True
    cases = [make_case(n) for n in range(3)]
    server.deliver(*cases)
    server.down = False
    add = server._add

    def away(cases, patience):
        raise StoreAwayError("Again.")

    server._add = away
    server.outbox.idle()
    assert (server.balance, server.outbox.spooled) == ((0, 0, 3), 3)
    server._add = add
    server.recover()
    assert (server.balance, server.stored()) == ((3, 0, 0), ids(cases))


def test_new_cases_go_on_while_old_ones_wait(make, make_case):
    """A case that comes when the store is back is stored, whatever is still in the spool."""
    server = make()
    server.down = True
    server.deliver(make_case(1))
    server.down = False
    server.deliver(make_case(2))
    assert server.balance == (1, 0, 1)
    server.outbox.idle()
    assert server.balance == (2, 0, 0)


@pytest.mark.parametrize("spooled", [False, True])
def test_one_bad_case_costs_itself(make, make_case, spooled):
    """A case that the database refuses is dropped and counted, and the other cases of its batch are stored."""
    server = make()
    cases = [make_case(n, **({"answer": None} if n == 2 else {})) for n in range(5)]
    server.down = spooled
    server.deliver(*cases)
    server.recover()
    assert server.stored() == ids(cases[:2] + cases[3:])
    assert (server.balance, server.lost) == ((4, 1, 0), [("store_error", 1)])


def test_a_mistake_of_ours_costs_no_other_case(make, make_case, monkeypatch):
    """An error that no database made is no outage: its case is dropped, and nothing waits for ever."""
    server = make()
    add = server._add

    def broken(cases, patience):
        if any(case.case_id == make_case(1).case_id for case in cases):
            raise RuntimeError("injected")
        return add(cases, patience)

    server._add = broken
    server.deliver(*(make_case(n) for n in range(3)))
    assert (server.balance, server.outbox.circuit_open, server.outbox.spooled) == ((2, 1, 0), False, 0)


def test_an_outage_among_single_cases(make, make_case):
    """When the store goes away while the cases of a refused batch are tried one by one, the rest waits."""
    server = make()
    cases = [make_case(n, **({"answer": None} if n == 1 else {})) for n in range(5)]
    add = server._add

    def going(cases, patience):
        if len(cases) == 1 and server.calls > 3:
            raise StoreAwayError("Gone.")
        return add(cases, patience)

    server._add = going
    server.deliver(*cases)
    assert server.balance == (1, 1, 3)
    server._add = add
    server.recover()
    assert (server.balance, len(server.stored())) == ((4, 1, 0), 4)


def test_without_a_spool(make, make_case):
    """Where there shall be no spool, an outage costs its cases, counted."""
    server = make(limit=0)
    server.down = True
    server.deliver(make_case(1), make_case(2))
    assert (server.balance, server.lost) == ((0, 2, 0), [("store_error", 1), ("store_error", 1)])


def test_a_spool_that_cannot_be_written(make, make_case, tmp_path, caplog):
    """With store and spool away, cases are dropped and counted, one line is logged, and nothing is raised."""
    (tmp_path / "spool").write_text("in the way")
    server = make()
    server.down = True
    for n in range(3):
        server.deliver(make_case(n))
    assert (server.balance, server.counters.snapshot()["failed", "spool"]) == ((0, 3, 0), 3)
    assert sum("the spool cannot be written" in record.getMessage() for record in caplog.records) == 1


def test_a_full_spool(make, make_case):
    """Beyond the cap unflagged cases go first and the newest of them first, counted as "spool_full"."""
    size = len(make_case(0).pictures[0].content) + 2000
    server = make(limit=4 * size)
    server.down = True
    for n in range(12):
        server.deliver(make_case(n, flagged=n >= 6))
    stored, dropped, pending = server.balance
    assert (stored, dropped + pending) == (0, 12)
    assert {reason for reason, _ in server.lost} == {"spool_full"}
    server.recover()
    flagged = ids(make_case(n) for n in range(6, 6 + pending))
    assert server.stored() == flagged


def test_what_another_process_left(make, make_case):
    """The cases and counts of a process that ended while the store was away are written by the next, once."""
    first = make()
    first.down = True
    cases = [make_case(n) for n in range(4)]
    first.deliver(*cases)
    first.outbox.close()
    second, third = make(), make()
    second.outbox.idle()
    third.outbox.idle()
    found = second.counters.balance()
    assert (found.adopted, found.stored, found.pending, found.holds) == (4, 4, 0, True)
    assert third.counters.balance().adopted == 0
    assert second.stored() == ids(cases)
    for server in (second, third):
        server.outbox.close()
    totals = second.store.totals()
    assert totals["seen", ""] == totals["scored", ""] == totals["stored", ""] == 4
    assert list(first.spool.folder.iterdir()) == []


def test_a_crash_between_commit_and_deletion(make, make_case, monkeypatch):
    """What was committed and not yet deleted from the spool, cases and counts, is not doubled by the next process."""
    first = make()
    first.down = True
    cases = [make_case(n) for n in range(4)]
    first.deliver(*cases)
    first.outbox.save_traffic()
    first.down = False
    first.clock += 100
    monkeypatch.setattr(first.spool, "drop_traffic", lambda: None)
    monkeypatch.setattr(first.spool, "done", lambda lent: 1 / 0)
    first.outbox.write_traffic()
    with pytest.raises(ZeroDivisionError):  # here it dies, with everything committed
        first.outbox._replay()
    assert first.stored() == ids(cases)
    for lock in first.spool._locks.values():
        lock.release()
    second = make()
    second.outbox.idle()
    second.outbox.close()
    assert second.stored() == ids(cases)
    totals = second.store.totals()
    assert totals["seen", ""] == totals["scored", ""] == totals["stored", ""] == 4


def test_counts_survive_an_outage_and_a_restart(make, make_case):
    """Counts that were in the spool, in memory and in the database at once are the same number in the end."""
    first = make()
    first.counters.add("seen", value=3)
    first.outbox.write_traffic()
    first.down = True
    first.counters.add("seen", value=4)
    first.outbox.write_traffic()
    first.outbox.save_traffic()
    first.down = False
    first.clock += 100
    first.outbox.write_traffic()
    assert first.store.totals()["seen", ""] == 7
    first.down = True
    first.counters.add("seen", value=5)
    first.outbox.close()
    second = make()
    second.outbox.idle()
    assert second.store.totals()["seen", ""] == 12


def test_hurry_asks_once(make, make_case):
    """When the process ends, a store that fails is asked once, without waiting, and the rest goes to the spool."""
    server = make()
    server.down = True
    server.outbox.hurry()
    began = time.monotonic()
    for n in range(10):
        server.deliver(make_case(n))
    assert time.monotonic() - began < 0.5
    assert (server.calls, server.balance) == (1, (0, 0, 10))


def test_hurry_interrupts_the_wait_between_tries(make, make_case, monkeypatch):
    """A delivery that waits for its next try when the end begins does not go on waiting."""
    server = make()
    server.down = True
    monkeypatch.setattr(server.outbox._health._retry, "wait", lambda state: 30.0)
    threading.Timer(0.1, server.outbox.hurry).start()
    began = time.monotonic()
    server.deliver(make_case(1))
    assert time.monotonic() - began < 5
    assert (server.calls, server.balance) == (2, (0, 0, 1))


def test_a_hanging_delivery_is_rescued(make, make_case):
    """Cases whose delivery hangs are spooled by `rescue`; when the delivery does end, they are not counted twice."""
    server = make()
    inside, leave = threading.Event(), threading.Event()
    add = server._add

    def hanging(cases, patience):
        inside.set()
        leave.wait(10)
        return add(cases, patience)

    server._add = hanging
    cases = [make_case(n) for n in range(3)]
    thread = threading.Thread(target=server.deliver, args=cases)
    thread.start()
    assert inside.wait(5)
    server.outbox.hurry()
    server.outbox.rescue()
    assert (server.balance, server.outbox.spooled) == ((0, 0, 3), 3)
    leave.set()
    thread.join()
    assert (server.balance, server.stored()) == ((0, 0, 3), ids(cases))
    server.outbox.close()
    second = make()
    second.outbox.idle()
    assert (second.stored(), second.counters.balance().stored) == (ids(cases), 3)


def test_a_rescue_takes_over_what_another_thread_was_spooling(make, make_case):
    """When `rescue` returns, every case is on the disk once, also those that another thread was just putting there."""
    server = make()
    server.down = True
    add, second = server.spool.add, threading.Event()

    def slow(payload, *, flagged):
        if threading.current_thread() is thread and server.spool.waiting:
            second.set()
            time.sleep(0.3)
        return add(payload, flagged=flagged)

    server.spool.add = slow
    cases = [make_case(n) for n in range(10)]
    thread = threading.Thread(target=server.deliver, args=cases)
    thread.start()
    assert second.wait(5)
    server.outbox.rescue()
    assert (server.outbox.spooled, server.balance) == (10, (0, 0, 10))
    thread.join()
    assert (server.outbox.spooled, server.balance) == (10, (0, 0, 10))


def test_a_replay_that_outlasts_the_end_is_counted_once(make, make_case):
    """Cases that are still being replayed when the server lets go of its spool are counted by whoever has them then."""
    first = make()
    first.down = True
    first.deliver(*[make_case(n) for n in range(3)])
    inside, leave, add = threading.Event(), threading.Event(), first._add

    def hanging(cases, patience):
        inside.set()
        leave.wait(10)
        return add(cases, patience)

    first._add, first.down = hanging, False
    first.clock += 100
    thread = threading.Thread(target=first.outbox.idle)
    thread.start()
    assert inside.wait(5)
    first.outbox.close()
    leave.set()
    thread.join()
    assert (len(first.stored()), first.balance) == (3, (0, 0, 3))
    second = make()
    second.outbox.idle()
    assert (len(second.stored()), second.balance) == (3, (3, 0, 0))
    for server in (first, second):
        server.outbox.close()
    assert second.store.totals()["stored", ""] == 3


def test_counts_of_others_are_tried_again_soon(make, make_case):
    """Counts of others that could not be written when they were found are written as soon as the store is back."""
    first = make()
    first.down = True
    first.deliver(make_case(1))
    first.outbox.close()
    second = make()
    second.down = True
    second.outbox.idle()
    assert not second.outbox.settled
    second.recover()
    assert second.outbox.settled
    assert second.store.totals()["scored", ""] == 1


def test_a_slow_store_does_not_fill_the_queue(make, make_case, monkeypatch):
    """While more is waiting than a slow store can take, batches go to the spool; it is asked again afterwards."""
    monkeypatch.setattr("fastrm_monitor.records.outbox._SLOW_SECONDS", -1.0)
    server = make()
    server.deliver(make_case(1))
    server.crowded = True
    server.deliver(make_case(2))
    server.deliver(make_case(3))
    assert (server.balance, server.calls) == ((1, 0, 2), 1)
    server.outbox.idle()
    assert server.balance == (1, 0, 2)
    server.crowded = False
    server.outbox.idle()
    assert server.balance == (3, 0, 0)


def test_a_locked_sqlite_file(make, make_case, store_url):
    """While somebody holds SQLite's write lock a delivery takes a second, not five, and its cases wait on disk."""
    server = make()
    with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        server.deliver(make_case(1))
        assert time.monotonic() - began < 2.5
        assert server.balance == (0, 0, 1)
        other.execute("ROLLBACK")
    server.recover()
    assert server.balance == (1, 0, 0)


def test_a_damaged_record_is_counted(make, make_case):
    """A record of the spool that cannot be read is dropped as "spool_damaged", and the others are stored."""
    server = make()
    server.down = True
    server.deliver(make_case(1))
    with server.counters.together():
        server.counters.add("seen")
        server.counters.add("scored")
        server.counters.begin()
    server.spool.add(b"no case", flagged=True)
    server.recover()
    assert (server.balance, server.lost) == ((1, 1, 0), [("spool_damaged", 1)])


def test_pictures_and_maps_come_through_the_spool(make, make_case):
    """A case that was in the spool has the same rows in the database as one that was not."""
    server = make()
    server.down = True
    server.deliver(make_case(1))
    server.recover()
    with server.store.session() as session:
        read = session.scalars(select(Case)).one()
        (picture,) = read.pictures
        assert session.scalar(select(func.count()).select_from(Case)) == 1
    expected = make_case(1).pictures[0]
    assert (picture.content, picture.relevance, picture.region) == (
        expected.content,
        expected.relevance,
        expected.region,
    )
    assert (read.verdict, read.version, read.features) == (None, 0, make_case(1).features)
