"""The curves that the report draws, thinned to at most 50 points each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrm_monitor.lab.reliability import PROBABILITIES, calibration_bins, oriented, risks

POINTS = 50
_BINS = 20


def risk_coverage(name: str, raw: np.ndarray, right: np.ndarray) -> dict[str, list[float]]:
    """`coverage` (share of answers kept, the surest first) and `risk` (share of wrong ones among them)."""
    risk = risks(oriented(name, raw), right)
    kept = _some(len(risk))
    return {"coverage": _rounded((kept + 1) / len(risk)), "risk": _rounded(risk[kept])}


def precision_recall(proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray], label_threshold: float) -> Any:
    """`recall` and `precision` of the patches called relevant as the decision threshold falls; None without positives.

    Args:
        proxy: float (N,) for each question.
        teacher: likewise.
        label_threshold: teacher relevance from which a patch is relevant.
    """
    scores, labels = np.concatenate(proxy), np.concatenate(teacher) >= label_threshold
    if not labels.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # ties are called together
    hits = np.cumsum(labels)[last]
    # Evenly spaced in recall, else nearly all points would lie where hardly any patch is relevant.
    kept = np.unique(np.searchsorted(hits, np.linspace(1 / POINTS, 1, POINTS) * hits[-1]).clip(max=len(hits) - 1))
    return {
        "recall": _rounded(hits[kept] / hits[-1]),
        "precision": _rounded(hits[kept] / (last[kept] + 1)),
    }


def entropy_histogram(entropy: np.ndarray, right: np.ndarray) -> dict[str, list[float]]:
    """How many right and wrong answers have a map entropy between two neighbouring `edges`."""
    edges = np.linspace(float(entropy.min()), float(entropy.max()) + 1e-9, _BINS + 1)
    return {
        "edges": _rounded(edges),
        "right": np.histogram(entropy[right], edges)[0].tolist(),
        "wrong": np.histogram(entropy[~right], edges)[0].tolist(),
    }


def curves(scores: Mapping[str, Sequence[float]], right: Sequence[bool]) -> dict[str, Any]:
    """`risk_coverage` by score, `reliability` by probability, `entropy_histogram` of the map entropy.

    Args:
        scores: raw values (S,) by name; NaN where a score does not know an answer.
        right: whether each of the S answers is right.
    """
    truth = np.asarray(right, bool)
    known = {name: (np.asarray(raw, float), np.isfinite(np.asarray(raw, float))) for name, raw in scores.items()}
    known = {name: (values, where) for name, (values, where) in known.items() if where.any()}
    found: dict[str, Any] = {
        "risk_coverage": {name: risk_coverage(name, raw[where], truth[where]) for name, (raw, where) in known.items()},
        "reliability": {
            name: [
                {"stated": stated, "right": share, "n": count}
                for stated, share, count in calibration_bins(raw[where], truth[where])
            ]
            for name, (raw, where) in known.items()
            if name in PROBABILITIES
        },
    }
    if "map_entropy" in known:
        entropy, where = known["map_entropy"]
        found["entropy_histogram"] = entropy_histogram(entropy[where], truth[where])
    return found


def _some(count: int) -> np.ndarray:
    """At most `POINTS` of `count` places, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, POINTS)).round().astype(int))


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]
