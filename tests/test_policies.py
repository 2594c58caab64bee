"""Published policies: servers take them over without a restart, roll them back, and are never harmed by one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event, select

from fastrm_monitor.drift.reference import comparable
from fastrm_monitor.errors import DataError
from fastrm_monitor.monitor import Monitor
from fastrm_monitor.records.models import Case, PolicyRecord
from fastrm_monitor.records.policies import OvertakenError, PolicyWatch, history, publish, roll_back
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.recalibration import Recalibration
from tests.servers import answer, assess, serving

LINE = Recalibration(slope=1.0, intercept=-2.0)


@pytest.fixture
def store(any_store_url: str) -> Iterator[Store]:
    with Store(any_store_url) as opened:
        yield opened


def published(store: Store, **changes: Any) -> int:
    given: dict[str, Any] = {
        "model": "m",
        "proxy_version": "stub",
        "threshold": 0.7,
        "recalibration": LINE,
        "chosen": {"method": "risk", "target": 0.05},
        "author": "a",
    }
    return publish(store, **{**given, **changes})


def watching(store: Store, failed: list[int] | None = None, **changes: Any) -> PolicyWatch:
    count = failed if failed is not None else []
    given: dict[str, Any] = {"proxy_version": "stub", "seconds": 30.0, "threshold": None}
    return PolicyWatch(store, **{**given, "failed": lambda: count.append(1), **changes})


def served(monitor: Monitor, number: int) -> Any:
    one = assess(monitor, number)
    monitor.record(answer(number), one)
    assert monitor.flush(20)
    return one


def test_a_running_monitor_takes_a_policy_over(any_store_url: str) -> None:
    """The next answers carry the version, its confidence and its threshold; the cases too, and the score before."""
    monitor = serving(any_store_url, policy_seconds=0.001, threshold=None)
    assert served(monitor, 0).policy is None
    with Store(any_store_url) as store:
        version = published(store)
        for _ in range(200):  # the look happens after a delivery, on the background thread
            one = served(monitor, 2)
            if one.policy is not None:
                break
        monitor.close()
        assert one.policy == version
        assert one.confidence == pytest.approx(9 / (9 + 2.718281828459045**2))  # odds of 9, less 2 in log odds
        assert (one.flagged, one.reason, one.threshold) == (True, "low_confidence", 0.7)
        assert one.features["calibrated_score"] == 0.9
        with store.session() as session:
            stored = session.scalars(select(Case).where(Case.case_id == one.case_id)).one()
        assert (stored.policy, stored.features["calibrated_score"]) == (version, 0.9)


def test_the_newest_policy_is_in_force_and_rolled_back_by_publishing(store: Store) -> None:
    """A roll-back is a new version with the old one's contents; nothing is changed or deleted."""
    watch = watching(store, seconds=0.001, clock=iter(range(9)).__next__)
    first, second = published(store), published(store, threshold=0.2)
    watch.turn("m")
    assert watch.current is not None
    assert (watch.current.version, watch.current.threshold) == (second, 0.2)
    third = roll_back(store, first, author="b", note="too few flags")
    watch.turn("m")
    assert (watch.current.version, watch.current.threshold) == (third, 0.7)
    found = history(store, "m", "stub")
    assert [(one.id, one.again) for one in found] == [(third, first), (second, None), (first, None)]
    assert (found[0].author, found[0].note, found[0].chosen) == ("b", "too few flags", found[2].chosen)
    with pytest.raises(DataError, match="There is no policy 99"):
        roll_back(store, 99, author="b")
    with pytest.raises(DataError, match="between 0 and 1"):
        published(store, threshold=1.5)


@pytest.mark.parametrize("before", [0, 1])
def test_of_two_who_publish_at_once_one_is_told(store: Store, before: int) -> None:
    """Both saw the same newest version, or none; one version is written and the other publisher learns of it."""
    expected = published(store) if before else 0
    start, made, told = threading.Barrier(2), list[int](), list[str]()

    def press(author: str) -> None:
        start.wait()
        try:
            made.append(published(store, author=author, expected=expected))
        except OvertakenError as error:
            told.append(str(error))

    def linger(*_: object) -> None:
        time.sleep(0.2)  # whoever only looks before writing is past the look by then

    both = [threading.Thread(target=press, args=(author,)) for author in ("ann", "ben")]
    event.listen(PolicyRecord, "before_insert", linger)
    try:
        for one in both:
            one.start()
        for one in both:
            one.join()
    finally:
        event.remove(PolicyRecord, "before_insert", linger)
    found = history(store, "m", "stub")
    assert [one.id for one in found[: len(found) - before]] == made
    assert told == [f"{found[0].author} published version {made[0]} meanwhile. Nothing was written: look again."]


