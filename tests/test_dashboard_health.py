"""The health page: every answer accounted for, servers with their last sign of life, scoring times, drift in words."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

from fastrm_monitor.dashboard import charts, vitals
from fastrm_monitor.drift.watch import Drift
from fastrm_monitor.records import export
from fastrm_monitor.records.drift import add_drift
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from tests.pages import HEALTH, opened, shown

NOW = datetime.now(UTC).replace(second=0, microsecond=0)
OLD = NOW - timedelta(hours=2)

Make = Callable[..., Case]


@pytest.fixture
def either(any_store_url: str) -> Iterator[Store]:
    """A store on SQLite, then one on PostgreSQL."""
    with Store(any_store_url) as opened:
        yield opened


def numbers(at: AppTest) -> dict[str, str]:
    return {one.label: one.value for one in at.metric}


def drifted(feature: str, ks_p: float, psi: float) -> Drift:
    return Drift(feature, ks=0.25, ks_p=ks_p, psi=psi, wasserstein=0.0625, n_reference=1000, n_window=321)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_servers_by_their_last_answer(either: Store) -> None:
    """Each server has its own sums and its last minute, and no count of another; the last one heard is first."""
    either.add_traffic("a", [(OLD, "seen", "", 5), (OLD, "dropped", "shutdown", 2), (OLD, "dropped", "queue_full", 1)])
    either.add_traffic("b", [(OLD, "seen", "", 7), (NOW, "scored", "", 4), (NOW, "failed", "store", 3)])
    with either.session() as session:
        first, second = vitals.servers(session)
        assert [one.server for one in vitals.servers(session, NOW)] == ["b"]
    assert (first.server, first.last, first.seen, first.scored, first.failed) == ("b", NOW, 7, 4, 3)
    assert (second.server, second.last, second.seen, second.dropped) == ("a", OLD, 5, 3)


def test_latencies_are_those_of_the_random_sample(either: Store, make_case: Make) -> None:
    """Flagged answers that nobody drew do not count: they are not the traffic; nor do those before the span."""
    either.add(
        [
            make_case(0, sampled=True, scoring_seconds=0.003, created_at=NOW),
            make_case(1, sampled=True, scoring_seconds=0.001, created_at=NOW, flagged=False),
            make_case(2, sampled=False, scoring_seconds=9.0, created_at=NOW),
            make_case(3, sampled=True, scoring_seconds=5.0, created_at=OLD),
        ]
    )
    with either.session() as session:
        assert vitals.latencies(session, NOW) == [0.001, 0.003]
        assert vitals.latencies(session) == [0.001, 0.003, 5.0]


def test_latencies_have_an_end(either: Store, make_case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many, the newest are taken."""
    monkeypatch.setattr(vitals, "MOST_LATENCIES", 2)
    cases = [make_case(n, sampled=True, scoring_seconds=float(n)) for n in range(4)]  # the first is the newest
    either.add(cases)
    with either.session() as session:
        assert vitals.latencies(session) == [0.0, 1.0]


def test_percentiles_by_nearest_rank() -> None:
    """The value is one that occurred, and at least the share of all values is not above it."""
    values = [float(n) for n in range(1, 11)]
    found = [vitals.percentile(values, share) for share in (0.0, 0.5, 0.91, 0.99, 1.0)]
    assert found == [1.0, 5.0, 10.0, 10.0, 10.0]
    with pytest.raises(ValueError, match="no percentile"):
        vitals.percentile([], 0.5)


def test_newest_window_of_each_server(either: Store) -> None:
    """Each server shows its own last window, however old; earlier ones are history; the confidence comes first."""
    add_drift(either, "a", "m", [drifted("confidence", 1.0, 0.0)], OLD)
    add_drift(either, "a", "m", [drifted("area", 1.0, 0.0), drifted("confidence", 0.0, 0.0)], NOW)
    add_drift(either, "b", "m", [drifted("confidence", 1.0, 0.0)], OLD)
    with either.session() as session:
        found = vitals.drift(session)
        assert [one.server for one in vitals.drift(session, NOW)] == ["a", "a"]
    assert [(one.server, one.feature, one.at) for one in found] == [
        ("a", "confidence", NOW),
        ("a", "area", NOW),
        ("b", "confidence", OLD),
    ]
    assert found[0].values == {"ks": 0.25, "ks_p": 0.0, "psi": 0.0, "wasserstein": 0.0625}
    assert (found[0].n_reference, found[0].n_window) == (1000, 321)


@pytest.mark.parametrize(
    ("feature", "ks_p", "psi", "level"),
    [
        ("confidence", 0.0009, 0.0, "shifted"),
        ("confidence", 0.001, 0.3, "look"),
        ("confidence", 1.0, 0.1, "same"),
        ("area", 0.0, 0.1, "same"),
        ("area", 0.0, 0.11, "look"),
        ("area", 1.0, 0.26, "shifted"),
    ],
)
def test_levels_are_those_of_the_alerts(feature: str, ks_p: float, psi: float, level: str) -> None:
    """The page calls what the alert rules call: the confidence by its p value, other features by their PSI."""
    view = vitals.DriftView("s", "m", feature, NOW, {"ks_p": ks_p, "psi": psi}, 1000, 1000)
    assert view.level == level


