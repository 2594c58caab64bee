"""How well a score tells right from wrong: values worked out by hand, planted truths, intervals over pictures."""

from __future__ import annotations

import math
import time
from itertools import permutations

import numpy as np
import pytest

from fastrm_monitor.lab.comparison import Answers, Comparison, accuracy
from fastrm_monitor.lab.intervals import LEAST, Draws, holm, interval, over_pictures, rate, significance
from fastrm_monitor.lab.reliability import (
    aurc,
    auroc,
    brier,
    calibration_bins,
    calibration_error,
    oriented,
    prr,
    risks,
    spearman,
)


@pytest.mark.parametrize(
    ("score", "right", "expected"),
    [
        ([0.1, 0.4, 0.4, 0.8], [False, True, False, True], 3.5 / 4),
        ([1, 2, 3, 4], [False, False, True, True], 1.0),
        ([1, 2, 3, 4], [True, True, False, False], 0.0),
        ([5, 5, 5], [True, False, True], 0.5),
        ([3, 1, 2], [True, True, False], 0.5),
    ],
)
def test_auroc(score: list[float], right: list[bool], expected: float) -> None:
    """The share of (right, wrong) pairs in which the right one scores higher, a tie counting half."""
    assert auroc(np.array(score, float), np.array(right)) == pytest.approx(expected)


def test_auroc_needs_both_kinds() -> None:
    """Without right or without wrong answers there is nothing to tell apart."""
    for kind in (True, False):
        assert math.isnan(auroc(np.array([0.1, 0.2]), np.array([kind, kind])))
        assert math.isnan(prr(np.array([0.1, 0.2]), np.array([kind, kind])))
        assert math.isnan(spearman(np.array([0.1, 0.2]), np.array([kind, kind])))


def test_risk_coverage_by_hand() -> None:
    """From the surest on: right, wrong, right, wrong gives risks 0, 1/2, 1/3, 2/4 and their mean as the area."""
    score, right = np.array([0.2, 0.9, 0.4, 0.6]), np.array([False, True, True, False])
    assert risks(score, right).tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert aurc(score, right) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    # An oracle keeps both right ones first: 0, 0, 1/3, 1/2.
    assert prr(score, right) == pytest.approx((1 / 2 - 1 / 3) / (1 / 2 - (1 / 3 + 1 / 2) / 4))


def test_ties_are_what_random_order_gives() -> None:
    """The curve of tied scores is the mean of the curves over every order of the ties."""
    score, right = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([True, True, False, False, True])
    orders = [risks(np.array([0.9, *own, 0.1]), right) for own in permutations([0.4, 0.5, 0.6])]
    assert risks(score, right) == pytest.approx(np.mean(orders, axis=0))


def test_planted_scores() -> None:
    """An oracle has AUROC 1 and PRR exactly 1, a constant 0.5 and 0, the oracle turned round 0 and below 0."""
    right = np.random.default_rng(0).random(500) < 0.8
    assert (auroc(right.astype(float), right), prr(right.astype(float), right)) == (1.0, 1.0)
    assert prr(10 * right + np.random.default_rng(1).random(500), right) == 1.0
    assert auroc(np.ones(500), right) == 0.5
    assert prr(np.ones(500), right) == pytest.approx(0.0, abs=1e-12)
    assert auroc(1.0 - right, right) == 0.0
    assert prr(1.0 - right, right) < -0.5


def test_random_scores_reject_nothing() -> None:
    """Over many shuffles the mean PRR of a score that knows nothing is 0."""
    rng = np.random.default_rng(0)
    right = np.arange(400) < 300
    found = [prr(rng.random(400), right) for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.0, abs=3 * np.std(found) / math.sqrt(300))


def test_spearman_is_zero_where_auroc_is_a_half() -> None:
    """Of yes and no the rank correlation has the sign of AUROC - 1/2, which is why they share a p value."""
    right = np.array([True, False, False, True])
    assert spearman(np.array([1.0, 2.0, 3.0, 4.0]), right) == pytest.approx(0.0)
    assert spearman(np.array([2.0, 1.0, 0.0, 4.0]), right) > 0.5
    assert spearman(np.array([0.0, 1.0, 2.0, 0.5]), right) < -0.5
    assert math.isnan(spearman(np.ones(4), right))


