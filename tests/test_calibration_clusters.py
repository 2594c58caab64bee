"""Answers about one picture are right or wrong together: what is promised holds all the same, and power is not lost."""

from __future__ import annotations

import numpy as np
import pytest

from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.calibration.choice import calibrate, flagged_share, warnings
from fastrm_monitor.calibration.fitting import quality
from fastrm_monitor.calibration.thresholds import by_precision, by_risk, one_a_picture, upper_bound
from tests.big import program

ERROR = 0.1


def most(repetitions: int) -> float:
    """Broken promises that the promise and three standard deviations of chance allow."""
    return float(repetitions * ERROR + 3 * np.sqrt(repetitions * ERROR * (1 - ERROR)))


likeness = program("likeness")
alike, risk_above = likeness.alike, likeness.risk_above


def answers_of(score: np.ndarray, right: np.ndarray, picture: np.ndarray) -> Answers:
    """As a store has them when every answer is drawn and labelled."""
    n = len(score)
    return Answers(
        score, score, right, score < 0.3, np.ones(n, bool), np.ones(n), picture.astype(str), "m", "v", "calibrated"
    )


@pytest.mark.parametrize(("pictures", "questions", "like"), [(300, 20, 0.97), (200, 40, 0.98)])
def test_risk_bound_holds_whatever_is_alike(pictures: int, questions: int, like: float) -> None:
    """With 20 or 40 answers a picture, nearly all alike, few choices miss the risk; without regard to it, many do."""
    rng = np.random.default_rng(questions)
    missed, found, naive = 0, 0, 0
    for _ in range(200):
        score, right, picture = alike(rng, pictures, questions, like)
        chosen = by_risk(score, right, 0.2, 1 - ERROR, picture)
        found += chosen is not None
        missed += chosen is not None and risk_above(chosen.threshold) > 0.2
        all_of_them = by_risk(score, right, 0.2, 1 - ERROR)
        naive += all_of_them is not None and risk_above(all_of_them.threshold) > 0.2
    assert found > 120
    assert missed <= most(200)
    assert naive > most(200)


def test_precision_bound_holds_whatever_is_alike() -> None:
    """The same for the flagged answers."""
    rng = np.random.default_rng(1)
    missed, found, naive = 0, 0, 0
    for _ in range(100):
        score, right, picture = alike(rng, 1000, 20, 0.97)
        chosen = by_precision(score, right, 0.35, 1 - ERROR, picture)
        found += chosen is not None
        missed += chosen is not None and 0.5 - 0.25 * chosen.threshold < 0.35
        all_of_them = by_precision(score, right, 0.35, 1 - ERROR)
        naive += all_of_them is not None and 0.5 - 0.25 * all_of_them.threshold < 0.35
    assert found > 75
    assert missed <= most(100)
    assert naive > most(100)


def test_one_of_each_picture_is_drawn_evenly() -> None:
    """Every picture is there once, and each of its answers is as likely as the others."""
    picture = np.array(["a"] * 4 + ["b"] + ["c"] * 2)
    drawn = [one_a_picture(picture, seed) for seed in range(4000)]
    assert all(sorted(picture[rows]) == ["a", "b", "c"] for rows in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=7) / 4000
    assert counts == pytest.approx([0.25] * 4 + [1] + [0.5] * 2, abs=0.03)
    assert one_a_picture(picture).tolist() == one_a_picture(picture).tolist()


def test_nothing_is_lost_where_all_pictures_differ() -> None:
    """Then every label counts, and threshold and bound are those of independent answers."""
    score, right, picture = alike(np.random.default_rng(2), 1500, 1, 0)
    chosen = calibrate(answers_of(score, right, picture), "risk", 0.2).chosen
    known = by_risk(score, right, 0.2)
    assert known is not None
    assert (chosen["n"], chosen["bad"], chosen["bound"]) == (known.n, known.bad, known.bound)
    assert chosen["pictures"] == chosen["answers"] == 1500


def test_further_questions_about_a_picture_are_of_use_where_answers_differ() -> None:
    """With eight independent answers a picture fewer are flagged than with one of them, and never without a bound."""
    rng = np.random.default_rng(6)
    all_of_them, one = [], []
    for _ in range(30):
        score, right, picture = alike(rng, 300, 8, 0)
        rows = one_a_picture(picture)
        for found, flagged in (
            (by_risk(score, right, 0.2, picture=picture), all_of_them),
            (by_risk(score[rows], right[rows], 0.2), one),
        ):
            flagged.append(1.0 if found is None else found.threshold)
            assert found is None or found.bound <= 0.2
    assert np.mean(all_of_them) < np.mean(one) - 0.1


def test_the_same_answer_again_is_no_evidence() -> None:
    """Twenty copies of each answer, about the same picture, lower no threshold and no bound, and narrow no interval."""
    score, right, picture = alike(np.random.default_rng(3), 900, 1, 0)
    once = answers_of(score, right, picture)
    copies = answers_of(*(np.tile(column, 20) for column in (score, right, picture)))
    few, many = (by_risk(own.score, own.right, 0.2, picture=own.picture) for own in (once, copies))
    assert few is not None
    assert many is not None
    assert many.threshold >= few.threshold
    above = score >= many.threshold
    assert many.bound >= upper_bound(int((1 - right[above]).sum()), int(above.sum()), 0.05 / 3)
    chosen = calibrate(copies, "risk", 0.2).chosen
    assert (chosen["pictures"], chosen["answers"]) == (900, 18_000)
    assert flagged_share(copies, 0.3) == pytest.approx(flagged_share(once, 0.3), abs=0.002)
    for name in ("ece", "brier"):
        narrow, wide = (
            getattr(quality(own.score, own.right, np.ones(len(own)), own.picture), name) for own in (once, copies)
        )
        assert wide.value == pytest.approx(narrow.value, abs=1e-3)
        assert wide.ci95 == pytest.approx(narrow.ci95, abs=1e-3)


def test_pictures_that_are_asked_often_and_answered_wrongly_are_warned_of() -> None:
    """A bound in which each picture counts once does not hide that one in ten answers is wrong about a few of them."""
    score, right, picture = alike(np.random.default_rng(4), 1200, 1, 0)
    right = np.where(score > 0.4, 1.0, right)
    assert not calibrate(answers_of(score, right, picture), "risk", 0.1).warnings
    often = (np.full(300, 0.99), np.zeros(300), np.full(300, 5000))
    some = answers_of(*(np.concatenate(pair) for pair in zip((score, right, picture), often, strict=True)))
    outcome = calibrate(some, "risk", 0.1)
    assert outcome.chosen["bound"] <= 0.1 < outcome.chosen["bad"] / outcome.chosen["n"]
    assert any("each picture counts once" in said for said in outcome.warnings)


def test_alike_answers_do_not_look_like_biased_labels() -> None:
    """Whoever labels some pictures, drawn at random, is not told that they chose."""
    rng = np.random.default_rng(5)
    said = 0
    for _ in range(40):
        score, right, picture = alike(rng, 200, 20, 0.95)
        labelled = rng.permutation(200)[picture] < 100
        said += bool(warnings(answers_of(score, np.where(labelled, right, np.nan), picture)))
    assert said <= 4