def test_bars_of_the_latency() -> None:
    """Every answer is in one bar, the bars meet each other, and one value alone can be drawn."""
    for values in ([0.001, 0.002, 0.002, 0.5], [0.003], [0.0, 0.001]):
        drawn = charts.latency(values, "#4c7df0").to_dict()
        (rows,) = drawn["datasets"].values()
        assert sum(row["answers"] for row in rows) == len(values)
        assert all(left["to"] == right["from"] for left, right in pairwise(rows))


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_empty_store(store: Store) -> None:
    """Without any server the page says so, and claims neither that all is well nor that something drifts."""
    at = opened(HEALTH)
    page = shown(at)
    assert "No server has reported" in page
    assert "No window yet" in page
    assert "Nothing was lost" not in page
    assert at.metric == []


def test_every_answer_is_accounted_for(store: Store) -> None:
    """Seen, scored, stored, sampled out, dropped and what is on its way add up, and losses have their reasons."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)  # not of when this file was read: a server falls silent
    rows = [
        (now, "seen", "", 100),
        (now, "skipped", "no_image", 10),
        (now, "scored", "", 90),
        (now, "stored", "", 20),
        (now, "sampled_out", "", 60),
        (now, "dropped", "queue_full", 3),
        (now, "failed", "telemetry", 4),
    ]
    store.add_traffic("host:1", rows)
    at = opened(HEALTH)
    assert numbers(at) == {
        "Answers seen": "100",
        "Scored": "90",
        "Stored": "20",
        "Sampled out": "60",
        "Dropped": "3",
        "On their way": "7",
    }
    assert list(at.markdown) == []  # Streamlit shows bare texts of a script, documentation among them
    for said in ("no picture in the request", "the queue was full", "telemetry", "host:1", "Reporting"):
        assert said in shown(at)


def test_quiet_server_and_hostile_name(store: Store) -> None:
    """A server that has been silent is called quiet, not dead; its name is shown and never obeyed."""
    store.add_traffic("<b>host</b>", [(OLD, "seen", "", 1)])
    page = shown(opened(HEALTH))
    assert "Quiet, 2 h ago" in page
    assert "<b>host</b>" not in page
    assert "&lt;b&gt;host&lt;/b&gt;" in page


def test_scoring_times_say_how_many(store: Store, make_case: Make) -> None:
    """Percentiles stand beside the number of answers; without a random sample the page says what is missing."""
    store.add_traffic("host:1", [(NOW, "seen", "", 1)])
    store.add([make_case(0, scoring_seconds=7.0)])
    assert "FASTRM_SAMPLE_RATE" in shown(opened(HEALTH))
    store.add([make_case(n, sampled=True, scoring_seconds=0.001 * n, created_at=NOW) for n in range(1, 101)])
    streamlit.cache_resource.clear()
    page = shown(opened(HEALTH))
    assert "n = 100" in page
    assert "median 50 ms · 95 % 95 ms · 99 % 99 ms" in page


def test_drift_in_words_and_shapes(store: Store) -> None:
    """Each level has a name and a symbol of its own, and each number the answers that it rests on."""
    found = [drifted("confidence", 0.0, 0.0), drifted("area", 1.0, 0.2), drifted("map_entropy", 1.0, 0.01)]
    add_drift(store, "host:1", "llava", found, NOW)
    page = shown(opened(HEALTH))
    for said in ("Shifted", "Look", "As the reference", "report", "change_history", "check_circle", "&lt; 0.001"):
        assert said in page
    assert page.count("321") == 3


def test_all_statistics_of_the_watch_are_shown(store: Store) -> None:
    """The page has a column for each statistic that servers write."""
    add_drift(store, "host:1", "llava", [drifted("confidence", 0.5, 0.015625)], NOW)
    page = shown(opened(HEALTH))
    assert [value in page for value in ("0.250", "0.500", "0.016", "0.062")] == [True] * 4


# --- export ----------------------------------------------------------------------------------------------------------


def test_export_button(store: Store, make_case: Make) -> None:
    """What the button hands out has every labelled case and its picture."""
    store.add([make_case(0), make_case(1)])
    assert "can be taken out here" in shown(opened(HEALTH))
    store.review(make_case(1).case_id, "wrong", "ann", "a note")
    streamlit.cache_resource.clear()
    at = opened(HEALTH)
    assert "1 with a verdict" in shown(at)
    assert [one.proto.label for one in at.get("download_button")] == ["Export as JSON lines with pictures"]
    with zipfile.ZipFile(io.BytesIO(export.zipped(store))) as archive:
        (row,) = [json.loads(line) for line in archive.read("cases.jsonl").splitlines()]
        assert (row["id"], row["note"]) == (make_case(1).case_id, "a note")
        assert archive.read(row["image"]) == make_case(1).pictures[0].content


def test_too_many_for_the_button(store: Store, make_case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a size the page shows the command in place of the button."""
    cases = [make_case(number) for number in range(2)]
    store.add(cases)
    for case in cases:
        store.review(case.case_id, "correct", "ann")
    monkeypatch.setattr(export, "picture_bytes", lambda store: 2**40)
    at = opened(HEALTH)
    assert [one.value for one in at.code] == ["fastrm-monitor export --output cases"]
    assert list(at.get("download_button")) == []


def test_store_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that goes away is one sentence on the page, and no traceback."""
    opened(HEALTH)
    streamlit.cache_resource.clear()
    monkeypatch.setenv("FASTRM_STORE", "sqlite:////nowhere/at/all.db")
    assert "/nowhere/at" in shown(opened(HEALTH))
