"""Does one threshold carry over? What flags 10 % of the answers of the first data set, applied to every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrm_monitor.lab.comparison import Answers
from fastrm_monitor.lab.intervals import interval, rate
from fastrm_monitor.lab.reliability import oriented

CARRIED = ("map_entropy", "token_probability")
"""Scores whose threshold is carried: the paper's, and the plain one beside it."""
SHARE = 0.1
"""Share of the first data set's answers that the threshold flags."""


def choose(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The threshold of each carried score on these answers, in the score's own units."""
    return {
        name: float(oriented(name, np.nanquantile(oriented(name, np.asarray(scores[name], float)), SHARE)))
        for name in CARRIED
        if name in scores
    }


def applied(scores: Mapping[str, Sequence[float]], thresholds: Mapping[str, float], answers: Answers) -> dict[str, Any]:
    """What each threshold flags here: answers on its unsure side.

    Returns:
        By score `threshold`, `flag_rate` and `precision` (share of wrong answers among the flagged), each `n`, `rate`,
        `ci95`, and `lift`, what precision has above the data set's own share of wrong answers: `difference`, `ci95`.
    """
    wrong = (~answers.right).astype(float)
    found = {}
    for name, threshold in thresholds.items():
        if name not in scores:
            continue
        low = oriented(name, np.asarray(scores[name], float)) < oriented(name, np.asarray(threshold))
        precision = rate(wrong, answers.draws, low)
        apart = answers.draws.means(wrong, low) - answers.draws.means(wrong)
        found[name] = {
            "threshold": float(threshold),
            "flag_rate": rate(low.astype(float), answers.draws),
            "precision": precision,
            "lift": {
                "difference": None if precision["rate"] is None else precision["rate"] - float(wrong.mean()),
                "ci95": interval(apart) if precision["ci95"] else None,
            },
        }
    return found