def test_calibration_error_by_hand() -> None:
    """Five answers at 0.9 of which four are right, five at 0.2 of which two are: (0.1 x 5 + 0.2 x 5) / 10."""
    probability = np.array([0.9] * 5 + [0.2] * 5)
    right = np.array([1, 1, 1, 1, 0, 1, 1, 0, 0, 0], bool)
    assert calibration_error(probability, right, bins=2) == pytest.approx(0.15)
    assert calibration_bins(probability, right, bins=2) == [pytest.approx((0.2, 0.4, 5)), pytest.approx((0.9, 0.8, 5))]
    assert calibration_error(np.array([0.25, 0.25, 0.25, 0.25]), np.array([1, 0, 0, 0], bool)) == pytest.approx(0.0)
    assert brier(np.array([0.9, 0.2, 0.5]), np.array([True, False, False])) == pytest.approx((0.01 + 0.04 + 0.25) / 3)


def test_calibration_error_has_bins_of_equal_count() -> None:
    """Six answers in three bins of two: gaps 0.15 - 0, 0.5 - 0.5 and 0.85 - 1."""
    probability = np.array([0.8, 0.1, 0.4, 0.9, 0.6, 0.2])
    right = np.array([True, False, False, True, True, False])
    assert calibration_error(probability, right, bins=3) == pytest.approx((0.15 + 0.0 + 0.15) / 3)


def test_calibration_error_does_not_know_the_order() -> None:
    """Equal probabilities share a bin: the order of the rows, right ones first say, must not count."""
    probability = np.repeat([0.5, 0.8], [60, 40])
    right = np.array([True] * 30 + [False] * 30 + [True] * 32 + [False] * 8)
    order = np.random.default_rng(0).permutation(100)
    assert calibration_error(probability, right) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(probability[order], right[order]) == pytest.approx(0.0, abs=1e-12)


def test_orientation() -> None:
    """Entropies and spread are negated, so that higher always means more likely right."""
    values = np.array([0.2, 0.9])
    for name in ("token_entropy", "map_entropy", "teacher_map_entropy"):
        assert oriented(name, values).tolist() == [-0.2, -0.9]
    for name in ("fastrm", "token_probability", "p_ik", "map_mass", "map_max", "grounding", "evidence", "sampling"):
        assert oriented(name, values).tolist() == [0.2, 0.9]


# --- several scores on the same answers ----------------------------------------------------------------------------


def some(count: int = 600, seed: int = 0) -> tuple[np.ndarray, Answers]:
    """A score that knows something, and answers of two families, two questions a picture."""
    rng = np.random.default_rng(seed)
    right = rng.random(count) < 0.75
    groups = np.where(rng.random(count) < 0.5, "color", "count").tolist()
    answers = Answers(right.tolist(), groups, [f"p{n // 2}" for n in range(count)])
    return np.round(right + rng.normal(0, 1.0, count), 1), answers


def test_interval_is_that_of_the_slow_way() -> None:
    """Weighted AUROCs of shared draws have the interval that drawing rows over and over has, ties included."""
    score, answers = some()
    own = Comparison({"map_max": score.tolist()}, answers).judge()["map_max"]
    pictures = [f"p{n // 2}" for n in range(len(answers))]
    slow = over_pictures(lambda rows: auroc(score[rows], answers.right[rows]), pictures, seed=1)
    assert own["auroc"] == pytest.approx(auroc(score, answers.right))
    assert own["auroc_ci95"] == pytest.approx(slow, abs=0.01)


def test_within_families() -> None:
    """Where a score only knows which family is hard it has nothing within them; pairs weigh the mean."""
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1], 200)
    right = rng.random(400) < np.where(kind, 0.9, 0.4)
    answers = Answers(right.tolist(), np.where(kind, "easy", "hard").tolist(), [str(n) for n in range(400)])
    score = kind + 0.5 * rng.random(400)
    own = Comparison({"map_max": score.tolist()}, answers).judge()["map_max"]
    assert own["auroc"] > 0.65
    low, high = own["within"]["ci95"]
    assert low < 0.5 < high
    pairs = {name: sum(right[kind == k]) * sum(~right[kind == k]) for k, name in enumerate(("hard", "easy"))}
    by_hand = sum(own["by_group"][name]["auroc"] * count for name, count in pairs.items()) / sum(pairs.values())
    assert own["within"]["auroc"] == pytest.approx(by_hand)


