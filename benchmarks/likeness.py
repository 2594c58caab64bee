"""Simulated answers about one picture that are right or wrong together: does the risk bound survive them?

Part of `make loop`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # where tests load it from
from report import Report, with_interval

from fastrm_monitor.calibration.thresholds import by_risk, interval

RISK, CONFIDENCE = 0.2, 0.9


def alike(
    rng: np.random.Generator, pictures: int, questions: int, likeness: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, verdicts and picture ids; P(right) is 0.5 + 0.5 score.

    Each answer takes score and luck of its picture with that probability, and its own otherwise: the correlation of two
    answers about it is the square.
    """
    picture = np.repeat(np.arange(pictures), questions)
    shared, own = rng.uniform(0, 1, (2, 2, len(picture)))
    shared = shared[:, ::questions][:, picture]
    score, luck = np.where(rng.uniform(0, 1, len(picture)) < likeness, shared, own)
    return score, (luck < 0.5 + 0.5 * score).astype(float), picture


def risk_above(threshold: float) -> float:
    """Share of wrong answers of `alike` at or above a threshold."""
    return 0.25 * (1 - threshold)


def tell(report: Report, repetitions: int) -> None:
    """Whether the bound survives answers about one picture that are right or wrong together."""
    rows = []
    for pictures, questions, like in ((1500, 1, 0.0), (300, 4, 0.5), (300, 8, 0.95), (300, 20, 0.97), (200, 40, 0.98)):
        rng = np.random.default_rng(questions)
        counts = np.zeros((2, 2), int)
        flagged = np.zeros(2)
        for _ in range(repetitions):
            score, right, picture = alike(rng, pictures, questions, like)
            for place, known in enumerate((picture, None)):
                found = by_risk(score, right, RISK, CONFIDENCE, known)
                counts[place] += (found is not None, found is not None and risk_above(found.threshold) > RISK)
                flagged[place] += (1.0 if found is None else found.threshold) / repetitions
        cells = [f"{pictures} x {questions}", f"{like**2:.2f}"]
        for place in range(2):
            missed = int(counts[place, 1])
            cells += [with_interval(missed / repetitions, interval(missed, repetitions)), f"{flagged[place]:.2f}"]
        rows.append([*cells, f"{counts[0, 0] / repetitions:.2f}"])
    heads = ("pictures x questions", "correlation", "missed", "flagged", "missed without regard", "flagged", "found")
    report.table(f"Simulated: risk {RISK}, which may be missed in {1 - CONFIDENCE:.0%} of the choices", heads, rows)
    report.line(
        "Missed: the risk that the choice promised is exceeded. Without regard: every labelled answer is counted as "
        "independent. Flagged: on average, all where there is no threshold. Found: share of the choices with one."
    )
