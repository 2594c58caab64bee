"""How well a score tells right answers from wrong ones: AUROC, calibration error, Brier score, with intervals.

Every score is turned so that higher means more likely right. Intervals are drawn over pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrm_monitor.lab.intervals import over_pictures

_TURNED = {"token_entropy", "map_entropy", "teacher_map_entropy", "patch_entropy", "map_spread"}
"""Features of which less means more likely right; they are negated."""
PROBABILITIES = {"fastrm", "token_probability", "p_ik"}
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


def calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """ECE: mean gap between stated probability and accuracy over bins of equal count, weighted by size.

    Equal probabilities share a bin, else the order of the rows would count.
    """
    first = np.searchsorted(np.sort(probability), probability, side="left")  # rank of each, ties have the lowest
    bin_of = first * bins // len(probability)
    parts = [bin_of == number for number in np.unique(bin_of)]
    gaps = [abs(float(probability[part].mean() - right[part].mean())) * int(part.sum()) for part in parts]
    return sum(gaps) / len(right)


def judge(
    scores: Mapping[str, Sequence[float]], right: Sequence[bool], groups: Sequence[str], pictures: Sequence[str]
) -> dict[str, Any]:
    """Each score's `auroc`, `auroc_ci95`, for probabilities `ece` and `brier`, and `by_group` AUROC.

    Pooled over kinds of question an AUROC partly measures which kind is hard, so it is given within each kind too.
    """
    truth, kinds = np.asarray(right, bool), np.asarray(groups)
    judged: dict[str, Any] = {}
    for name, raw in scores.items():
        values = oriented(name, np.asarray(raw, float))
        own: dict[str, Any] = {
            "n": len(truth),
            "wrong": int((~truth).sum()),
            "auroc": _number(auroc(values, truth)),
            "auroc_ci95": _auroc_interval(values, truth, pictures),
        }
        if name in PROBABILITIES:
            own["ece"] = calibration_error(values, truth)
            own["brier"] = float(np.mean((values - truth) ** 2))
        own["by_group"] = {
            kind: {
                "n": int((kinds == kind).sum()),
                "auroc": _number(auroc(values[kinds == kind], truth[kinds == kind])),
            }
            for kind in sorted(set(groups))
        }
        judged[name] = own
    return judged


def _auroc_interval(values: np.ndarray, truth: np.ndarray, pictures: Sequence[str]) -> list[float] | None:
    return over_pictures(lambda rows: auroc(values[rows], truth[rows]), pictures)


def auroc_difference(
    one: Sequence[float], other: Sequence[float], right: Sequence[bool], pictures: Sequence[str]
) -> dict[str, Any]:
    """AUROC of `one` minus that of `other` on the same answers: `difference` and `ci95`, paired over pictures."""
    truth, first, second = np.asarray(right, bool), np.asarray(one, float), np.asarray(other, float)

    def difference(rows: np.ndarray) -> float:
        return auroc(first[rows], truth[rows]) - auroc(second[rows], truth[rows])

    return {
        "difference": _number(difference(np.arange(len(truth)))),
        "ci95": over_pictures(difference, pictures),
    }


def accuracy(right: Sequence[bool], groups: Sequence[str], pictures: Sequence[str]) -> dict[str, Any]:
    """Share of right answers with its interval over pictures, pooled and by kind of question."""
    truth, kinds, names = np.asarray(right, float), np.asarray(groups), np.asarray(pictures)

    def rate(where: np.ndarray) -> dict[str, Any]:
        own = truth[where]
        return {
            "n": int(where.sum()),
            "rate": float(own.mean()),
            "ci95": over_pictures(lambda rows: float(own[rows].mean()), names[where].tolist()),
        }

    return {
        "all": rate(np.ones(len(truth), bool)),
        "by_group": {kind: rate(kinds == kind) for kind in sorted(set(groups))},
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
