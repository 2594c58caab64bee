"""The overview's numbers: rates over all answers, gaps shown as gaps, intervals as the literature has them.

Every test runs on SQLite and on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from fastrm_monitor.dashboard import charts, traffic
from fastrm_monitor.dashboard.traffic import Bucket, Loss, Totals
from fastrm_monitor.records.store import Store

NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


@pytest.fixture
def store(any_store_url: str) -> Iterator[Store]:
    with Store(any_store_url) as opened:
        yield opened


def answers(when: datetime, seen: int, flagged: int, confidence: float) -> list[tuple[datetime, str, str, float]]:
    """What a server counts of answers that were all scored."""
    return [
        (when, "seen", "", seen),
        (when, "scored", "", seen),
        (when, "flagged", "low_confidence", flagged),
        (when, "confidence_sum", "", seen * confidence),
    ]


def series(store: Store, step: traffic.Step, since: datetime | None = None) -> list[Bucket]:
    with store.session() as session:
        return traffic.series(session, step, since)


def totals(store: Store, since: datetime | None = None) -> Totals:
    with store.session() as session:
        return traffic.totals(session, since)


def test_totals_add_up_over_servers_and_reasons(store: Store) -> None:
    """Counts of two servers, several minutes and several reasons are one sum each."""
    store.add_traffic("one", answers(NOON, 8, 2, 0.5))
    store.add_traffic("two", answers(NOON, 4, 1, 0.25))
    store.add_traffic("two", [(NOON + timedelta(minutes=1), "flagged", "high_map_entropy", 3)])
    found = totals(store)
    assert (found.seen, found.scored, found.flagged, found.confidence_sum) == (12, 12, 6, 5.0)
    assert (found.flag_rate, found.mean_confidence) == (0.5, 5 / 12)


def test_nothing_counted(store: Store) -> None:
    """Without traffic there are zeros, and no rate is made up."""
    found = totals(store)
    assert found == Totals(0, 0, 0, 0, 0, 0, 0.0, ())
    assert (found.flag_rate, found.mean_confidence) == (None, None)
    with store.session() as session:
        assert traffic.span(session) is None
        assert traffic.series(session, "hour") == []


def test_losses_by_reason(store: Store) -> None:
    """Everything that was not done is listed with its reason: not scored, not stored, failed, the largest first."""
    store.add_traffic(
        "one",
        [
            (NOON, "failed", "telemetry", 9),
            (NOON, "dropped", "shutdown", 1),
            (NOON, "dropped", "queue_full", 7),
            (NOON, "skipped", "no_image", 2),
            (NOON, "failed", "store", 0),
            (NOON, "sampled_out", "", 50),
        ],
    )
    store.add_traffic("two", [(NOON, "dropped", "shutdown", 2)])
    found = totals(store)
    assert found.losses == (
        Loss("skipped", "no_image", 2),
        Loss("dropped", "queue_full", 7),
        Loss("dropped", "shutdown", 3),
        Loss("failed", "telemetry", 9),
    )
    assert (found.dropped, found.skipped, found.sampled_out) == (10, 2, 50)


def test_since(store: Store) -> None:
    """A span of time counts from its first minute on, and nothing before it."""
    store.add_traffic("one", answers(NOON - timedelta(minutes=1), 100, 100, 1.0) + answers(NOON, 3, 1, 0.5))
    assert (totals(store, NOON).seen, totals(store).seen) == (3, 103)
    assert [bucket.seen for bucket in series(store, "minute", NOON)] == [3]
    with store.session() as session:
        assert traffic.span(session, NOON) == (NOON, NOON)
        assert traffic.span(session) == (NOON - timedelta(minutes=1), NOON)


STEPS = {
    "minute": [NOON, NOON + timedelta(minutes=1)],
    "hour": [NOON],
    "day": [datetime(2026, 1, 2, tzinfo=UTC)],
}


@pytest.mark.parametrize("step", STEPS)
def test_steps_begin_at_full_minutes_hours_and_days(store: Store, step: traffic.Step) -> None:
    """Each step begins where a clock in UTC begins it, and has the sums of its minutes."""
    store.add_traffic("one", answers(NOON, 1, 0, 0.5) + answers(NOON + timedelta(minutes=1), 3, 2, 0.5))
    found = series(store, step)
    assert [bucket.start for bucket in found] == STEPS[step]
    assert [sum(getattr(bucket, name) for bucket in found) for name in ("seen", "scored", "flagged")] == [4, 4, 2]
    assert sum(bucket.confidence_sum for bucket in found) == 2.0


def test_days_are_those_of_utc(store: Store) -> None:
    """An hour before midnight in another zone belongs to the day it has in UTC."""
    late = datetime(2026, 1, 1, 23, 30, tzinfo=timezone(timedelta(hours=-5)))
    store.add_traffic("one", answers(late, 1, 0, 0.5))
    assert [bucket.start for bucket in series(store, "day")] == [datetime(2026, 1, 2, tzinfo=UTC)]
    assert [bucket.start for bucket in series(store, "hour")] == [datetime(2026, 1, 2, 4, tzinfo=UTC)]


def test_steps_without_traffic_are_zeros(store: Store) -> None:
    """A server that stood still for two hours leaves two empty steps, not a line drawn across them."""
    store.add_traffic("one", answers(NOON, 2, 1, 0.5) + answers(NOON + timedelta(hours=3), 4, 0, 0.5))
    assert series(store, "hour") == [
        Bucket(NOON, 2, 2, 1, 1.0),
        Bucket(NOON + timedelta(hours=1), 0, 0, 0, 0.0),
        Bucket(NOON + timedelta(hours=2), 0, 0, 0, 0.0),
        Bucket(NOON + timedelta(hours=3), 4, 4, 0, 2.0),
    ]


def test_losses_alone_make_no_step(store: Store) -> None:
    """A minute in which only something failed has no rate and is no point of the curve."""
    store.add_traffic("one", [*answers(NOON, 2, 1, 0.5), (NOON + timedelta(minutes=1), "failed", "store", 1)])
    assert [bucket.start for bucket in series(store, "minute")] == [NOON]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (timedelta(0), "minute"),
        (timedelta(hours=3), "minute"),
        (timedelta(hours=4), "hour"),
        (timedelta(days=8), "hour"),
        (timedelta(days=9), "day"),
        (timedelta(days=900), "day"),
    ],
)
def test_step_fits_the_span(length: timedelta, expected: str) -> None:
    """Hours are shown by the minute, a week by the hour, months by the day."""
    assert traffic.step_for(length) == expected


# Newcombe (1998), Two-sided confidence intervals for the single proportion, Statistics in Medicine 17, table I.
PUBLISHED = {
    (81, 263): (0.2553, 0.3662),
    (15, 148): (0.0624, 0.1605),
    (0, 20): (0.0, 0.1611),
    (1, 29): (0.0061, 0.1718),
}


@pytest.mark.parametrize(("counts", "expected"), PUBLISHED.items())
def test_wilson_interval_as_published(counts: tuple[int, int], expected: tuple[float, float]) -> None:
    """The interval is the one that statistics books print."""
    assert traffic.wilson(*counts) == pytest.approx(expected, abs=5e-5)


def test_wilson_interval_at_the_ends() -> None:
    """All and none stay within 0..1 and mirror each other; without tries there is no interval."""
    none, everything = traffic.wilson(0, 7), traffic.wilson(7, 7)
    assert none is not None
    assert everything is not None
    assert none[0] == 0.0
    assert everything[1] == 1.0
    assert none[1] == pytest.approx(1 - everything[0])
    assert traffic.wilson(0, 0) is None
    assert traffic.wilson(9, 7) == everything


# --- curves --------------------------------------------------------------------------------------------------------

GAP = [
    Bucket(NOON, 263, 263, 81, 131.5),
    Bucket(NOON + timedelta(hours=1), 5, 0, 0, 0.0),
    Bucket(NOON + timedelta(hours=2), 20, 20, 0, 5.0),
]


def test_curve_of_the_flag_rate() -> None:
    """Each step has its rate, its interval and its counts; a step in which nothing was scored has none, and no zero."""
    drawn = charts.flag_rate(GAP, "hour", "#d98a00").to_dict()
    (rows,) = drawn["datasets"].values()
    assert [row["time"] for row in rows] == [bucket.start.isoformat() for bucket in GAP]
    assert [row["rate"] for row in rows] == [81 / 263, None, 0.0]
    assert [(row["low"], row["high"]) for row in rows] == [
        pytest.approx((0.2553, 0.3662), abs=5e-5),
        (None, None),
        pytest.approx((0.0, 0.1611), abs=5e-5),
    ]
    band, line, points = drawn["layer"]
    assert (band["encoding"]["y"]["field"], band["encoding"]["y2"]["field"]) == ("low", "high")
    assert [layer["encoding"]["y"]["field"] for layer in (line, points)] == ["rate", "rate"]
    assert [layer["encoding"]["x"]["scale"]["type"] for layer in (band, line, points)] == ["utc"] * 3


def test_curve_of_the_confidence() -> None:
    """Each step has its mean over the scored answers, on an axis from 0 to 1: noise must not look like drift."""
    drawn = charts.mean_confidence(GAP, "hour", "#4c7df0").to_dict()
    (rows,) = drawn["datasets"].values()
    assert [row["mean"] for row in rows] == [0.5, None, 0.25]
    assert [layer["encoding"]["y"]["scale"]["domain"] for layer in drawn["layer"]] == [[0, 1], [0, 1]]
