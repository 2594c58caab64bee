"""The calibration page: honest about what the labels can show, and what is published is what was on the screen."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
from sqlalchemy import text
from streamlit.testing.v1 import AppTest

from fastrm_monitor.calibration import answers as labelled
from fastrm_monitor.calibration.choice import Outcome, calibrate
from fastrm_monitor.dashboard import charts, preview, reliability, words
from fastrm_monitor.dashboard.preview import Rule, Served
from fastrm_monitor.dashboard.reliability import Share
from fastrm_monitor.records.models import Case, CasePicture, PolicyRecord
from fastrm_monitor.records.policies import PolicyWatch, history, publish
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.recalibration import Recalibration
from tests.pages import CALIBRATION, QUEUE, opened, press, ran, shown

NOW = datetime.now(UTC)
MODEL, PROXY = "llava-tiny", "a1b2c3d4"


def answer(number: int, score: float, verdict: str | None, **changes: Any) -> Case:
    """Answer `number`, an hour older than the one before; flagged below 0.45 and drawn unless told otherwise."""
    values: dict[str, Any] = {
        "case_id": str(uuid.UUID(int=1_000_000 + number)),
        "created_at": NOW - timedelta(hours=number / 10),
        "request_id": f"request-{number}",
        "server": "host:1",
        "model": MODEL,
        "question": f"question {number}",
        "answer": "yes",
        "confidence": score,
        "calibrated": True,
        "threshold": 0.45,
        "entropy": 0.5,
        "features": {"map_entropy": 0.5},
        "flagged": score < 0.45,
        "reason": "low_confidence" if score < 0.45 else None,
        "sampled": True,
        "sample_rate": 0.25,
        "proxy_version": PROXY,
        "library_version": "0.1.0",
        "scoring_seconds": 0.002,
        "verdict": verdict,
    }
    return Case(**{**values, **changes})


def traffic(n: int = 400, **changes: Any) -> list[Case]:
    """Labelled answers with scores spread evenly, of which the lower ones are wrong more often."""
    rng = np.random.default_rng(0)
    scores = rng.permutation((np.arange(n) + 0.5) / n)
    right = rng.uniform(0, 1, n) < 0.5 + 0.5 * scores
    return [
        answer(number, float(score), "correct" if well else "wrong", **changes)
        for number, (score, well) in enumerate(zip(scores, right, strict=True))
    ]


@pytest.fixture
def full(store: Store) -> Store:
    """The pages' store with 400 labelled answers."""
    store.add(traffic())
    return store


@pytest.fixture
def either(any_store_url: str) -> Iterator[Store]:
    """A store on SQLite, then one on PostgreSQL."""
    with Store(any_store_url) as opened:
        yield opened


def at_risk(percent: float = 20.0) -> AppTest:
    """The page with a target that these labels can show."""
    return opened(CALIBRATION, **{"at-risk": str(percent)})


def wanted(store: Store, method: str = "risk", target: float = 0.2) -> Outcome:
    return calibrate(labelled.from_store(store), method, target)


def numbers(at: AppTest) -> dict[str, str]:
    return {one.label: one.value for one in at.metric}


def published(store: Store, model: str = MODEL, proxy: str = PROXY) -> list[PolicyRecord]:
    """Newest first."""
    return history(store, model, proxy)


def labels(at: AppTest) -> list[str]:
    return [one.label for one in at.button]


# --- states ----------------------------------------------------------------------------------------------------------


def test_empty_store(store: Store) -> None:
    """Without answers the page says where they come from, and shows no number."""
    at = opened(CALIBRATION)
    assert "Nothing to calibrate yet" in shown(at)
    assert at.metric == []
    assert at.button == []