def test_planted_scores_in_comparison() -> None:
    """Of an oracle, a shuffled and a constant score the first is found, the others are not, whatever their number."""
    _, answers = some()
    rng = np.random.default_rng(3)
    scores = {
        "fastrm": answers.right.astype(float).tolist(),
        "map_entropy": [1.0] * len(answers),
        **{f"shuffled-{n}": rng.permutation(answers.right).astype(float).tolist() for n in range(8)},
    }
    comparison = Comparison(scores, answers)
    judged, apart = comparison.judge(), comparison.differences()
    assert (judged["fastrm"]["auroc"], judged["fastrm"]["prr"], judged["fastrm"]["auroc_ci95"]) == (
        1.0,
        1.0,
        [1.0, 1.0],
    )
    assert judged["fastrm"]["p_holm"] < 0.05
    assert (judged["map_entropy"]["auroc"], judged["map_entropy"]["auroc_ci95"]) == (0.5, [0.5, 0.5])
    assert judged["map_entropy"]["p"] == judged["map_entropy"]["p_holm"] == 1.0
    for n in range(8):
        assert judged[f"shuffled-{n}"]["p_holm"] > 0.05
        assert apart[f"shuffled-{n}"]["ci95"][0] > 0.3
        assert apart[f"shuffled-{n}"]["p_holm"] < 0.05
    low, high = judged["shuffled-0"]["auroc_ci95"]
    assert low < 0.5 < high


def test_differences_are_paired() -> None:
    """Two scores that rank alike differ by exactly 0, and one that adds little noise has a narrow interval."""
    score, answers = some()
    rng = np.random.default_rng(0)
    near = score + rng.normal(0, 0.05, len(score))
    scores = {"fastrm": score.tolist(), "p_ik": (2 * score + 1).tolist(), "map_max": near.tolist()}
    comparison = Comparison(scores, answers)
    apart, judged = comparison.differences(), comparison.judge()
    assert (apart["p_ik"]["difference"], apart["p_ik"]["ci95"], apart["p_ik"]["p"]) == (0.0, [0.0, 0.0], 1.0)
    assert apart["p_ik"]["within"] == {"difference": 0.0, "ci95": [0.0, 0.0]}
    low, high = apart["map_max"]["ci95"]
    whole = judged["map_max"]["auroc_ci95"]
    assert high - low < 0.3 * (whole[1] - whole[0])
    assert set(apart) == {"p_ik", "map_max"}
    assert set(apart["map_max"]["by_group"]) == {"color", "count"}


def test_scores_that_know_some_answers() -> None:
    """A score known for some answers is judged, and compared, on those alone; one known for none is left out."""
    score, answers = some()
    half = np.where(np.arange(len(score)) < 300, answers.right, np.nan)
    comparison = Comparison({"fastrm": score.tolist(), "sampling": half.tolist(), "p_ik": [math.nan] * 600}, answers)
    judged, apart = comparison.judge(), comparison.differences()
    assert set(judged) == {"fastrm", "sampling"}
    assert (judged["sampling"]["n"], judged["fastrm"]["n"], judged["sampling"]["auroc"]) == (300, 600, 1.0)
    assert apart["sampling"]["n"] == 300
    assert apart["sampling"]["difference"] == pytest.approx(auroc(score[:300], answers.right[:300]) - 1)


def test_too_few_to_conclude() -> None:
    """Below 20 wrong answers, or 20 pictures, there is a number and no interval, test or conclusion."""
    for count, wrong, pictures in ((3, 1, 3), (200, LEAST - 1, 200), (200, 60, LEAST - 1)):
        right = [n >= wrong for n in range(count)]
        answers = Answers(right, ["color"] * count, [str(n % pictures) for n in range(count)])
        scores = {"fastrm": [float(n) for n in range(count)], "map_max": [float(-n) for n in range(count)]}
        comparison = Comparison(scores, answers)
        own, apart = comparison.judge()["fastrm"], comparison.differences()["map_max"]
        assert own["auroc"] == 1.0
        assert not own["conclusive"]
        assert own["auroc_ci95"] is own["p"] is own["p_holm"] is own["within"]["ci95"] is None
        assert own["by_group"]["color"]["auroc_ci95"] is apart["ci95"] is apart["p_holm"] is None


