"""How well a proxy's maps match the teacher's: a patch classifier judged beside its base rate, and a pointing game.

Class imbalance is severe, so an accuracy alone says nothing: it always stands beside the share of positive patches and
the accuracy of calling every patch irrelevant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fastrm_monitor.lab.intervals import Draws, interval, rate
from fastrm_monitor.types import Region, RelevanceMap

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Decision thresholds that are swept."""
LABEL_THRESHOLDS = (0.2, 0.3, 0.4, 0.5)
"""Teacher relevances from which a patch counts as relevant that are swept."""
_BINS = 500
"""Bins of the scores, by their quantiles, in which the draws of an AUPRC are counted."""


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
        and F1 at each decision threshold. `auprc_within`, `base_rate_within` and `chance_within` (what a random order
        reaches) are means over questions: pooled, a map that only knows *how much* of a picture is relevant ranks the
        patches of one question above those of another.
    """
    correlations = rank_correlations(proxy, teacher)
    known = correlations[np.isfinite(correlations)]
    within, share, chance = precisions(proxy, teacher, label_threshold)
    told = np.isfinite(within)
    return {
        "questions": len(proxy),
        "patches": sum(len(one) for one in proxy),
        "label_threshold": label_threshold,
        **_at_label(proxy, teacher, label_threshold),
        "auprc_within": float(within[told].mean()) if told.any() else None,
        "base_rate_within": float(share[told].mean()) if told.any() else None,
        "chance_within": float(chance[told].mean()) if told.any() else None,
        "iou": float(overlaps(proxy, teacher, label_threshold).mean()),
        "rank_correlation": float(known.mean()) if len(known) else None,
    }


def swept(proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray]) -> dict[str, Any]:
    """For each label threshold the base rate, all-negative accuracy, AUPRC and all decision thresholds."""
    return {f"{label:.1f}": _at_label(proxy, teacher, label) for label in LABEL_THRESHOLDS}


def _at_label(proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray], label_threshold: float) -> dict[str, Any]:
    scores, labels = np.concatenate(proxy), np.concatenate(teacher) >= label_threshold
    base = float(labels.mean())
    return {
        "base_rate": base,
        "all_negative_accuracy": 1 - base,
        "auprc": auprc(proxy, teacher, label_threshold),
        "thresholds": {f"{bound:.1f}": _confusion(scores >= bound, labels) for bound in THRESHOLDS},
    }


class FidelityDraws:
    """The fidelity of one proxy in each draw of a bootstrap over pictures, at decision 0.5.

    Args:
        proxy: for each of S questions float (N,), the proxy's probabilities.
        teacher: likewise, the teacher's relevance.
        label_threshold: teacher relevance from which a patch is relevant.
        draws: of the S questions.
    """

    def __init__(
        self, proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray], label_threshold: float, draws: Draws
    ) -> None:
        self._proxy, self._teacher, self._label, self._draws = proxy, teacher, label_threshold, draws

    @cached_property
    def by_name(self) -> dict[str, np.ndarray]:
        """The (B,) draws of each figure of `fidelity` that is not swept, accuracy and F1 at decision 0.5."""
        counts = self._draws.sums(
            np.array([_counts(one >= 0.5, other >= self._label) for one, other in self._pairs()], float)
        )
        hits, called, relevant, agreed, patches = counts.T
        correlations = rank_correlations(self._proxy, self._teacher)
        within, share, chance = precisions(self._proxy, self._teacher, self._label)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "accuracy": agreed / patches,
                "all_negative_accuracy": 1 - relevant / patches,
                "base_rate": relevant / patches,
                "f1": np.where(called + relevant > 0, 2 * hits / (called + relevant), 0.0),
                "auprc": self._auprc(),
                "auprc_within": self._means(within),
                "base_rate_within": self._means(share),
                "chance_within": self._means(chance),
                "iou": self._draws.means(overlaps(self._proxy, self._teacher, self._label)),
                "rank_correlation": self._means(correlations),
            }

    def intervals(self) -> dict[str, Any]:
        """95 % interval of each by name, and of what accuracy and both AUPRC gain over knowing nothing of the patches.

        All None where there are too few pictures.
        """
        own = {
            **self.by_name,
            "accuracy_gain": self.by_name["accuracy"] - self.by_name["all_negative_accuracy"],
            "auprc_gain": self.by_name["auprc"] - self.by_name["base_rate"],
            "auprc_within_gain": self.by_name["auprc_within"] - self.by_name["chance_within"],
        }
        return {name: interval(drawn) if self._draws.enough else None for name, drawn in own.items()}

    def _means(self, values: np.ndarray) -> np.ndarray:
        """Of the questions where a figure is known (not NaN); NaN where these have too few pictures."""
        known = np.isfinite(values)
        if not self._draws.enough_of(known):
            return np.full(len(self._draws.counts), np.nan)
        return self._draws.means(values, known)

    def _pairs(self) -> zip[tuple[np.ndarray, np.ndarray]]:
        return zip(self._proxy, self._teacher, strict=True)

    def _auprc(self) -> np.ndarray:
        """Average precision in each draw, from counts in bins: 3 million patches are not sorted a thousand times."""
        scores, labels = np.concatenate(self._proxy), np.concatenate(self._teacher) >= self._label
        if not labels.any():
            return np.full(len(self._draws.counts), np.nan)
        shares = np.linspace(0, 1, _BINS)[1:]
        edges = np.unique(np.concatenate([np.quantile(scores, shares), np.quantile(scores[labels], shares)]))
        bins = len(edges) + 1
        place = np.searchsorted(edges, scores, side="right")
        question = np.repeat(np.arange(len(self._proxy)), [len(one) for one in self._proxy])
        flat = (question * bins + place) * 2 + labels
        counts = np.bincount(flat, minlength=len(self._proxy) * bins * 2).reshape(-1, bins, 2)[:, ::-1]
        by_picture = self._draws.by_picture(counts)  # (pictures, bins, 2), the highest scores first
        negatives, hits = (np.cumsum(self._draws.counts @ by_picture[..., kind], axis=1) for kind in (0, 1))
        with np.errstate(invalid="ignore"):
            precision = np.nan_to_num(hits / (hits + negatives))
            gained = np.diff(hits, axis=1, prepend=0) / hits[:, -1:]
            found: np.ndarray = (precision * gained).sum(1)
        return found


def _counts(called: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """Hits, patches called, patches relevant, patches on which both agree, patches."""
    return (called & labels).sum(), called.sum(), labels.sum(), (called == labels).sum(), len(labels)


def rank_correlations(proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray]) -> np.ndarray:
    """Spearman correlation of both maps of each question, (S,); NaN where a map is even."""
    from scipy.stats import spearmanr

    return np.array(
        [
            float(spearmanr(one, other).statistic) if np.ptp(one) > 0 and np.ptp(other) > 0 else np.nan
            for one, other in zip(proxy, teacher, strict=True)
        ]
    )


def precisions(
    proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray], label_threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average precision within each question, (S,), its share of relevant patches, (S,), and its chance, (S,).

    An even map reaches the share. Chance is the mean over all orders of the patches, which is more, since few patches
    may come first by luck: shuffled maps reach it. All NaN where none or all of a question's patches are relevant.
    """
    from sklearn.metrics import average_precision_score

    found = np.full((3, len(proxy)), np.nan)
    for row, (one, other) in enumerate(zip(proxy, teacher, strict=True)):
        labels = other >= label_threshold
        patches, relevant = len(labels), int(labels.sum())
        if 0 < relevant < patches:
            places = (1 / np.arange(1, patches + 1)).sum()
            chance = (places + (relevant - 1) / (patches - 1) * (patches - places)) / patches
            found[:, row] = average_precision_score(labels, one), relevant / patches, chance
    return found[0], found[1], found[2]


