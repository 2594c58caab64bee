"""How well a proxy's maps match the teacher's: a patch classifier judged beside its base rate, and a pointing game.

Class imbalance is severe, so an accuracy alone says nothing: it always stands beside the share of positive patches and
the accuracy of calling every patch irrelevant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrm_monitor.lab.intervals import over_pictures
from fastrm_monitor.types import Region, RelevanceMap

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


def fidelity(
    proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray], label_threshold: float = 0.3
) -> dict[str, Any]:
    """Fidelity over all patches of all questions.

    Args:
        proxy: for each question float (N,), the proxy's probabilities.
        teacher: for each question float (N,), the teacher's relevance.
        label_threshold: teacher relevance from which a patch is relevant.

    Returns:
        `base_rate`, `all_negative_accuracy`, `auprc`, `iou` (mean over questions at decision 0.5), `rank_correlation`
        (mean Spearman correlation with the teacher over questions) and `thresholds` with accuracy, precision, recall
        and F1 at each decision threshold.
    """
    from scipy.stats import spearmanr

    scores, labels = np.concatenate(proxy), np.concatenate(teacher) >= label_threshold
    base = float(labels.mean())
    correlations = [
        float(spearmanr(one, other).statistic)
        for one, other in zip(proxy, teacher, strict=True)
        if np.ptp(one) > 0 and np.ptp(other) > 0
    ]
    overlaps = [_iou(one >= 0.5, other >= label_threshold) for one, other in zip(proxy, teacher, strict=True)]
    return {
        "questions": len(proxy),
        "patches": len(labels),
        "label_threshold": label_threshold,
        "base_rate": base,
        "all_negative_accuracy": 1 - base,
        "auprc": auprc(proxy, teacher, label_threshold),
        "iou": float(np.mean(overlaps)),
        "rank_correlation": float(np.mean(correlations)) if correlations else None,
        "thresholds": {f"{bound:.1f}": _confusion(scores >= bound, labels) for bound in THRESHOLDS},
    }


def auprc(proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray], label_threshold: float) -> float | None:
    """Average precision over all patches of all questions; None when no patch is relevant."""
    from sklearn.metrics import average_precision_score

    labels = np.concatenate(teacher) >= label_threshold
    return float(average_precision_score(labels, np.concatenate(proxy))) if labels.any() else None


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = float((one | other).sum())
    return float((one & other).sum()) / union if union else 1.0


def _confusion(called: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    hits = float((called & labels).sum())
    precision = hits / called.sum() if called.any() else 0.0
    recall = hits / labels.sum() if labels.any() else 0.0
    return {
        "accuracy": float((called == labels).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(2 * precision * recall / (precision + recall)) if hits else 0.0,
    }


def inside(grid: RelevanceMap, boxes: Sequence[Region]) -> np.ndarray:
    """Which patches have their centre in one of the boxes (fractions of the picture), bool (gh, gw)."""
    rows, columns = grid.values.shape
    left, top, right, bottom = grid.region
    x = (left + (right - left) * (np.arange(columns) + 0.5) / columns)[None, :]
    y = (top + (bottom - top) * (np.arange(rows) + 0.5) / rows)[:, None]
    found = np.zeros((rows, columns), bool)
    for box_left, box_top, box_right, box_bottom in boxes:
        found |= (x >= box_left) & (x < box_right) & (y >= box_top) & (y < box_bottom)
    return found


def pointing(
    maps: Sequence[RelevanceMap], boxes: Sequence[Sequence[Region]], pictures: Sequence[str]
) -> dict[str, Any]:
    """The pointing game: does the most relevant patch lie in a box of an object asked about (centre in the box)?

    Args:
        maps: one map a question.
        boxes: of each question; questions without boxes do not play.
        pictures: picture id of each question, for the interval.

    Returns:
        `n`, `hit_rate` with `ci95` (bootstrap over pictures), and `chance`, what a random patch would hit.
    """
    hits, chances, names = [], [], []
    for one, own, name in zip(maps, boxes, pictures, strict=True):
        if own:
            target = inside(one, own)
            hits.append(bool(target.flat[int(one.values.argmax())]))
            chances.append(float(target.mean()))
            names.append(name)
    if not hits:
        return {"n": 0, "hit_rate": None, "ci95": None, "chance": None}
    return {
        "n": len(hits),
        "hit_rate": float(np.mean(hits)),
        "ci95": over_pictures(lambda rows: float(np.mean(np.array(hits)[rows])), names),
        "chance": float(np.mean(chances)),
    }
