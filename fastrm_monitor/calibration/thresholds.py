"""Three ways to choose a threshold, each with a statement that holds for finite samples.

All of them work on the score before recalibration, whose order the recalibration keeps: which thresholds are tried then
does not depend on the labels. Pure functions of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COVERAGES = tuple(step / 20 for step in range(1, 21))
"""Shares of the answers that are tried, in this order."""
STARTS = (0.2, 0.5, 0.8)
"""Shares at which a chain of tests begins; each has an equal part of the error that is allowed."""


@dataclass(frozen=True)
class Chosen:
    """A threshold and what is known of the answers on its one side.

    Attributes:
        threshold: on the score; answers below are flagged.
        n: labelled answers that the statement rests on.
        bad: those of them that are what there should be few of.
        bound: upper confidence bound of their share.
    """

    threshold: float
    n: int
    bad: int
    bound: float


def upper_bound(bad: int, n: int, error: float) -> float:
    """The exact upper bound of a share (Clopper and Pearson 1934), too low with a probability of at most `error`."""
    from scipy.stats import beta

    return 1.0 if bad >= n else float(beta.ppf(1 - error, bad + 1, n - bad))


def interval(bad: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a share (Clopper and Pearson 1934)."""
    error = (1 - confidence) / 2
    return (1 - upper_bound(n - bad, n, error) if n else 0.0), (upper_bound(bad, n, error) if n else 1.0)


def by_risk(score: np.ndarray, right: np.ndarray, risk: float, confidence: float = 0.95) -> Chosen | None:
    """The lowest threshold with "at most `risk` of the answers that are not flagged are wrong", at that confidence.

    Learn then test (Angelopoulos et al. 2021) with fixed sequences: from each start in `STARTS` thresholds are lowered
    until the exact bound exceeds the risk. A chain stops at its first failure, so it errs with at most its part of
    1 - confidence, and all together with at most that.

    Args:
        score: float (S,), of labelled answers that are a random part of the traffic.
        right: (S,) 1 or 0.
        risk: 0..1.
        confidence: of the statement.

    Returns:
        None when no threshold can be shown to hold it: more labels, or a larger risk.
    """
    return _kept(score, right, risk, confidence, STARTS)


def by_precision(score: np.ndarray, right: np.ndarray, precision: float, confidence: float = 0.95) -> Chosen | None:
    """The highest threshold with "at least `precision` of the flagged answers are wrong", at that confidence.

    The same with the sides changed: of the answers below, few may be right. In the outcome `bad` are the right ones.
    """
    found = _kept(-score, 1 - right, 1 - precision, confidence, tuple(start / 2 for start in STARTS))
    if found is None:
        return None
    # Those at the outermost score are flagged, too: the threshold is half-way to the next one.
    last = -found.threshold
    above = score[score > last]
    return Chosen((last + float(above.min())) / 2 if len(above) else 1.0, found.n, found.bad, found.bound)


def by_flag_rate(score: np.ndarray, weight: np.ndarray, rate: float) -> float:
    """The threshold below which that share of the traffic lies.

    Args:
        score: float (S,), of the random sample, labelled or not.
        weight: (S,), answers that each stands for.
        rate: 0..1.
    """
    order = np.argsort(score, kind="stable")
    below = np.cumsum(weight[order]) / weight.sum()
    return float(score[order][min(int(np.searchsorted(below, rate, side="right")), len(order) - 1)])


def _kept(
    score: np.ndarray, good: np.ndarray, risk: float, confidence: float, starts: tuple[float, ...]
) -> Chosen | None:
    """The largest set of the highest scores in which few are not good."""
    if not len(score):
        return None
    ordered = np.sort(score)[::-1]
    error = (1 - confidence) / len(starts)
    best: Chosen | None = None
    for start in starts:
        for coverage in COVERAGES:
            if coverage < start - 1e-9:
                continue
            bar = float(ordered[max(round(coverage * len(ordered)) - 1, 0)])
            above = score >= bar
            n, bad = int(above.sum()), int((1 - good[above]).sum())
            bound = upper_bound(bad, n, error)
            if bound > risk:
                break
            if best is None or n > best.n:
                best = Chosen(bar, n, bad, bound)
    return best