def question_blind(
    proxy: Sequence[np.ndarray],
    teacher: Sequence[np.ndarray],
    label_threshold: float,
    pictures: Sequence[str],
    draws: Draws,
) -> dict[str, dict[str, Any]]:
    """What maps reach that do not know the question, and what the proxy has above them within questions, paired.

    `mean_map` is the mean of the proxy's maps of all other pictures, which knows only where relevant patches lie as a
    rule; `other_questions` that of its maps of the other questions about the same picture, which knows the picture.

    Args:
        proxy: for each of S questions float (N,), the proxy's probabilities.
        teacher: likewise, the teacher's relevance.
        label_threshold: teacher relevance from which a patch is relevant.
        pictures: of the questions.
        draws: of the questions.

    Returns:
        By name `n`, the questions that have such a map and both kinds of patches, `auprc_within` of the map, and
        `difference` with its `ci95`, None where there are too few.
    """
    own = precisions(proxy, teacher, label_threshold)[0]
    found = {}
    for name, maps in (("mean_map", _mean_maps(proxy, pictures)), ("other_questions", _others(proxy, pictures))):
        known = [row for row, one in enumerate(maps) if one is not None]
        blind = np.full(len(proxy), np.nan)
        told = [one for one in maps if one is not None]
        blind[known] = precisions(told, [teacher[row] for row in known], label_threshold)[0]
        both = np.isfinite(own) & np.isfinite(blind)
        found[name] = {
            "n": int(both.sum()),
            "auprc_within": float(blind[both].mean()) if both.any() else None,
            **paired(own - blind, draws),
        }
    return found


