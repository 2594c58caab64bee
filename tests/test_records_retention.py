"""What the writer's thread deletes and adds up: the old only, in portions, and never at the cost of serving."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, make_url, select

from fastrm_monitor.dashboard import traffic
from fastrm_monitor.records import retention
from fastrm_monitor.records.counters import Counters
from fastrm_monitor.records.models import Case, Traffic
from fastrm_monitor.records.outbox import Outbox
from fastrm_monitor.records.policies import PolicyWatch
from fastrm_monitor.records.retention import Retention, compact
from fastrm_monitor.records.silence import SILENCE_SECONDS
from fastrm_monitor.records.store import Store
from tests.servers import serve, serving
from tests.stalling import stalling_proxy

NOW = datetime.now(UTC)


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def keeper(store: Store, clock: Clock, counted: Counter[str], days: float = 30, **changes: bool) -> Retention:
    settings = {"keep_labelled": False, **changes}
    return Retention(
        store, days=days, counted=lambda name, count: counted.update({name: count}), clock=clock, **settings
    )


def requests(store: Store) -> list[str]:
    with store.session() as session:
        return sorted(session.scalars(select(Case.request_id)))


@pytest.fixture
def aged(any_store_url: str, make_case: Callable[..., Case]) -> Store:
    """Cases of 1, 29, 31 and 100 days."""
    store = Store(any_store_url)
    store.add([make_case(days, created_at=NOW - timedelta(days=days)) for days in (1, 29, 31, 100)])
    return store


def test_old_cases_go_once_an_hour(aged: Store, make_case: Callable[..., Case]) -> None:
    """After a minute of life, and then once an hour, what is too old goes; it is counted."""
    clock, counted = Clock(), Counter[str]()
    kept = keeper(aged, clock, counted)
    kept.turn()
    assert len(requests(aged)) == 4
    clock.now = 61
    kept.turn()
    assert requests(aged) == ["request-1", "request-29"]
    assert counted == {"purged": 2}
    aged.add([make_case(50, created_at=NOW - timedelta(days=50))])
    clock.now += 3500
    kept.turn()
    assert "request-50" in requests(aged)
    clock.now += 200
    kept.turn()
    assert requests(aged) == ["request-1", "request-29"]
    aged.close()


def test_nothing_is_deleted_by_default(aged: Store) -> None:
    """With 0 days every case stays."""
    clock, counted = Clock(), Counter[str]()
    kept = keeper(aged, clock, counted, days=0)
    clock.now = 61
    kept.turn()
    assert len(requests(aged)) == 4
    assert not counted
    aged.close()


def test_portions(aged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn ends after a moment, and the next one goes on where it was."""
    monkeypatch.setattr("fastrm_monitor.records.purge.BATCH", 1)
    monkeypatch.setattr(retention, "_SLICE_SECONDS", -1)
    clock, counted = Clock(), Counter[str]()
    kept = keeper(aged, clock, counted)
    clock.now = 61
    kept.turn()
    assert len(requests(aged)) == 3
    kept.turn()
    assert len(requests(aged)) == 2
    kept.stop()
    kept.turn()
    aged.close()


def test_failures_are_counted(aged: Store) -> None:
    """A store that fails is left alone for a while; nothing is raised."""
    clock, counted = Clock(), Counter[str]()
    kept = keeper(aged, clock, counted)
    aged.close()
    clock.now = 61
    kept.turn()
    kept.turn()
    assert counted == {"failed": 1}
    clock.now += 601
    kept.turn()
    assert counted == {"failed": 2}


def test_two_servers(aged: Store, any_store_url: str) -> None:
    """Two servers that delete at once delete each case once."""
    clock, counted = Clock(), Counter[str]()
    with Store(any_store_url) as other:
        kept = [keeper(store, clock, counted) for store in (aged, other)]
        clock.now = 61
        for one in kept:
            one.turn()
    assert counted == {"purged": 2}
    aged.close()


def test_a_serving_monitor_keeps_its_word(store_url: str, make_case: Callable[..., Case]) -> None:
    """The settings reach the writer's thread, and what it deleted is in the counts."""
    with Store(store_url) as store:
        store.add([make_case(days, created_at=NOW - timedelta(days=days)) for days in (5, 9, 10)])
        store.review(str(make_case(10).case_id), "wrong", "rae")
    monitor = serving(store_url, retention_days=7, retention_keep_labelled=True)
    assert monitor._retention is not None
    serve(monitor, [1])
    assert monitor.flush(20)
    until = time.monotonic() + 20
    while monitor.counters.snapshot().get(("purged", "retention"), 0) < 2 and time.monotonic() < until:
        monitor._retention._due = 0.0  # it looked at the start; the answer's clock stands at 1970
        time.sleep(0.05)
    monitor.close()
    assert monitor.counters.snapshot()["purged", "retention"] == 2
    with Store(store_url) as store:
        assert requests(store) == ["request-10", "request-5"]


