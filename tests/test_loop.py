"""The loop from end to end: served, labelled, calibrated, published, taken over, served again; and what it promises.

The bound is checked as `make loop` does it, with fewer answers: see benchmarks/loop.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrm_monitor.calibration.fitting import quality
from fastrm_monitor.lab.datasets.scene_set import TEST_SEED, SceneSet
from fastrm_monitor.records.policies import history
from fastrm_monitor.records.store import Store
from tests.big import program

loop = program("loop")
PLAN = loop.Plan(pictures=130, more=0, window=200, repetitions=40, risk=0.1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One loop for real: what was served before and after, what was chosen, and what the store has of drift."""
    url = f"sqlite:///{tmp_path_factory.mktemp('loop') / 'store.db'}"
    data = SceneSet([loop.TRAFFIC], 2 * PLAN.pictures, TEST_SEED, loop.QUESTIONS)
    first, second = loop.parts(data, PLAN.pictures, PLAN.pictures)
    other = SceneSet(["noise"], 60, TEST_SEED, loop.QUESTIONS)
    found: dict[str, Any] = {"url": url}
    with loop.Server(url, PLAN.window) as server:
        found["before"] = server.serve(data, first)
        found["labelled"] = server.label()
        found["answers"], found["outcome"], found["version"] = server.calibrate(PLAN.risk, loop.CONFIDENCE)
        found["late"] = server.take_over(found["version"], data, second)
        seen = len(server.windows())
        found["after"] = server.serve(data, second)
        found["windows"] = server.windows()[seen:]
        found["shifted"] = server.serve(other, list(other))
        found["shifted windows"] = server.windows()[seen + len(found["windows"]) :]
        found["threshold"], found["failed"] = server.threshold, server.failed
        found["stored"] = server.stored(found["version"])
    return found


def test_labels_become_a_policy_of_the_running_server(served: dict[str, Any]) -> None:
    """Every answer is stored and labelled; the policy is published and decides on the next answers, unrestarted."""
    before, after, outcome = served["before"], served["after"], served["outcome"]
    assert len(before) == served["labelled"] == len(served["answers"]) > 500
    assert served["answers"].right.tolist() == before.right.tolist()
    assert np.allclose(served["answers"].score, before.score)
    assert before.policies == {None}
    assert after.policies == served["shifted"].policies == {served["version"]}
    assert served["stored"] >= len(after) + len(served["shifted"])
    with Store(served["url"]) as store:
        (policy,) = history(store, outcome.model, outcome.proxy_version)
    assert (policy.id, policy.threshold) == (served["version"], outcome.threshold)
    shown = [outcome.fit.recalibration(score) for score in after.score.tolist()]
    assert after.shown.tolist() == pytest.approx(shown)
    assert after.flagged.tolist() == [one < policy.threshold for one in shown]
    assert served["failed"] == 0


def test_few_unflagged_answers_are_wrong(served: dict[str, Any]) -> None:
    """Of the new answers that the policy lets pass fewer are wrong than was asked for, and not all are flagged."""
    after, chosen = served["after"], served["outcome"].chosen
    assert chosen["bound"] <= PLAN.risk
    assert (chosen["pictures"], chosen["answers"]) == (PLAN.pictures, len(served["before"]))
    assert loop.wrong(after.right[~after.flagged]) <= PLAN.risk < loop.wrong(served["before"].right) + 0.01
    assert 0 < after.flagged.mean() < 0.5


def test_the_bound_holds_as_often_as_promised(served: dict[str, Any]) -> None:
    """Of 40 loops by resampling few miss it; the lowest threshold that seems to hold misses often."""
    traffic = served["before"] + served["after"]
    rng = np.random.default_rng(0)
    design, risk = loop.Design("", 2000), 0.05
    made = [
        loop.repeat(traffic, {"noise": served["shifted"]}, design, served["threshold"], rng, risk)
        for _ in range(PLAN.repetitions)
    ]
    found = [one for one in made if one.found]
    missed = sum(one.risk > risk for one in made)
    assert len(found) > 35
    assert missed <= PLAN.repetitions * 0.05 + 3 * np.sqrt(PLAN.repetitions * 0.05 * 0.95)
    assert np.mean([one.shifted["noise"] for one in found]) > risk
    naive = 0
    for _ in range(PLAN.repetitions):
        rows, _ = traffic.draw(design.answers, rng)
        order = rows[np.argsort(-traffic.score[rows])]
        shares = np.cumsum(1 - traffic.right[order]) / np.arange(1, len(order) + 1)
        bar = traffic.score[order[np.flatnonzero(shares <= risk)[-1]]]
        naive += loop.wrong(traffic.right[traffic.score >= bar]) > risk
    assert naive > 10


def test_drift_is_said_of_the_shifted_answers_alone(served: dict[str, Any]) -> None:
    """The store has windows of both: those of new scenes of the same kind are like the reference, noisy ones not."""
    assert len(served["windows"]) >= 2
    assert all(min(one.values()) >= loop.ALARM for one in served["windows"])
    assert served["shifted windows"]
    assert all(one["confidence"] < loop.ALARM for one in served["shifted windows"])


def test_drift_alarms_over_repetitions(served: dict[str, Any]) -> None:
    """Drawn again and again, shifted answers raise the alarm nearly always and the others nearly never."""
    traffic, shifted = served["before"] + served["after"], served["shifted"]
    rng = np.random.default_rng(0)
    counts = np.zeros((2, 2), int)
    for _ in range(30):
        reference = loop.Reference.of((traffic.rows[row] for row in traffic.draw(200, rng)[0][:200]), "")
        for place, one in enumerate((traffic, shifted)):
            counts[place] += loop.alarms(reference, one, one.draw(420, rng)[0], PLAN.window)
    assert counts[0].tolist() <= [2, 0]
    assert counts[1, 0] >= 28


def test_calibration_is_no_worse_on_held_out_answers(served: dict[str, Any]) -> None:
    """On answers that it was not fitted on, the recalibrated confidence is about as good as the folder's, or better.

    The proxy folder was calibrated on such scenes already: there is nothing to gain here, and nothing may be lost.
    """
    after = served["after"]
    old, new = (
        quality(stated, after.right, np.ones(len(after)), after.picture) for stated in (after.score, after.shown)
    )
    assert old.brier.ci95 is not None
    assert new.brier.value <= old.brier.ci95[1]
    assert new.ece.value < 0.06


def test_the_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: dict[str, Any]) -> None:
    """`make loop` prints all of its tables and writes them as markdown; here from what was served already."""
    shifted = dict.fromkeys(loop.SHIFTS, served["shifted"])
    population = (served["before"] + served["after"], shifted, served["threshold"])
    monkeypatch.setattr(loop, "once", lambda report, plan, url: population)
    monkeypatch.setattr(loop, "QUICK", loop.Plan(130, 0, 200, 2, 0.1))
    monkeypatch.setattr("sys.argv", ["loop.py", "--quick", "--output", str(tmp_path / "loop.md")])
    loop.main()
    written = (tmp_path / "loop.md").read_text()
    for said in ("bound held", "Drift alarms over the repetitions", "missed without regard", "1 question a picture"):
        assert said in written
