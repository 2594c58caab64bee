"""How well a score tells right from wrong: values worked out by hand, and intervals that respect pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastrm_monitor.lab.intervals import over_pictures
from fastrm_monitor.lab.reliability import accuracy, auroc, auroc_difference, calibration_error, judge, oriented


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


def test_auroc_difference() -> None:
    """One score that is always right against one that is always wrong differ by 1, two alike by exactly 0."""
    right, names = [True, False] * 10, [f"p{n // 2}" for n in range(20)]
    good, bad = [0.9, 0.1] * 10, [0.1, 0.9] * 10
    assert auroc_difference(good, bad, right, names) == {"difference": 1.0, "ci95": [1.0, 1.0]}
    assert auroc_difference(good, good, right, names) == {"difference": 0.0, "ci95": [0.0, 0.0]}
    assert auroc_difference(good, bad, [True] * 20, names) == {"difference": None, "ci95": None}


def test_calibration_error_by_hand() -> None:
    """Five answers at 0.9 of which four are right, five at 0.2 of which two are: (0.1 x 5 + 0.2 x 5) / 10."""
    probability = np.array([0.9] * 5 + [0.2] * 5)
    right = np.array([1, 1, 1, 1, 0, 1, 1, 0, 0, 0], bool)
    assert calibration_error(probability, right, bins=2) == pytest.approx(0.15)
    assert calibration_error(np.array([0.25, 0.25, 0.25, 0.25]), np.array([1, 0, 0, 0], bool)) == pytest.approx(0.0)


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
    for name in ("fastrm", "token_probability", "p_ik", "map_mass", "map_max"):
        assert oriented(name, values).tolist() == [0.2, 0.9]


def test_judge() -> None:
    """Pooled and within kinds; probabilities have calibration and Brier, other scores have not; nothing is NaN."""
    right = [True, False, True, False, True]
    scores = {"fastrm": [0.9, 0.2, 0.8, 0.3, 0.4], "map_entropy": [0.9, 0.8, 0.7, 0.6, 0.5]}
    judged = judge(scores, right, ["color", "color", "count", "count", "shape"], list("abcde"))
    own = judged["fastrm"]
    assert (own["n"], own["wrong"], own["auroc"]) == (5, 2, 1.0)
    assert own["brier"] == pytest.approx((0.01 + 0.04 + 0.04 + 0.09 + 0.36) / 5)
    assert own["ece"] == pytest.approx((0.1 + 0.2 + 0.2 + 0.3 + 0.6) / 5)
    assert own["auroc_ci95"] == [1.0, 1.0]
    assert own["by_group"] == {
        "color": {"n": 2, "auroc": 1.0},
        "count": {"n": 2, "auroc": 1.0},
        "shape": {"n": 1, "auroc": None},
    }
    other = judged["map_entropy"]
    assert other["auroc"] == pytest.approx(3 / 6)  # of the pairs, 0.7 and 0.5 beat 0.8, 0.5 beats 0.6
    assert other["by_group"]["color"]["auroc"] == 0.0
    assert not {"ece", "brier"} & set(other)


def test_accuracy() -> None:
    """The share of right answers, pooled and by kind, with intervals."""
    found = accuracy([True, True, False, True], ["color", "color", "count", "count"], list("abcd"))
    assert (found["all"]["n"], found["all"]["rate"]) == (4, 0.75)
    assert found["by_group"]["color"] == {"n": 2, "rate": 1.0, "ci95": [1.0, 1.0]}
    assert found["by_group"]["count"]["rate"] == 0.5
    assert found["by_group"]["count"]["ci95"] == [0.0, 1.0]


def width(pictures: list[str], values: np.ndarray) -> float:
    interval = over_pictures(lambda rows: float(values[rows].mean()), pictures)
    assert interval is not None
    return interval[1] - interval[0]


def test_interval_of_a_mean() -> None:
    """Where every question has its own picture the interval is the usual one of a mean, around the mean."""
    values = np.repeat([0.0, 1.0], 200)
    assert width([str(n) for n in range(400)], values) == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
    interval = over_pictures(lambda rows: float(values[rows].mean()), [str(n) for n in range(400)])
    assert np.mean(interval or 0) == pytest.approx(0.5, abs=0.01)


def test_identical_questions_of_a_picture() -> None:
    """Five identical questions a picture say no more than one: the interval is sqrt 5 times wider than of 400 apart."""
    values = np.repeat([0.0, 1.0], 200)
    together = [str(n // 5) for n in range(400)]
    apart = [str(n) for n in range(400)]
    assert width(together, values) / width(apart, values) == pytest.approx(math.sqrt(5), rel=0.15)


def test_pictures_are_drawn_whole() -> None:
    """A draw takes all rows of a picture or none, wherever they stand."""
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
    interval = over_pictures(lambda rows: auroc(np.arange(3.0)[rows], right[rows]), ["a", "b", "c"])
    assert interval is not None
    assert all(0 <= bound <= 1 for bound in interval)
    assert over_pictures(lambda rows: float("nan"), ["a", "b"]) is None
    assert over_pictures(lambda rows: 1.0, []) is None


def test_intervals_are_repeatable() -> None:
    """The same data gives the same interval."""
    values = np.random.default_rng(0).random(30)
    pictures = [str(n) for n in range(30)]
    assert width(pictures, values) == width(pictures, values)