def test_no_labels(store: Store) -> None:
    """With answers and no labels the page says so and leads to the random sample; nothing can be published."""
    store.add([answer(number, 0.3 + 0.01 * number, None) for number in range(40)])
    at = opened(CALIBRATION)
    assert "No labels yet" in shown(at)
    assert numbers(at)["Labels"] == "0"
    assert "Publish…" not in labels(at)
    (link,) = [one.proto for one in at.get("page_link") if one.proto.label == "Label the random sample"]
    queue = opened(QUEUE, **dict(parse_qsl(link.query_string)))
    assert (queue.selectbox(key="kind").value, queue.selectbox(key="order").value) == ("sampled", "oldest")


def test_no_random_sample(store: Store) -> None:
    """Labels of flagged answers alone give a warning, no base rate and no threshold."""
    store.add([case for case in traffic(sampled=False) if case.flagged])
    at = opened(CALIBRATION)
    assert "no random sample" in shown(at)
    assert numbers(at)["Base rate"] == "–"
    assert at.slider == []
    assert "Publish…" not in labels(at)


def test_one_class_only(store: Store) -> None:
    """Labels of one kind are too few of the other: the page counts both, and says how many are needed."""
    store.add([answer(number, 0.3 + 0.006 * number, "correct") for number in range(100)])
    at = opened(CALIBRATION)
    page = shown(at)
    assert "100 labelled answers, 100 right and 0 wrong" in page
    assert page.count("Lacking") == 1
    assert page.count("Enough") == 2
    assert at.slider == []


def test_wrong_answers_about_one_picture(store: Store) -> None:
    """However many they are, the page says what to label, and has no threshold."""
    cases = [answer(number, 0.3 + 0.006 * number, "wrong" if number < 20 else "correct") for number in range(100)]
    for case in cases[:20]:
        case.pictures.append(
            CasePicture(position=0, sha256="0" * 64, rows=1, columns=1, relevance=b"\0\0", region=[0.0, 0.0, 1.0, 1.0])
        )
    store.add(cases)
    at = opened(CALIBRATION)
    assert "The 20 wrong answers are about only 1 picture" in shown(at)
    assert at.slider == []
    assert "Publish…" not in labels(at)


