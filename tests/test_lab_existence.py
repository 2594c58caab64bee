"""POPE's measures of labelled answers, counted by hand, with intervals over pictures."""

from __future__ import annotations

import pytest

from fastrm_monitor.lab.existence import existence
from fastrm_monitor.lab.labels import LabelFacts


def facts(picture: int, answer: str, right: bool, split: str = "random") -> LabelFacts:
    return LabelFacts(f"{split}-{picture}-{answer}", str(picture), split, answer, right, {}, (), (8, 8))


def test_by_hand() -> None:
    """Three right yes, one wrong yes, one right no, one wrong no: the label is what a right answer says."""
    answers = [("Yes", True), ("yes.", True), ("Yes, two", True), ("yes", False), ("No", True), ("no", False)]
    (own,) = existence([facts(n, *one) for n, one in enumerate(answers)]).values()
    assert own["n"] == 6
    assert (own["accuracy"]["n"], own["accuracy"]["rate"]) == (6, pytest.approx(4 / 6))
    assert (own["precision"]["n"], own["precision"]["rate"]) == (4, pytest.approx(3 / 4))
    assert (own["recall"]["n"], own["recall"]["rate"]) == (4, pytest.approx(3 / 4))
    assert (own["yes_rate"]["n"], own["yes_rate"]["rate"]) == (6, pytest.approx(4 / 6))
    assert own["f1"] == {"value": pytest.approx(0.75), "ci95": None}  # six pictures say nothing


def test_splits_apart() -> None:
    """Each split has its own measures; one where nobody says yes divides nothing by nothing."""
    found = existence([facts(1, "yes", True), facts(1, "no", True, "popular"), facts(2, "no", True, "popular")])
    assert list(found) == ["random", "popular"]
    assert (found["popular"]["f1"]["value"], found["popular"]["precision"]["rate"]) == (0.0, 0.0)
    assert found["popular"]["accuracy"]["rate"] == found["random"]["f1"]["value"] == 1.0


def test_intervals_go_by_picture() -> None:
    """Pictures that are all right or all wrong give wide intervals however many questions they have."""
    many = existence([facts(n % 40, ("yes", "no")[n // 40 % 2], n % 40 < 30) for n in range(400)])["random"]
    few = existence([facts(n, ("yes", "no")[n % 2], n % 40 < 30) for n in range(400)])["random"]
    assert many["f1"]["value"] == pytest.approx(few["f1"]["value"]) == pytest.approx(0.75)
    wide, narrow = (one["f1"]["ci95"][1] - one["f1"]["ci95"][0] for one in (many, few))
    assert wide > 2 * narrow
    assert many["f1"]["ci95"][0] < 0.75 < many["f1"]["ci95"][1]
