"""Three ways to choose a threshold, each with a statement that holds for finite samples.

All of them work on the score before recalibration, whose order the recalibration keeps: which thresholds are tried
then does not depend on the labels. Answers about one picture are not independent, pictures are taken to be. Pure
functions of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COVERAGES = tuple(step / 20 for step in range(1, 21))
"""Shares of the answers that are tried, in this order."""
STARTS = (0.2, 0.5, 0.8)
"""Shares at which a chain of tests begins; each has an equal part of the error that is allowed."""
_PRECISION_STARTS = tuple(start / 2 for start in STARTS)


STAKE = 0.95
"""Share of the capital that is staked on each picture, see `_Tested._capital`: nearly all, because with few errors that
pays best; where answers about one picture are much alike, the exact bound is the lower one anyway."""


@dataclass(frozen=True)
class Chosen:
    """A threshold and what is known of the answers on its one side.

    Attributes:
        threshold: on the score; answers below are flagged.
        n: labelled answers that the statement rests on.
        bad: those of them that are what there should be few of.
        bound: upper confidence bound of their share, each picture counting once.
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


def one_a_picture(picture: np.ndarray, seed: int = 0) -> np.ndarray:
    """One answer of each picture, drawn at random: row numbers, rising, (P,).

    Args:
        picture: S ids.
        seed: of the draw, which must not be chosen by what comes of it.
    """
    order = np.random.default_rng(seed).permutation(len(picture))
    rows: np.ndarray = np.sort(order[np.unique(picture[order], return_index=True)[1]])
    return rows


def by_risk(
    score: np.ndarray, right: np.ndarray, risk: float, confidence: float = 0.95, picture: np.ndarray | None = None
) -> Chosen | None:
    """The lowest threshold with "at most `risk` of the answers that are not flagged are wrong", at that confidence.

    Learn then test (Angelopoulos et al. 2021) with fixed sequences: from each start in `STARTS` thresholds are lowered
    until the bound exceeds the risk. A chain stops at its first failure, so it errs with at most its part of
    1 - confidence, and all together with at most that.

    Where pictures have several answers, the share is that of a random answer about a random picture. Its bound is the
    lower of two, each with half of the error: the exact one of one answer a picture, drawn at random, and that of a bet
    on the mean of each picture (Waudby-Smith and Ramdas 2024), which is lower the less alike its answers are. Both hold
    however alike they are.

    Args:
        score: float (S,), of labelled answers that are a random part of the traffic.
        right: (S,) 1 or 0.
        risk: 0..1.
        confidence: of the statement.
        picture: S ids; None where every answer is about another picture.

    Returns:
        None when no threshold can be shown to hold it: more labels, or a larger risk.
    """
    return _kept(_Tested.of(score, right, picture), risk, confidence, STARTS)


def by_precision(
    score: np.ndarray, right: np.ndarray, precision: float, confidence: float = 0.95, picture: np.ndarray | None = None
) -> Chosen | None:
    """The highest threshold with "at least `precision` of the flagged answers are wrong", at that confidence.

    The same with the sides changed: of the answers below, few may be right. In the outcome `bad` are the right ones.
    """
    found = _kept(_Tested.of(-score, 1 - right, picture), 1 - precision, confidence, _PRECISION_STARTS)
    if found is None:
        return None
    # Those at the outermost score are flagged, too: the threshold is half-way to the next one.
    last = -found.threshold
    above = score[score > last]
    return Chosen((last + float(above.min())) / 2 if len(above) else 1.0, found.n, found.bad, found.bound)


def least_risk(
    score: np.ndarray, right: np.ndarray, confidence: float = 0.95, picture: np.ndarray | None = None
) -> float:
    """The least risk for which `by_risk` finds a threshold.

    Each chain's first bound has its part of the error, so whoever then asks for this risk is promised no less.
    """
    return _least(_Tested.of(score, right, picture), confidence, STARTS)


def most_precision(
    score: np.ndarray, right: np.ndarray, confidence: float = 0.95, picture: np.ndarray | None = None
) -> float:
    """The largest precision for which `by_precision` finds a threshold; see `least_risk`."""
    return 1 - _least(_Tested.of(-score, 1 - right, picture), confidence, _PRECISION_STARTS)


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