def test_old_cases_go_without_an_answer(
    store_url: str, make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that nobody asks anything deletes what is too old all the same."""
    monkeypatch.setattr(retention, "_FIRST_SECONDS", 0.0)
    with Store(store_url) as store:
        store.add([make_case(days, created_at=NOW - timedelta(days=days)) for days in (5, 9)])
        monitor = serving(store_url, retention_days=7)
        until = time.monotonic() + 20
        while requests(store) != ["request-5"] and time.monotonic() < until:
            time.sleep(0.05)
        assert requests(store) == ["request-5"]
        monitor.close()
        assert monitor.counters.snapshot() == {("purged", "retention"): 1}


def test_silence_is_waited_for_once(postgres: Any, make_case: Callable[..., Case]) -> None:
    """When PostgreSQL does not answer whoever looks for policies or old cases, new cases do not wait for it again.

    When it answers again, it is asked again.
    """
    name = f"t{uuid.uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name}")
    own = make_url(postgres.get_uri(name))
    counters = Counters()
    lost: Counter[str] = Counter()
    with stalling_proxy(f"{own.query['host']}/.s.PGSQL.5432") as proxy:
        store = Store(f"postgresql://{own.username}@127.0.0.1:{proxy.port}/{name}", may_be_away=True)
        outbox = Outbox(store, None, counters, dropped=lambda reason, count: lost.update({reason: count}))
        watch = PolicyWatch(store, proxy_version="p", seconds=1, threshold=None, failed=lambda: None)
        watch.turn("m")
        assert not outbox.circuit_open
        proxy.stall()
        watch._next = 0.0
        watch.turn("m")
        assert outbox.circuit_open
        assert counters.snapshot()["failed", "store"] == 1
        counters.begin()
        began = time.monotonic()
        outbox.deliver([make_case(1)])
        assert time.monotonic() - began < SILENCE_SECONDS / 2
        assert lost == {"store_error": 1}
        proxy.go_on()
        time.sleep(1.1)  # the breaker's first interval
        counters.begin()
        outbox.deliver([make_case(2)])
        assert requests(store) == ["request-2"]
        assert not outbox.circuit_open
        store.close()


# --- traffic ---------------------------------------------------------------------------------------------------------


def test_minutes_become_hours(any_store_url: str) -> None:
    """Old minutes are added up by hour, server, name and reason; no sum that a page shows changes, new ones stay."""
    old = (NOW - timedelta(days=5)).replace(minute=0, second=0, microsecond=0)
    with Store(any_store_url) as store:
        for server in ("a:1", "b:2"):
            rows = [(old + timedelta(minutes=n), "seen", "", 1.0 + n) for n in range(90)]
            rows += [(old + timedelta(minutes=n), "skipped", "no_image", 1.0) for n in range(90)]
            store.add_traffic(server, [*rows, (NOW, "seen", "", 7.0)])
        with store.session() as session:
            before = traffic.totals(session), traffic.series(session, "hour"), traffic.series(session, "day")
        list(compact(store, NOW - timedelta(days=2)))
        with store.session() as session:
            after = traffic.totals(session), traffic.series(session, "hour"), traffic.series(session, "day")
            assert session.scalar(select(func.count()).select_from(Traffic)) == 2 * (2 * 2 + 1)
        assert after == before


def test_late_minutes_are_added(any_store_url: str) -> None:
    """Counts that arrive after their hour was added up are not lost, those of its first minute neither."""
    old = (NOW - timedelta(days=5)).replace(minute=0, second=0, microsecond=0)
    with Store(any_store_url) as store:
        for minute in (0, 1, 2):
            store.add_traffic("a:1", [(old + timedelta(minutes=minute), "seen", "", 10.0)])
            list(compact(store, NOW))
        assert store.totals() == {("seen", ""): 30.0}
        with store.session() as session:
            assert session.scalar(select(func.count()).select_from(Traffic)) == 2  # the hour, and the newest minute


def test_counts_written_again_days_later(any_store_url: str) -> None:
    """What a server that died left in its spool counts once, whether it is in an hour's sum, in part or not at all."""
    old = (NOW - timedelta(days=5)).replace(minute=0, second=0, microsecond=0)

    def counts(*values: float) -> list[tuple[datetime, str, str, float]]:
        return [(old + timedelta(minutes=30 * n), "seen", "", value) for n, value in enumerate(values)]

    with Store(any_store_url) as store:
        store.add_traffic("a:1", counts(3, 5, 7))
        for _ in range(2):
            list(compact(store, NOW - timedelta(days=2)))
            store.add_traffic("a:1", counts(3, 5, 7))
        assert store.totals() == {("seen", ""): 15.0}
        store.add_traffic("a:1", counts(3, 5, 8, 100))  # its last minute went on, and one more began
        list(compact(store, NOW - timedelta(days=2)))
        store.add_traffic("a:1", counts(3, 5, 8, 100))
        assert store.totals() == {("seen", ""): 116.0}
        store.add_traffic("b:2", counts(3, 5))  # another server, of which nothing is there
        assert store.totals() == {("seen", ""): 124.0}


def test_compacting_ends(any_store_url: str) -> None:
    """What stays as it is, is not looked at again: servers that are long gone cost no transaction an hour."""
    old = (NOW - timedelta(days=5)).replace(minute=0, second=0, microsecond=0)
    with Store(any_store_url) as store:
        for number in range(3):
            rows = [(old + timedelta(hours=number, minutes=minute), "seen", "", 1.0) for minute in range(3)]
            store.add_traffic(f"gone:{number}", rows)
        assert len(list(compact(store, NOW))) == 3
        assert list(compact(store, NOW)) == []