def test_many_questions_about_one_picture_conclude_nothing() -> None:
    """A family, and what a score knows, count the pictures of these rows: 50 questions on one say no more than one."""
    rng = np.random.default_rng(0)
    right = rng.random(150) < 0.5
    pictures = [str(n) for n in range(100)] + ["one"] * 50
    answers = Answers(right.tolist(), ["many"] * 100 + ["one"] * 50, pictures)
    score = right + rng.normal(0, 1, 150)
    about_one = np.where(np.arange(150) < 100, math.nan, score)
    scores = {"fastrm": score.tolist(), "map_max": (-score).tolist(), "sampling": about_one.tolist()}
    comparison = Comparison(scores, answers)
    judged, apart = comparison.judge(), comparison.differences()
    own = judged["fastrm"]
    assert own["conclusive"] and own["by_group"]["many"]["conclusive"]  # noqa: PT018
    assert own["by_group"]["one"]["auroc"] > 0.5
    assert not own["by_group"]["one"]["conclusive"]
    assert own["by_group"]["one"]["auroc_ci95"] is apart["map_max"]["by_group"]["one"]["ci95"] is None
    assert apart["map_max"]["by_group"]["many"]["ci95"] is not None
    assert not judged["sampling"]["conclusive"]
    assert judged["sampling"]["auroc_ci95"] is judged["sampling"]["p"] is judged["sampling"]["within"]["ci95"] is None
    assert apart["sampling"]["ci95"] is apart["sampling"]["p"] is apart["sampling"]["within"]["ci95"] is None


def test_within_families_counts_the_pictures_of_mixed_families() -> None:
    """Families all right or all wrong rank nothing, so their pictures do not make the rest conclusive."""
    right = [True] * 100 + [n % 2 == 0 for n in range(50)]
    answers = Answers(right, ["easy"] * 100 + ["one"] * 50, [str(n) for n in range(100)] + ["one"] * 50)
    own = Comparison({"fastrm": [float(n % 7) for n in range(150)]}, answers).judge()["fastrm"]
    assert own["conclusive"]
    assert own["within"]["auroc"] is not None
    assert own["within"]["ci95"] is None


