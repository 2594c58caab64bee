"""From labels to a confidence and a threshold: what is promised holds as often as promised, and bias is undone."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fastrm_monitor.calibration.answers import Answers, from_rows
from fastrm_monitor.calibration.choice import calibrate, flagged_share, random_part
from fastrm_monitor.calibration.fitting import LEAST, fit, labels_needed
from fastrm_monitor.calibration.thresholds import by_flag_rate, by_precision, by_risk, interval, upper_bound
from fastrm_monitor.cli import app
from fastrm_monitor.errors import DataError
from fastrm_monitor.records.policies import history
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.recalibration import Recalibration, score_of


def truth(score: np.ndarray) -> np.ndarray:
    """The planted probability of being right."""
    return 0.5 + 0.5 * score


def traffic(n: int, seed: int, *, rate: float = 0.3, below: float = 0.3, labelled: float = 1.0) -> Answers:
    """What is stored of n answers with uniform scores, of which those below a threshold were flagged."""
    rng = np.random.default_rng(seed)
    score = rng.uniform(0, 1, n)
    right = (rng.uniform(0, 1, n) < truth(score)).astype(float)
    flagged, sampled = score < below, rng.uniform(0, 1, n) < rate
    right[rng.uniform(0, 1, n) >= labelled] = np.nan
    pictures = np.array([f"p{number // 2}" for number in range(n)])
    made = Answers(score, score, right, flagged, sampled, np.full(n, rate), pictures, "m", "v", "calibrated")
    return made.where(flagged | sampled)


def rows(answers: Answers) -> list[dict[str, Any]]:
    """As an export has them."""
    verdicts = {1.0: "correct", 0.0: "wrong"}
    return [
        {
            "id": str(number),
            "confidence": float(answers.shown[number]),
            "calibrated": True,
            "features": {"map_entropy": 0.5},
            "verdict": verdicts.get(float(answers.right[number])),
            "flagged": bool(answers.flagged[number]),
            "sampled": bool(answers.sampled[number]),
            "sample_rate": float(answers.rate[number]),
            "sha256": str(answers.picture[number]),
            "model": "m",
            "proxy_version": "v",
        }
        for number in range(len(answers))
    ]


def risk_above(threshold: float) -> float:
    """Share of wrong answers among planted ones at or above a threshold: mean of 1 - truth over [threshold, 1]."""
    return 0.5 * (1 - (1 + threshold) / 2)


def test_risk_bound_holds_as_often_as_promised() -> None:
    """Of 400 choices with 90 % confidence at most 10 % (and what chance adds) miss the risk; the naive choice does."""
    rng = np.random.default_rng(0)
    missed = naive = 0
    for _ in range(400):
        score = rng.uniform(0, 1, 400)
        right = (rng.uniform(0, 1, 400) < truth(score)).astype(float)
        found = by_risk(score, right, 0.15, 0.9)
        missed += found is not None and risk_above(found.threshold) > 0.15
        order = np.argsort(-score)
        shares = np.cumsum(1 - right[order]) / np.arange(1, 401)
        naive += risk_above(score[order][np.flatnonzero(shares <= 0.15)[-1]]) > 0.15
    assert missed <= 40 + 3 * np.sqrt(400 * 0.1 * 0.9)
    assert naive > 100


def test_risk_bound_is_not_idle() -> None:
    """With many labels the chosen threshold comes near to the best one, 0.36 for a risk of 0.16."""
    rng = np.random.default_rng(1)
    score = rng.uniform(0, 1, 20_000)
    found = by_risk(score, (rng.uniform(0, 1, 20_000) < truth(score)).astype(float), 0.16)
    assert found is not None
    assert 0.36 <= found.threshold <= 0.45
    assert found.bad / found.n < found.bound <= 0.16


def test_precision_bound_holds_as_often_as_promised() -> None:
    """Of 300 choices with 90 % confidence few flag with less than the wanted precision; ties are on the right side."""
    rng = np.random.default_rng(2)
    missed, found_some = 0, 0
    for _ in range(300):
        score = rng.uniform(0, 1, 3000)
        right = (rng.uniform(0, 1, 3000) < truth(score)).astype(float)
        found = by_precision(score, right, 0.4, 0.9)
        if found is None:
            continue
        found_some += 1
        assert (score < found.threshold).sum() == found.n
        missed += 1 - truth(np.array(found.threshold / 2)) < 0.4  # uniform scores below: the mean is at the middle
    assert found_some > 200
    assert missed <= 30 + 3 * np.sqrt(300 * 0.1 * 0.9)


def test_what_cannot_be_shown_is_refused() -> None:
    """Ten right answers show no risk of 5 %."""
    assert by_risk(np.linspace(0, 1, 10), np.ones(10), 0.05) is None
    with pytest.raises(DataError, match="label more of it, about other pictures, or ask for less"):
        calibrate(traffic(1000, 0), "risk", 0.001)


@pytest.mark.parametrize("method", ["risk", "precision"])
def test_what_can_be_shown_is_said(method: str) -> None:
    """A refusal names the nearest target that is met, and a little beyond it nothing is."""
    stored = traffic(3000, 12)
    with pytest.raises(DataError) as refused:
        calibrate(stored, method, {"risk": 0.01, "precision": 0.99}[method])
    said = float(re.findall(r"at (?:most|least) (0\.\d+) can be shown", str(refused.value))[0])
    assert calibrate(stored, method, said).chosen["n"] > 0
    with pytest.raises(DataError):
        calibrate(stored, method, said + {"risk": -0.002, "precision": 0.002}[method])


def test_answers_of_unknown_pictures_are_warned_of() -> None:
    """Where the servers kept nothing of pictures, nobody knows which answers are about one; that is said."""
    stored = traffic(1000, 13)
    unknown = from_rows([{**row, "sha256": None} for row in rows(stored)], "cases.jsonl")
    assert unknown.pictures_unknown == len(set(unknown.picture)) == len(stored)
    assert any("FASTRM_PICTURES=none" in said for said in calibrate(unknown, "flag-rate", 0.1).warnings)
    assert not from_rows(rows(stored), "cases.jsonl").pictures_unknown


def test_exact_bounds() -> None:
    """Clopper and Pearson's: no error in n answers gives 1 - error^(1/n), by hand."""
    assert upper_bound(0, 59, 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_bound(3, 3, 0.05) == 1.0
    assert interval(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert interval(0, 0) == (0.0, 1.0)


def test_weights_undo_what_storing_and_labelling_prefer() -> None:
    """The share of right answers is far off without weights and right with them, flagged ones labelled more often."""
    stored = traffic(200_000, 3, rate=0.1)
    drop = ~stored.flagged & (np.random.default_rng(0).uniform(0, 1, len(stored)) > 0.25)
    right = np.where(drop, np.nan, stored.right)
    biased = Answers(**{**vars(stored), "right": right})
    known = biased.labelled
    assert np.mean(right[known]) < 0.68
    assert np.average(right[known], weights=biased.weights[known]) == pytest.approx(0.75, abs=0.01)
    part = random_part(biased)
    assert np.mean(part.right) == pytest.approx(0.75, abs=0.02)


def test_flagged_answers_alone_are_refused() -> None:
    """Without a random sample, or with labels of flagged ones only, there is a sentence and no number."""
    stored = traffic(2000, 4)
    with pytest.raises(DataError, match="no random sample"):
        calibrate(stored.where(stored.flagged & ~stored.sampled), "flag-rate", 0.1)
    only = Answers(**{**vars(stored), "right": np.where(stored.flagged, stored.right, np.nan)})
    with pytest.raises(DataError, match="Only 0 answers that were not flagged are labelled"):
        calibrate(only, "risk", 0.3)


def test_one_fit_serves_several_targets() -> None:
    """A fit that is given is taken as it is: another target costs no other fit and changes no number."""
    answers = traffic(2000, 7)
    made = fit(answers)
    for method, target in (("flag-rate", 0.2), ("risk", 0.3)):
        one, other = calibrate(answers, method, target, made=made), calibrate(answers, method, target)
        assert one.fit is made
        assert one.as_json() == other.as_json()


def test_labels_of_the_lowest_scores_are_warned_of() -> None:
    """Whoever labels the least sure ones first is told that the numbers are biased; a random half is not."""
    stored = traffic(4000, 5, below=0.1)
    lowest = Answers(**{**vars(stored), "right": np.where(stored.score < 0.5, stored.right, np.nan)})
    assert any("not a random part" in said for said in calibrate(lowest, "flag-rate", 0.1).warnings)
    assert calibrate(traffic(4000, 5, below=0.1, labelled=0.5), "flag-rate", 0.1).warnings == ()


@pytest.mark.parametrize(("n", "method"), [(1200, "platt"), (6000, "isotonic")])
def test_recalibration(n: int, method: str) -> None:
    """Held-out ECE and Brier fall, the interval of the planted truth is met, and no order changes."""
    made = fit(traffic(n, 6))
    assert made.method == method
    assert made.before.ece.value > 0.15
    assert made.after.ece.value < 0.06
    assert made.after.brier.value < made.before.brier.value
    for estimate in (made.before.ece, made.before.brier, made.after.ece, made.after.brier):
        assert estimate.ci95 is not None
        assert 0 <= estimate.ci95[0] < estimate.ci95[1]
    said = [made.recalibration(score) for score in np.linspace(0, 1, 500)]
    assert all(one < other for one, other in pairwise(said))
    assert Recalibration.from_json(json.loads(json.dumps(made.recalibration.as_json()))) == made.recalibration
    assert np.max(np.abs(np.array(said[50:450]) - truth(np.linspace(0, 1, 500)[50:450]))) < 0.12


def test_too_few_labels_say_how_many_are_needed() -> None:
    """Below the minimum nothing is fitted."""
    with pytest.raises(DataError, match=f"calibration needs {LEAST}, and 10 of each kind"):
        fit(traffic(60, 7))


@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_answers_of_a_kind_about_one_picture_are_too_few(tmp_path: Path, kind: str) -> None:
    """However many they are: the sentence says what to label, the command's too."""
    stored = traffic(400, 14, rate=1.0)
    few = np.arange(len(stored)) < 20
    picture = np.where(few, "one", stored.picture)
    all_alike = Answers(**{**vars(stored), "right": np.where(few, kind == "right", kind != "right") * 1.0})
    about_one = Answers(**{**vars(all_alike), "picture": picture})
    said = f"The 20 {kind} answers are about only 1 picture: calibration needs {kind} ones about 5"
    with pytest.raises(DataError, match=said):
        fit(about_one)
    exported = tmp_path / "cases.jsonl"
    exported.write_text("".join(json.dumps(row) + "\n" for row in rows(about_one)))
    done = CliRunner().invoke(app, ["calibrate", "--answers", str(exported), "--flag-rate", "0.1"])
    assert isinstance(done.exception, DataError)
    assert said in str(done.exception)
    assert fit(all_alike).pictures == 200


def test_wrong_answers_about_few_pictures_are_enough_however_they_fall() -> None:
    """With five pictures of wrong answers there is a fit, whichever of the pictures they are."""
    stored = traffic(100, 15, rate=1.0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        bad = np.isin(stored.picture, rng.choice(np.unique(stored.picture), 5, replace=False))
        assert fit(Answers(**{**vars(stored), "right": 1.0 - bad})).pictures == 50


@pytest.mark.parametrize("below", [0.0, 0.75])
def test_scores_that_say_the_opposite_give_the_base_rate(below: float) -> None:
    """Where higher scores are wrong more often, every answer is given the weighted share of right ones."""
    rng = np.random.default_rng(3)
    score = rng.uniform(0.5, 1, 400)
    right = (rng.uniform(0, 1, 400) < 1.4 - score).astype(float)
    pictures = np.array([f"p{number}" for number in range(400)])
    answers = Answers(
        score, score, right, score < below, np.ones(400, bool), np.full(400, 0.5), pictures, "m", "v", "calibrated"
    )
    share = float(np.average(right, weights=answers.weights))
    made = fit(answers)
    assert [made.recalibration(one) for one in (0.5, 0.75, 0.99)] == pytest.approx([share] * 3, abs=0.002)
    assert made.recalibration(0.5) < made.recalibration(0.99)
    assert made.after.brier.value == pytest.approx(share * (1 - share), abs=0.01)  # held-out answers, too


def test_labels_needed_falls_with_the_width() -> None:
    """Half the width takes four times the labels."""
    made = fit(traffic(1200, 8))
    assert labels_needed(made.after.brier, 100, 0.01) == pytest.approx(
        4 * (labels_needed(made.after.brier, 100, 0.02) or 0), abs=4
    )


def test_flag_rate_and_preview() -> None:
    """The threshold of a flag rate flags that share of the sample, and the preview's interval has the truth in it."""
    stored = traffic(4000, 9)
    sample = stored.where(stored.sampled)
    threshold = by_flag_rate(sample.score, 1 / sample.rate, 0.2)
    assert threshold == pytest.approx(0.2, abs=0.03)
    share, low, high = flagged_share(sample, threshold)
    assert share == pytest.approx(0.2, abs=0.01)
    assert low < 0.2 < high


def test_scores_before_recalibration_are_found_again() -> None:
    """An answer that a policy recalibrated counts with the score it had before, whatever was shown."""
    assert score_of({"calibrated_score": 0.3}, 0.9, True) == (0.3, "calibrated")
    assert score_of({"token_probability_score": 0.3, "token_probability": 0.3}, 0.9, True) == (0.3, "token_probability")
    assert score_of({"map_entropy": 0.6}, 0.4, False) == (0.4, "map_entropy")


@pytest.mark.parametrize(
    "raw",
    [
        {"source": "luck"},
        {"source": "calibrated", "slope": -1, "intercept": 0},
        {"source": "calibrated", "knots": [[0.5, 0.2], [0.4, 0.3]]},
        {"source": "calibrated", "knots": [[0.5, 0.4], [0.6, 0.3]]},
        {"source": "calibrated", "slope": float("nan")},
        [],
    ],
)
def test_a_damaged_recalibration_is_refused(raw: Any) -> None:
    """What is not increasing or not finite is no recalibration."""
    with pytest.raises(DataError, match="publish another policy"):
        Recalibration.from_json(raw)


def test_rows_of_an_export() -> None:
    """An export's rows give the same answers; a row that lacks something is named by its number."""
    stored = traffic(300, 10, labelled=0.5)
    read = from_rows(rows(stored), "cases.jsonl")
    assert read.score.tolist() == stored.score.tolist()
    assert np.array_equal(read.right, stored.right, equal_nan=True)
    assert (read.model, read.proxy_version, read.source) == ("m", "v", "calibrated")
    grounded = from_rows(
        [{**rows(stored)[0], "verdict": "not_grounded"}, {**rows(stored)[0], "verdict": "unsure"}], "x"
    )
    assert grounded.right[0] == 0
    assert np.isnan(grounded.right[1])
    with pytest.raises(DataError, match=r"Row 2 of cases\.jsonl is no exported case"):
        from_rows([rows(stored)[0], {"confidence": 0.5}], "cases.jsonl")


def test_command(tmp_path: Path, store_url: str) -> None:
    """`calibrate` on exported answers prints the numbers, writes them, and publishes what it wrote."""
    exported = tmp_path / "cases.jsonl"
    exported.write_text("".join(json.dumps(row) + "\n" for row in rows(traffic(3000, 11, labelled=0.9))))
    Store(store_url).close()
    given = ["calibrate", "--answers", str(exported), "--risk", "0.2", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*given, "--publish", "--store", store_url, "--note", "first"])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "out" / "calibration.json").read_text())
    for said in ("ECE", "Brier", "labels needed", "published as policy 1", f"threshold {written['threshold']:.4f}"):
        assert said in done.output
    with Store(store_url) as store:
        (policy,) = history(store, "m", "v")
    assert (policy.threshold, policy.note) == (written["threshold"], "first")
    assert policy.chosen == written["chosen"]
    assert policy.chosen["bound"] <= 0.2
    assert policy.chosen["pictures"] < policy.chosen["answers"] < 3000
    assert f"{policy.chosen['answers']} labels about {policy.chosen['pictures']} pictures" in " ".join(
        done.output.split()
    )
    for ways in ([], ["--risk", "0.1", "--flag-rate", "0.1"]):
        refused = CliRunner().invoke(app, ["calibrate", "--answers", str(exported), *ways])
        assert "in one way" in str(refused.exception)