def test_what_is_expected_is_of_the_same_model_and_proxy(store: Store) -> None:
    """Versions of other models and proxies overtake nobody; rolling back looks too."""
    first = published(store, expected=0)
    published(store, model="other", expected=0)
    published(store, proxy_version="new", expected=0)
    second = published(store, expected=first)
    with pytest.raises(OvertakenError, match=f"a published version {second} meanwhile"):
        roll_back(store, first, author="b", expected=first)
    with pytest.raises(OvertakenError, match=f"a published version {second} meanwhile"):
        published(store, expected=0)
    assert roll_back(store, first, author="b", expected=second) > second


def test_other_proxies_and_models_are_ignored(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A policy of another proxy is said once and counted once, one of another model is not this server's business."""
    failed: list[int] = []
    watch = watching(store, failed, seconds=0.001, clock=iter(range(9)).__next__)
    own = published(store)
    published(store, model="other")
    published(store, proxy_version="new")
    for _ in range(3):
        watch.turn("m")
    assert watch.current is not None
    assert watch.current.version == own
    assert len(failed) == 1
    assert caplog.text.count("is for proxy new") == 1


def test_a_set_threshold_wins_and_is_said_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """FASTRM_THRESHOLD stays in force; the recalibration is taken over."""
    watch = watching(store, threshold=0.4, seconds=0.001, clock=iter(range(9)).__next__)
    for threshold in (0.7, 0.8):
        published(store, threshold=threshold)
        watch.turn("m")
    assert watch.current is not None
    assert (watch.current.threshold, watch.current.recalibration) == (0.4, LINE)
    assert caplog.text.count("FASTRM_THRESHOLD=0.4 is set") == 1


def test_a_damaged_policy_leaves_the_one_before(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read is counted and said once."""
    failed: list[int] = []
    watch = watching(store, failed, seconds=0.001, clock=iter(range(9)).__next__)
    first = published(store)
    watch.turn("m")
    broken = published(store)
    with store.session(write=True) as session:
        session.get_one(PolicyRecord, broken).recalibration = {"source": "calibrated", "slope": "steep"}
    watch.turn("m")
    watch.turn("m")
    assert watch.current is not None
    assert (watch.current.version, len(failed)) == (first, 1)


def test_a_store_that_is_away_changes_nothing(store_url: str) -> None:
    """A closed store raises nothing out of the look, and the policy stays."""
    with Store(store_url) as store:
        watch = watching(store, seconds=0.001, clock=iter(range(9)).__next__)
        published(store)
        watch.turn("m")
        before = watch.current
    watch.turn("m")
    assert watch.current is before is not None


def test_looks_are_as_far_apart_as_set(store: Store) -> None:
    """Within the period the store is not asked again, and with 0 never."""
    times = iter([0.0, 29.0, 31.0])
    watch = watching(store, clock=times.__next__)
    watch.turn("m")
    published(store)
    watch.turn("m")
    assert watch.current is None
    watch.turn("m")
    assert watch.current is not None
    off = watching(store, seconds=0)
    off.turn("m")
    assert off.current is None


def test_scores_of_another_source_are_left_alone(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A policy for calibrated scores does not touch an answer for which the engine gave no token probability."""
    caplog.set_level(logging.INFO)
    watch = watching(store)
    published(store)
    watch.turn("m")
    assert watch.current is not None
    assert watch.current.apply({"map_entropy": 0.4}, 0.6, False) is None
    assert "is in force" in caplog.text


def test_a_policy_is_no_drift() -> None:
    """What is compared with the reference is the score before recalibration."""
    plain = comparable({"map_entropy": 0.5}, 0.9, True)
    assert comparable({"map_entropy": 0.5, "calibrated_score": 0.9}, 0.55, True) == plain