def test_comparison_is_fast() -> None:
    """A dozen scores on 3,000 answers in 1,000 draws, pooled, within families and paired, take seconds."""
    rng = np.random.default_rng(0)
    right = rng.random(3000) < 0.8
    groups = [f"kind-{n}" for n in rng.integers(5, size=3000)]
    answers = Answers(right.tolist(), groups, [str(n // 4) for n in range(3000)])
    names = ["fastrm", *(f"score-{n}" for n in range(11))]
    comparison = Comparison({name: (right + rng.normal(0, 2, 3000)).tolist() for name in names}, answers)
    began = time.process_time()
    assert len(comparison.judge()) == 12
    assert len(comparison.differences()) == 11
    assert time.process_time() - began < 20  # about 4 s on a slow core


def test_accuracy() -> None:
    """The share of right answers, pooled and by kind, with intervals where there are pictures enough."""
    right = [n % 4 != 0 for n in range(80)]
    answers = Answers(right, ["color"] * 40 + ["count"] * 40, [str(n) for n in range(80)])
    found = accuracy(answers)
    assert (found["all"]["n"], found["all"]["rate"]) == (80, 0.75)
    assert found["all"]["ci95"] == pytest.approx([0.75 - 0.095, 0.75 + 0.095], abs=0.02)
    assert (found["by_group"]["color"]["n"], found["by_group"]["color"]["rate"]) == (40, 0.75)
    few = accuracy(Answers([True, False], ["color", "count"], ["a", "b"]))
    assert few["by_group"]["color"] == {"n": 1, "rate": 1.0, "ci95": None}


# --- intervals -----------------------------------------------------------------------------------------------------


def width(pictures: list[str], values: np.ndarray) -> float:
    bounds = interval(Draws(pictures).means(values))
    assert bounds is not None
    return bounds[1] - bounds[0]


def test_interval_of_a_mean() -> None:
    """Where every question has its own picture the interval is the usual one of a mean, around the mean."""
    values = np.repeat([0.0, 1.0], 200)
    pictures = [str(n) for n in range(400)]
    assert width(pictures, values) == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
    assert np.mean(interval(Draws(pictures).means(values)) or 0) == pytest.approx(0.5, abs=0.01)
    slow = over_pictures(lambda rows: float(values[rows].mean()), pictures)
    assert slow == pytest.approx(interval(Draws(pictures).means(values)), abs=0.01)


def test_identical_questions_of_a_picture() -> None:
    """Five identical questions a picture say no more than one: the interval is sqrt 5 times wider than of 400 apart."""
    values = np.repeat([0.0, 1.0], 200)
    together = [str(n // 5) for n in range(400)]
    apart = [str(n) for n in range(400)]
    assert width(together, values) / width(apart, values) == pytest.approx(math.sqrt(5), rel=0.15)


def test_draws_take_pictures_whole() -> None:
    """A draw weighs all rows of a picture alike, wherever they stand, and draws each picture once on average."""
    draws = Draws(["a", "b", "a", "c", "b", "a"], resamples=50)
    (weights,) = draws.weights(np.arange(6))
    assert weights.shape == (50, 6)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert len(set(weights.sum(1).tolist())) > 1
    assert Draws([str(n) for n in range(100)]).counts.mean(0) == pytest.approx(1, abs=0.15)
    assert draws.sums(np.ones((6, 2)))[:, 1].tolist() == weights.sum(1).tolist()


def test_pictures_are_drawn_whole() -> None:
    """The slow way too takes all rows of a picture or none."""
    pictures = ["a", "b", "a", "c", "b", "a"]
    rows_of = {"a": {0, 2, 5}, "b": {1, 4}, "c": {3}}
    seen = []

    def look(rows: np.ndarray) -> float:
        counts = np.bincount(rows, minlength=6)
        seen.append(rows)
        assert all(len({int(counts[row]) for row in own}) == 1 for own in rows_of.values())
        return 0.0

    over_pictures(look, pictures, resamples=50)
    assert len(seen) == 50
    assert len({len(rows) for rows in seen}) > 1


def test_undefined_draws() -> None:
    """Draws without a value are left out; when all are, or there is no picture, there is no interval."""
    right = np.array([True, False, True])
    bounds = over_pictures(lambda rows: auroc(np.arange(3.0)[rows], right[rows]), ["a", "b", "c"])
    assert bounds is not None
    assert all(0 <= bound <= 1 for bound in bounds)
    assert over_pictures(lambda rows: float("nan"), ["a", "b"]) is None
    assert over_pictures(lambda rows: 1.0, []) is None
    assert interval(np.full(5, np.nan)) is None
    assert significance(np.full(5, np.nan)) is None


def test_draws_are_repeatable_and_independent() -> None:
    """The same seed draws the same, another seed draws apart."""
    values = np.random.default_rng(0).random(30)
    pictures = [str(n) for n in range(30)]
    one, same, other = (Draws(pictures, seed=seed).means(values) for seed in (4, 4, 5))
    assert (one == same).all()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


def test_draws_are_paired_on_what_two_sets_share() -> None:
    """A picture is drawn as often in every set that has it, whatever else is there; others are drawn apart."""
    one, other = Draws(["b", "a", "c"]), Draws(["d", "c", "a", "e"])  # columns in the order of their names
    assert (one.counts[:, [0, 2]] == other.counts[:, [0, 1]]).all()
    assert abs(np.corrcoef(one.counts[:, 1], other.counts[:, 2])[0, 1]) < 0.1
    assert abs(np.corrcoef(one.counts[:, 1], one.counts[:, 0])[0, 1]) < 0.1


def test_rate_at_the_edge() -> None:
    """Thirty of thirty is not certainty: the bound is exact, 0.025 ** (1 / 30), and pictures count, not answers."""
    draws = Draws([str(n // 2) for n in range(60)])
    assert rate(np.ones(60), draws) == {"n": 60, "rate": 1.0, "ci95": [pytest.approx(0.884, abs=0.001), 1.0]}
    assert rate(np.zeros(60), draws)["ci95"] == [0.0, pytest.approx(0.116, abs=0.001)]
    assert rate(np.ones(60), draws, np.zeros(60, bool)) == {"n": 0, "rate": None, "ci95": None}
    assert rate(np.ones(60), draws, np.arange(60) < 30)["ci95"] is None  # 15 pictures


def test_significance_agrees_with_the_interval() -> None:
    """P is below 0.05 where the interval ends, and is not below what the number of draws can show."""
    rng = np.random.default_rng(0)
    for shift in (0.0, 1.0, 1.9, 2.1, 3.0, -2.2):
        drawn = rng.normal(shift, 1, 1000)
        low, high = np.percentile(drawn, [2.5, 97.5])
        p = significance(drawn)
        assert p is not None
        assert (p < 0.05) == (low > 0 or high < 0)
    assert significance(np.ones(999)) == pytest.approx(2 / 1000)
    assert significance(np.zeros(999)) == 1.0


def test_holm_by_hand() -> None:
    """The smallest of three times 3, the next times 2, never below an earlier one or above 1; None does not count."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []
