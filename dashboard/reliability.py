"""What the calibration page says of labels: how many of which kind, what they are worth, and the diagram's points.

Numbers with their intervals, from `calibration`. Knows neither the store nor Streamlit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.calibration.fitting import LEAST, LEAST_EACH, Fit, Quality
from fastrm_monitor.calibration.thresholds import interval
from fastrm_monitor.dashboard import words

Series = Literal["before", "after"]


@dataclass(frozen=True)
class Share:
    """A weighted share of answers with its exact 95 % interval.

    Attributes:
        value: the share; NaN of no answers.
        low: end of the interval.
        high: likewise.
        n: answers.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def between(self) -> str:
        """The interval, for a page."""
        return f"{words.percent(self.low)} to {words.percent(self.high)}"


@dataclass(frozen=True)
class Labels:
    """How many answers are labelled.

    Attributes:
        answers: stored and scored, labelled or not.
        labelled: those with a usable verdict.
        right: of them.
        wrong: of them.
        flagged: flagged answers, and how many of them are labelled.
        sampled: answers of the random sample, likewise; one that was flagged and drawn counts in both.
        unflagged: labelled answers that were not flagged.
        effective: as many equally weighted labels would say as much (Kish 1965).
        weights: the smallest and the largest number of answers of the traffic that a label stands for.
        base: weighted share of right answers.
    """

    answers: int
    labelled: int
    right: int
    wrong: int
    flagged: tuple[int, int]
    sampled: tuple[int, int]
    unflagged: int
    effective: float
    weights: tuple[float, float]
    base: Share

    @property
    def lacking(self) -> list[tuple[str, int, int]]:
        """(what, there, needed) of everything that a calibration needs at least."""
        return [
            ("labelled answers", self.labelled, LEAST),
            ("of them right", self.right, LEAST_EACH),
            ("of them wrong", self.wrong, LEAST_EACH),
        ]


@dataclass(frozen=True)
class Point:
    """One point of the reliability diagram: stated probability, and the share of right answers that came."""

    series: Series
    stated: float
    right: Share


def count(answers: Answers) -> Labels:
    """Count the labels of these answers."""
    known, weight = answers.labelled, answers.weights[answers.labelled]

    def of(part: np.ndarray) -> tuple[int, int]:
        return int(part.sum()), int((part & known).sum())

    right = int(np.nansum(answers.right))
    return Labels(
        answers=len(answers),
        labelled=int(known.sum()),
        right=right,
        wrong=int(known.sum()) - right,
        flagged=of(answers.flagged),
        sampled=of(answers.sampled),
        unflagged=int((known & ~answers.flagged).sum()),
        effective=effective(weight),
        weights=(float(weight.min()), float(weight.max())) if len(weight) else (0.0, 0.0),
        base=weighted(answers.right[known] > 0, weight),
    )


def effective(weight: np.ndarray) -> float:
    """Unequal weights count as (sum w)^2 / sum w^2 answers (Kish 1965); 0 of none."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0


def weighted(hits: np.ndarray, weight: np.ndarray) -> Share:
    """The weighted share of `hits`, bool (S,), with the exact interval of as many answers as the weights count for."""
    if not len(weight):
        return Share(float("nan"), 0.0, 1.0, 0)
    value, tries = float(weight[hits].sum() / weight.sum()), max(round(effective(weight)), 1)
    return Share(value, *interval(round(value * tries), tries), len(weight))


def points(fit: Fit, labels: Labels) -> list[Point]:
    """The diagram of the scores as they are, and of the held-out recalibrated ones.

    A bin of n answers counts as n divided by the design effect of all weights; answers about one picture count as
    independent ones, which is nearly so within a bin.
    """
    design = labels.labelled / labels.effective
    series: tuple[tuple[Series, Quality], ...] = (("before", fit.before), ("after", fit.after))
    found = []
    for name, quality in series:
        for one in quality.bins:
            tries = max(round(one.n / design), 1)
            low, high = interval(round(one.right * tries), tries)
            found.append(Point(name, one.stated, Share(one.right, low, high, one.n)))
    return found