def paired(apart: np.ndarray, draws: Draws) -> dict[str, Any]:
    """The mean `difference` of those (S,) that are known (not NaN), and its `ci95`, None where there are too few."""
    known = np.isfinite(apart)
    return {
        "difference": float(apart[known].mean()) if known.any() else None,
        "ci95": interval(draws.means(np.nan_to_num(apart), known)) if draws.enough_of(known) else None,
    }


def _sums(
    maps: Sequence[np.ndarray], keys: Sequence[tuple[object, ...]]
) -> dict[tuple[object, ...], tuple[np.ndarray, int]]:
    """Sum and number of the maps of each key."""
    sums: dict[tuple[object, ...], tuple[np.ndarray, int]] = {}
    for one, key in zip(maps, keys, strict=True):
        total, count = sums.get(key, (np.zeros(len(one)), 0))
        sums[key] = (total + one, count + 1)
    return sums


def _mean_maps(maps: Sequence[np.ndarray], pictures: Sequence[str]) -> list[np.ndarray | None]:
    """For each question the mean map of the questions about other pictures that have as many patches."""
    everything = _sums(maps, [(len(one),) for one in maps])
    keys = [(len(one), picture) for one, picture in zip(maps, pictures, strict=True)]
    of_picture = _sums(maps, keys)
    found: list[np.ndarray | None] = []
    for one, key in zip(maps, keys, strict=True):
        (total, count), (own, of_own) = everything[len(one),], of_picture[key]
        found.append((total - own) / (count - of_own) if count > of_own else None)
    return found


def _others(maps: Sequence[np.ndarray], pictures: Sequence[str]) -> list[np.ndarray | None]:
    """For each question the mean map of the other questions about its picture."""
    keys = [(len(one), picture) for one, picture in zip(maps, pictures, strict=True)]
    of_picture = _sums(maps, keys)
    found: list[np.ndarray | None] = []
    for one, key in zip(maps, keys, strict=True):
        total, count = of_picture[key]
        found.append((total - one) / (count - 1) if count > 1 else None)
    return found


def overlaps(proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray], label_threshold: float) -> np.ndarray:
    """Intersection over union of both relevant sets of each question at decision 0.5, (S,)."""
    return np.array([_iou(one >= 0.5, other >= label_threshold) for one, other in zip(proxy, teacher, strict=True)])


def auprc(proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray], label_threshold: float) -> float | None:
    """Average precision over all patches of all questions; None when no patch is relevant."""
    from sklearn.metrics import average_precision_score

    labels = np.concatenate(teacher) >= label_threshold
    return float(average_precision_score(labels, np.concatenate(proxy))) if labels.any() else None


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    union = float((one | other).sum())
    return float((one & other).sum()) / union if union else 1.0


def _confusion(called: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    hits, all_called, relevant, agreed, patches = (float(count) for count in _counts(called, labels))
    return {
        "accuracy": agreed / patches,
        "precision": hits / all_called if all_called else 0.0,
        "recall": hits / relevant if relevant else 0.0,
        "f1": 2 * hits / (all_called + relevant) if hits else 0.0,
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


def hits(maps: Sequence[RelevanceMap], boxes: Sequence[Sequence[Region]]) -> tuple[np.ndarray, np.ndarray]:
    """The pointing game: does the most relevant patch lie in a box of an object asked about (centre in the box)?

    Args:
        maps: one map a question.
        boxes: of each question; questions without boxes do not play.

    Returns:
        (S,) 1 for a hit, 0 for a miss; and (S,) the chance that a random patch hits. Both NaN without boxes.
    """
    found = np.full((2, len(maps)), np.nan)
    for row, (one, own) in enumerate(zip(maps, boxes, strict=True)):
        if own:
            target = inside(one, own)
            found[:, row] = target.flat[int(one.values.argmax())], target.mean()
    return found[0], found[1]


def pointing(maps: Sequence[RelevanceMap], boxes: Sequence[Sequence[Region]], draws: Draws) -> dict[str, Any]:
    """The pointing game over all questions: `n`, `hit_rate` with `ci95`, and `chance`, what a random patch hits.

    Args:
        maps: one map a question.
        boxes: of each question; questions without boxes do not play.
        draws: of the questions.
    """
    hit, chance = hits(maps, boxes)
    plays = np.isfinite(hit)
    found = rate(np.nan_to_num(hit), draws, plays)
    return {
        "n": found["n"],
        "hit_rate": found["rate"],
        "ci95": found["ci95"],
        "chance": float(chance[plays].mean()) if plays.any() else None,
    }