def test_without_scikit_learn(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its libraries are not installed the page names the extra."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else real(name))
    assert "fastrm-monitor[dashboard]" in shown(opened(CALIBRATION))


def test_table_of_policies_is_gone(full: Store) -> None:
    """A store that lost its policies is one sentence, and no traceback."""
    with full.session(write=True) as session:
        session.execute(text("DROP TABLE policies"))
    page = shown(opened(CALIBRATION))
    assert 'role="alert"' in page
    assert "policies" in page


def test_several_models(full: Store) -> None:
    """Each model and proxy has its own numbers; that with the newest case is shown first, and its name is inert."""
    full.add([answer(1000 + number, 0.6, None, model="<b>other</b>") for number in range(3)])
    at = opened(CALIBRATION)
    assert numbers(at)["Labels"] == "0"
    assert "<b>other" not in shown(at)
    at.selectbox(key="pair").select_index(1)
    assert numbers(ran(at))["Labels"] == "400"


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_command(full: Store) -> None:
    """The page shows what `calibrate` finds: threshold, share, bound, ECE and Brier with intervals, n, base rate."""
    outcome = wanted(full)
    at = at_risk()
    said, page = numbers(at), shown(at)
    assert said["Threshold"] == f"{outcome.threshold:.1%}"
    assert said["Would flag"] == f"{outcome.chosen['flagged_share']:.1%}"
    assert said["Rests on"] == str(outcome.chosen["n"])
    for quality in (outcome.fit.before, outcome.fit.after):
        for one in (quality.ece, quality.brier):
            assert one.ci95 is not None
            assert f"{one.value:.3f} ({one.ci95[0]:.3f} to {one.ci95[1]:.3f})" in page
    right = sum(case.verdict == "correct" for case in traffic())
    assert f"n = 400 labels about 400 pictures, base rate {right / 400:.1%}" not in page  # weights undo what is stored
    assert f"base rate {said['Base rate']} right" in page
    assert page.count("After, held out") == len(outcome.fit.after.bins)


def test_labels_that_are_needed(full: Store) -> None:
    """A narrower interval takes more labels, and the page says how many more than there are."""
    at = at_risk()
    at.selectbox(key="width").select(0.01)
    needed = 4 * (wanted(full).labels_needed or 0)  # half the width
    (said,) = [part for part in shown(ran(at)).split("<p") if "labels give it" in part]
    number = int(said.split("About ")[1].split(" labels")[0].replace(",", ""))
    assert number == pytest.approx(needed, abs=4)
    assert f"{number - 400:,} more than there are" in said


def test_what_cannot_be_shown(full: Store) -> None:
    """An ambitious target is refused in words; the button finds the strictest one that holds, and no other."""
    at = at_risk(0.5)
    assert "This cannot be shown" in shown(at)
    assert "Publish…" not in labels(at)
    press(at, "find")
    found = at.slider(key="at-risk").value
    assert "This cannot be shown" not in shown(at)
    assert "Publish…" in labels(at)
    at.slider(key="at-risk").set_value(found - 0.5)
    assert "This cannot be shown" in shown(ran(at))


def test_other_ways_to_choose(full: Store) -> None:
    """By precision and by flag rate the page shows what `calibrate` finds."""
    for method, name, percent in (("precision", "Precision", 20.0), ("flag-rate", "Flag rate", 30.0)):
        at = opened(CALIBRATION, method=name, **{f"at-{method}": str(percent)})
        assert numbers(at)["Threshold"] == f"{wanted(full, method, percent / 100).threshold:.1%}"


def test_another_target_is_another_look_at_the_same_labels(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are read once for many targets, and again after a new label."""
    read = []
    real = labelled.from_store
    monkeypatch.setattr(labelled, "from_store", lambda *args, **given: read.append(1) or real(*args, **given))
    at = at_risk()
    for percent in (25.0, 30.0):
        at.slider(key="at-risk").set_value(percent)
        ran(at)
    assert len(read) == 1
    before = numbers(at)["Labels"]
    full.add([answer(5000, 0.9, None)])
    full.review(answer(5000, 0.9, None).case_id, "correct", "ann")
    assert (before, numbers(ran(at))["Labels"]) == ("400", "401")
    assert len(read) == 2


def test_points_of_the_diagram(full: Store) -> None:
    """Each bin has its own exact interval around its share; weights make it wider than the labels alone would."""
    outcome, counted = wanted(full), reliability.count(labelled.from_store(full))
    found = reliability.points(outcome.fit, counted)
    assert counted.effective < counted.labelled == 400
    for one in found:
        assert one.right.low <= one.right.value <= one.right.high
        alone = 1.96 * np.sqrt(one.right.value * (1 - one.right.value) / one.right.n)
        assert one.right.high - one.right.low > alone
    drawn, counts = charts.reliability(found)
    assert len(drawn.to_dict()["layer"]) == 3
    (rows,) = counts.to_dict()["datasets"].values()
    assert sum(row["n"] for row in rows) == 800  # every label, before and after


def test_shares_by_hand() -> None:
    """Weights count; all of n equal ones give Clopper and Pearson's bound, 0.025^(1/n)."""
    ten = np.ones(10)
    everything = reliability.weighted(ten > 0, ten)
    assert (everything.value, everything.high, everything.n) == (1.0, 1.0, 10)
    assert everything.low == pytest.approx(0.025**0.1)
    uneven = reliability.weighted(np.array([True, False]), np.array([3.0, 1.0]))
    assert uneven.value == 0.75
    assert reliability.effective(np.array([3.0, 1.0])) == pytest.approx(1.6)
    assert reliability.weighted(np.array([], bool), np.array([])).n == 0


# --- preview ---------------------------------------------------------------------------------------------------------


def test_a_rule_flags_as_a_server_does() -> None:
    """The same answers as one comparison each, whatever the recalibration, and none or all at the ends."""
    scores = np.random.default_rng(0).uniform(0, 1, 200)
    for recalibration in (Recalibration(slope=1.7, intercept=0.4), Recalibration(knots=((0.2, 0.1), (0.7, 0.9)))):
        for threshold in (0.0, 0.3, float(recalibration(float(scores[7]))), 0.8, 1.0):
            plain = [recalibration(float(score)) < threshold for score in scores]
            assert Rule(recalibration, threshold).flags(scores).tolist() == plain


def test_preview_by_hand() -> None:
    """Shares are those of the drawn answers, each with its weight; cases are all that are decided otherwise."""
    found = Served(
        ids=("a", "b", "c", "d", "e"),
        day=np.array([20001, 20001, 20001, 20000, 20000]),
        score=np.array([0.1, 0.5, 0.6, 0.4, 0.9]),
        flagged=np.array([True, False, False, False, False]),
        sampled=np.array([False, True, True, True, True]),
        weight=np.array([10.0, 10.0, 10.0, 20.0, 20.0]),
        days=2.0,
        cut=False,
    )
    seen = preview.compare(found, Rule(Recalibration(), 0.55), None)
    assert (seen.answers, seen.new.value, seen.today.value) == (60.0, 0.5, 0.0)
    assert (seen.added, seen.removed) == (("b", "d"), ())
    assert [(day.start.day, day.new.value) for day in seen.days] == [(4, 0.5), (5, 0.5)]
    back = preview.compare(found, Rule(Recalibration(), 0.2), Rule(Recalibration(), 0.65))
    assert (back.added, back.removed) == ((), ("d", "b", "c"))
    assert back.today.value == pytest.approx(40 / 60)


def test_what_the_preview_reads(either: Store) -> None:
    """The last seven days of that model, proxy and kind of score; the newest first; older and foreign ones not."""
    either.add(
        [
            answer(0, 0.5, None),
            answer(1, 0.6, "wrong", sampled=False),
            answer(2, 0.7, None, created_at=NOW - timedelta(days=8)),
            answer(3, 0.7, None, model="other"),
            answer(4, 0.7, None, proxy_version="other"),
            answer(5, 0.7, None, calibrated=False),
            answer(6, 0.9, None, features={"calibrated_score": 0.3}),
        ]
    )
    with either.session() as session:
        found = preview.served(session, MODEL, PROXY, "calibrated", NOW)
        rows = preview.rows(session, [found.ids[1], "gone", found.ids[0]])
    assert found.ids == tuple(answer(number, 0.5, None).case_id for number in (0, 1, 6))
    assert found.score.tolist() == [0.5, 0.6, 0.3]
    assert (found.sampled.tolist(), found.weight.tolist(), found.cut) == ([True, False, True], [4.0] * 3, False)
    assert [row.question for row in rows] == ["question 1", "question 0"]


def test_too_many_to_preview(either: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many, the newest are looked at, and it is said."""
    monkeypatch.setattr(preview, "MOST", 2)
    either.add([answer(number, 0.5, None) for number in range(3)])
    with either.session() as session:
        found = preview.served(session, MODEL, PROXY, "calibrated", NOW)
    assert found.ids == tuple(answer(number, 0.5, None).case_id for number in (0, 1))
    assert found.cut


def test_preview_on_the_page(full: Store) -> None:
    """The page shows the share of the last week that the threshold flags, and links cases decided otherwise."""
    outcome = wanted(full)
    with full.session() as session:
        found = preview.served(session, MODEL, PROXY, "calibrated")
    rule = Rule(outcome.fit.recalibration, outcome.threshold)
    drawn = rule.flags(found.score)
    at = at_risk()
    assert numbers(at)["Share"] == f"{drawn.mean():.1%}"  # all are drawn, at one rate
    assert numbers(at)["Would have flagged"] == f"{4 * drawn.sum():,}"
    assert numbers(at)["Than today"] == f"{4 * (int(drawn.sum()) - int(found.flagged.sum())):+,}"
    seen = preview.compare(found, rule, None)
    linked = [str(one.proto) for one in at.get("page_link")]
    assert all(any(case_id in link for link in linked) for case_id in (*seen.added[:4], *seen.removed[:4]))
    assert seen.added or seen.removed


def test_days_without_answers_have_no_preview(store: Store) -> None:
    """Labels of old answers give a threshold, and the page says that it has nothing to preview it on."""
    store.add(traffic(created_at=NOW - timedelta(days=30)))
    at = at_risk()
    assert "No sampled answers in these days" in shown(at)
    assert "Publish…" in labels(at)


def test_both_thresholds_are_drawn() -> None:
    """Each day has a point for this threshold and one for today's, with different shapes."""
    share = Share(0.2, 0.1, 0.3, 40)
    drawn = charts.flagged_by_day([preview.Day(NOW, share, share)]).to_dict()
    assert {row["which"] for rows in drawn["datasets"].values() for row in rows} == {"this threshold", "today's"}
    (shapes,) = [layer["encoding"]["shape"] for layer in drawn["layer"] if "shape" in layer["encoding"]]
    assert len(set(shapes["scale"]["range"])) == 2


# --- publishing ------------------------------------------------------------------------------------------------------


def test_what_is_published_is_what_was_shown(full: Store) -> None:
    """One press asks, the second writes: the threshold on the screen, its recalibration, who and why."""
    outcome = wanted(full)
    at = at_risk()
    at.text_input(key="reviewer").set_value("ann")
    at.text_input(key="policy-note").set_value("first")
    press(at, "publish")
    assert published(full) == []
    assert f"below {numbers(at)['Threshold']} are flagged" in shown(at)
    assert "FASTRM_POLICY_SECONDS" in shown(at)
    assert "“first”" in shown(at)
    press(at, "confirm")
    (policy,) = published(full)
    assert (policy.author, policy.note, policy.again) == ("ann", "first", None)
    assert (policy.threshold, policy.chosen) == (outcome.threshold, outcome.chosen)
    assert policy.recalibration == outcome.fit.recalibration.as_json()
    page = shown(at)
    assert f"Version {policy.id} is published" in page
    assert "In force" in page
    assert numbers(at)["Than today"] == "+0"  # the version in force is this one
    assert labels(at).count("Publish…") == 1


def test_a_running_server_has_it_at_its_next_look(full: Store) -> None:
    """What the page publishes is what a server's watch takes over."""
    watch = PolicyWatch(full, proxy_version=PROXY, seconds=30.0, threshold=None, failed=lambda: None)
    press(press(at_risk(), "publish"), "confirm")
    watch.turn(MODEL)
    assert watch.current is not None
    assert watch.current.threshold == wanted(full).threshold


def test_second_thoughts(full: Store) -> None:
    """Neither cancelling nor another target writes anything, and another target asks again."""
    at = press(at_risk(), "publish")
    press(at, "cancel")
    assert "confirm" not in [one.key for one in at.button]
    press(at, "publish")
    at.slider(key="at-risk").set_value(30.0)
    ran(at)
    assert "confirm" not in [one.key for one in at.button]
    assert published(full) == []


def test_somebody_else_was_first(full: Store) -> None:
    """A version that came between the two presses is not overruled unseen."""
    at = press(at_risk(), "publish")
    other = wanted(full, "flag-rate", 0.3).publish(full, "<i>ben</i>", "")
    press(at, "confirm")
    assert [one.id for one in published(full)] == [other]
    assert "published version 1 meanwhile. Nothing was written" in shown(at)
    assert "<i>ben" not in shown(at)
    press(press(at, "publish"), "confirm")
    assert len(published(full)) == 2


def test_roll_back(full: Store) -> None:
    """An older version is published again after a second press, by who pressed; the table says so."""
    first = wanted(full, "flag-rate", 0.3).publish(full, "ann", "<b>first</b>")
    second = wanted(full, "flag-rate", 0.1).publish(full, "ben", "")
    at = at_risk()
    at.text_input(key="reviewer").set_value("cleo")
    press(at, "back")
    assert len(published(full)) == 2
    press(at, "confirm")
    newest = published(full)[0]
    assert (newest.again, newest.author, newest.threshold) == (first, "cleo", published(full)[2].threshold)
    page = shown(at)
    assert f"version {first} again; rolled back from {second}" in page
    assert page.count("In force") == 1
    assert "<b>first" not in page


def test_roll_back_after_somebody_else(full: Store) -> None:
    """A version that came between the two presses is not rolled back unseen."""
    for _ in range(2):
        wanted(full, "flag-rate", 0.3).publish(full, "ann", "")
    at = press(at_risk(), "back")
    wanted(full, "flag-rate", 0.1).publish(full, "ben", "")
    press(at, "confirm")
    assert "ben published version 3 meanwhile. Nothing was written" in shown(at)
    assert len(published(full)) == 3


@pytest.mark.parametrize(("ask", "before"), [("publish", 1), ("back", 2)])
def test_read_only_writes_nothing(full: Store, monkeypatch: pytest.MonkeyPatch, ask: str, before: int) -> None:
    """A read-only dashboard has no way to publish or roll back, not even in a session older than the setting."""
    for _ in range(before):
        wanted(full, "flag-rate", 0.3).publish(full, "ann", "")
    at = press(at_risk(), ask)
    monkeypatch.setenv("FASTRM_READ_ONLY", "true")
    press(at, "confirm")
    assert "read-only" in shown(at)
    assert len(published(full)) == before
    at = at_risk()
    assert [(one.label, one.disabled) for one in at.button] == [("Publish", True)]
    assert shown(at).count("read-only") == before


def test_a_store_that_fails_while_publishing(full: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence of the error is on the page, and the page stays."""
    at = press(at_risk(), "publish")
    with full.session(write=True) as session:
        session.execute(text("CREATE TRIGGER shut BEFORE INSERT ON policies BEGIN SELECT RAISE(ABORT, 'shut'); END"))
    press(at, "confirm")
    assert "shut" in shown(at)
    assert "Threshold" in numbers(at)
    assert published(full) == []


def test_a_damaged_version_is_listed(full: Store) -> None:
    """A version that servers ignore does not take the page away; the preview then is beside what was served."""
    publish(
        full,
        model=MODEL,
        proxy_version=PROXY,
        threshold=0.5,
        recalibration=Recalibration(),
        chosen={"method": 3, "target": "x"},
        author="ann",
    )
    with full.session(write=True) as session:
        session.get_one(PolicyRecord, 1).recalibration = {"source": "luck"}
    at = at_risk()
    assert "not said" in shown(at)
    assert "as served" in {one.delta.split(" ", 1)[1] for one in at.metric if one.label == "Than today"}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"method": "flag-rate", "target": 0.1}, "10.0% of the traffic is flagged"),
        (
            {"method": "risk", "target": 0.05, "confidence": 0.9},
            "At most 5.0% of the unflagged answers are wrong, 90% confidence",
        ),
        (
            {"method": "precision", "target": 0.4, "confidence": 0.95},
            "At least 40.0% of the flagged answers are wrong, 95% confidence",
        ),
        ({"method": "by_hand", "target": 1}, "By hand"),
        ({"target": 0.1}, "not said"),
        ([], "not said"),
    ],
)
def test_how_a_threshold_was_chosen(chosen: Any, said: str) -> None:
    """In words for what this version publishes, by its label for what another one does, and never an error."""
    assert words.how_chosen(chosen) == said
