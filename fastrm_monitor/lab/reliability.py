"""How well a score tells right answers from wrong ones, each score alone: ranking, selection, calibration.

Every score is turned so that higher means more likely right. Pure functions of arrays; `comparison` holds several
scores against each other and draws the intervals.
"""

from __future__ import annotations

import numpy as np

_TURNED = {"token_entropy", "map_entropy", "teacher_map_entropy", "patch_entropy", "map_spread"}
"""Features of which less means more likely right; they are negated."""
PROBABILITIES = {"fastrm", "token_probability", "p_ik", "evidence"}
"""Scores that claim to be probabilities, so that calibration means something."""


def oriented(name: str, values: np.ndarray) -> np.ndarray:
    """The score with higher meaning more likely right."""
    return -values if name in _TURNED else values


def auroc(score: np.ndarray, right: np.ndarray) -> float:
    """Probability that a right answer scores above a wrong one, ties counting half; NaN without both kinds.

    Mann-Whitney statistic of the ranks.
    """
    from scipy.stats import rankdata

    positives = int(right.sum())
    negatives = len(right) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def spearman(score: np.ndarray, right: np.ndarray) -> float:
    """Rank correlation of score and rightness; NaN where one of them does not vary.

    Rightness has two values, so this is 0 exactly where the AUROC is 1/2: one p value serves both.
    """
    from scipy.stats import spearmanr

    if np.ptp(score) == 0 or right.all() or not right.any():
        return float("nan")
    return float(spearmanr(score, right).statistic)


def risks(score: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The risk-coverage curve: the share of wrong answers among the i that score highest, i = 1..S, float (S,).

    Equal scores come in random order: each stands for the mean of its ties, so the order of the rows does not count.
    """
    values, group = np.unique(-score, return_inverse=True)
    wrong = np.bincount(group, ~right, len(values)) / np.bincount(group, minlength=len(values))  # of each tie
    expected: np.ndarray = np.cumsum(wrong[np.sort(group)]) / np.arange(1, len(right) + 1)
    return expected


def aurc(score: np.ndarray, right: np.ndarray) -> float:
    """Area under the risk-coverage curve, 0 (best) to 1: mean risk over all coverages (Geifman and El-Yaniv 2017)."""
    return float(risks(score, right).mean())


def prr(score: np.ndarray, right: np.ndarray) -> float:
    """Prediction rejection ratio: how much of what an oracle gains by rejecting answers this score gains.

    (random - score) / (random - oracle) of the areas under the risk of the answers kept (Malinin and Gales 2021; as
    Fadeeva et al. 2023 with the risk of the kept answers, since with rejected ones counted as right it is but
    2 AUROC - 1). 1 for an oracle, 0 for a constant score, below 0 for one that rejects right answers first; NaN
    without both kinds.
    """
    if right.all() or not right.any():
        return float("nan")
    random = float((~right).mean())
    return (random - aurc(score, right)) / (random - aurc(right.astype(float), right))


def calibration_bins(probability: np.ndarray, right: np.ndarray, bins: int = 10) -> list[tuple[float, float, int]]:
    """(stated probability, accuracy, answers) of each of up to `bins` bins of equal count, in order.

    Equal probabilities share a bin, else the order of the rows would count.
    """
    first = np.searchsorted(np.sort(probability), probability, side="left")  # rank of each, ties have the lowest
    bin_of = first * bins // len(probability)
    parts = [bin_of == number for number in np.unique(bin_of)]
    return [(float(probability[part].mean()), float(right[part].mean()), int(part.sum())) for part in parts]


def calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """ECE: mean gap between stated probability and accuracy over bins of equal count, weighted by size."""
    found = calibration_bins(probability, right, bins)
    return sum(abs(stated - share) * count for stated, share, count in found) / len(right)


def brier(probability: np.ndarray, right: np.ndarray) -> float:
    """Mean squared difference of the stated probability from what came (1 right, 0 wrong)."""
    return float(np.mean((probability - right) ** 2))