@dataclass(frozen=True, eq=False)
class _Tested:
    """Labelled answers whose highest scores are tested.

    Attributes:
        score: (S,).
        bad: (S,) 1 or 0.
        group: (S,), number of the picture.
        alone: whether no two answers share one.
        size: (P,), answers of each picture.
        drawn: bool (S,), one of each picture.
        ordered: the scores of the drawn ones, rising.
    """

    score: np.ndarray
    bad: np.ndarray
    group: np.ndarray
    alone: bool
    size: np.ndarray
    drawn: np.ndarray
    ordered: np.ndarray

    @classmethod
    def of(cls, score: np.ndarray, good: np.ndarray, picture: np.ndarray | None) -> _Tested:
        own = np.arange(len(score)) if picture is None else np.unique(picture, return_inverse=True)[1]
        size = np.bincount(own, minlength=1)
        drawn = np.zeros(len(score), bool)
        drawn[one_a_picture(own)] = True
        return cls(score, 1 - good, own, bool((size <= 1).all()), size, drawn, np.sort(score[drawn]))

    def bar(self, coverage: float) -> float:
        """The score at or above which that share of the pictures' drawn answers lies."""
        return float(self.ordered[-max(round(coverage * len(self.ordered)), 1)])

    def holds(self, bar: float, risk: float, error: float) -> bool:
        """Whether the bound of what lies at or above the bar is at most the risk."""
        if self.alone:
            return self._exact(bar, error) <= risk
        return self._exact(bar, error / 2) <= risk or self._capital(bar, risk) >= 2 / error

    def bound(self, bar: float, error: float) -> float:
        """The upper bound of the share of bad ones at or above the bar."""
        if self.alone:
            return self._exact(bar, error)
        low, high = 0.0, self._exact(bar, error / 2)
        if self._capital(bar, high) < 2 / error:
            return high
        while high - low > 1e-6:  # the capital rises with the risk that it is held against
            middle = (low + high) / 2
            low, high = (low, middle) if self._capital(bar, middle) >= 2 / error else (middle, high)
        return high

    def _exact(self, bar: float, error: float) -> float:
        above = self.drawn & (self.score >= bar)
        return upper_bound(int(self.bad[above].sum()), int(above.sum()), error)

    def _capital(self, bar: float, risk: float) -> float:
        """What becomes of a capital of 1 that is bet, picture after picture, on fewer bad ones than the risk.

        A picture pays back 1 - STAKE (share of bad - risk x share of kept) / (1 - risk), shares of its answers, which
        is above 0. If as many are bad as the risk says, or more, nothing is won on average, and by Markov's inequality
        a capital of k is reached with a probability of at most 1 / k.
        """
        if risk >= 1:
            return np.inf
        above = self.score >= bar
        kept, bad = (
            np.bincount(self.group, weights=one, minlength=len(self.size)) / self.size
            for one in (above.astype(float), above * self.bad)
        )  # (P,) each
        return float(np.exp(min(np.log1p(-STAKE * (bad - risk * kept) / (1 - risk)).sum(), 500)))

    def chosen(self, bar: float, error: float) -> Chosen:
        """What is known of the answers at or above the bar."""
        above = self.score >= bar
        return Chosen(bar, int(above.sum()), int(self.bad[above].sum()), self.bound(bar, error))


def _kept(tested: _Tested, risk: float, confidence: float, starts: tuple[float, ...]) -> Chosen | None:
    """The largest set of the highest scores in which few are bad."""
    if not len(tested.score):
        return None
    error = (1 - confidence) / len(starts)
    best: float | None = None
    for start in starts:
        for coverage in COVERAGES:
            if coverage < start - 1e-9:
                continue
            bar = tested.bar(coverage)
            if not tested.holds(bar, risk, error):
                break
            best = bar if best is None else min(best, bar)
    return None if best is None else tested.chosen(best, error)


def _least(tested: _Tested, confidence: float, starts: tuple[float, ...]) -> float:
    """The least of the first bounds of the chains."""
    if not len(tested.score):
        return 1.0
    error = (1 - confidence) / len(starts)
    return min(tested.bound(tested.bar(start), error) for start in starts)
