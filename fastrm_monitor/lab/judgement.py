"""What one labelled data set says of a proxy and its confidence: one part of the report, and its bootstrap draws.

Takes labels and proxies, no model and no files. Scores are taken by name; one that is not there is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrm_monitor.lab.comparison import Answers, Comparison, accuracy
from fastrm_monitor.lab.curves import curves, precision_recall
from fastrm_monitor.lab.distill import arrange, teacher_maps
from fastrm_monitor.lab.fidelity import FidelityDraws, fidelity, hits, paired, pointing, question_blind, swept
from fastrm_monitor.lab.intervals import Draws, interval, rate
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.lab.thresholds import applied, choose
from fastrm_monitor.scoring.checkpoint import ProxyFolder
from fastrm_monitor.scoring.entropy import spatial_entropy
from fastrm_monitor.scoring.patches import PatchLayout, PictureInput
from fastrm_monitor.scoring.scorer import Score, Scorer
from fastrm_monitor.types import RelevanceMap

SCORES = (
    "token_probability",
    "token_entropy",
    "p_ik",
    "evidence",
    "grounding",
    "image_attention",
    "map_entropy",
    "map_mass",
    "map_max",
)
"""Features that are judged as scores of their own, where they are known."""
_PAIRS = 100
_EACH = 2


@dataclass(frozen=True, eq=False)
class Seen:
    """What one proxy makes of the labelled questions, as it would when serving.

    Attributes:
        relevance: float32 (N,) of each question, in token order.
        scores: map, features and confidence of each.
    """

    relevance: list[np.ndarray]
    scores: list[Score]

    @property
    def maps(self) -> list[RelevanceMap]:
        """The map of each question's picture."""
        return [one.maps[0] for one in self.scores]


def see(folder: ProxyFolder, labels: Labels, layout: PatchLayout) -> Seen:
    """Run the serving road over labelled states."""
    scorer = Scorer(folder)
    relevance: list[np.ndarray] = []
    scores: list[Score] = []
    for rows, batch in labels.batches(range(len(labels)), 128):
        measured = scorer.measure(batch.states, batch.image, batch.valid)
        for row, (own, signals) in zip(rows, measured.rows(), strict=True):
            facts = labels.facts[row]
            grids = layout.grids(len(own), [PictureInput(facts.size)])
            relevance.append(own)
            scores.append(scorer.conclude(own, grids, signals, facts.numbers))
    return Seen(relevance, scores)


def judge_set(
    labels: Labels,
    folder: ProxyFolder,
    layout: PatchLayout,
    data: str,
    *,
    others: Mapping[str, ProxyFolder] | None = None,
    sampled: Mapping[str, Any] | None = None,
    thresholds: Mapping[str, float] | None = None,
    origins: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Judge a proxy folder on one labelled data set.

    Args:
        labels: of the data set.
        folder: the product's proxy and confidence.
        layout: of the model's patches.
        data: name of the data set.
        others: proxies whose fidelity stands beside it, by name.
        sampled: what `sampling_consistency` gave; None when it was left out.
        thresholds: of the first data set, to be carried over; this set's own when None.
        origins: what the picture of each question was made of (`datasets.base.Traced`); data sets are paired on the
            pictures of one origin. None draws this set independently of any other.

    Returns:
        `part`, what goes into the report (docs/evaluate.md); `thresholds`, as given or chosen; `points` and `draws`,
        the numbers that other data sets are held against and their draws (B,), by name; `origins`, those of its
        pictures; `examples`, `row` and `confidence` of answers worth looking at.
    """
    facts = labels.facts
    rows = range(len(labels))
    names = [one.picture_id for one in facts]
    drawn_by = list(origins) if origins is not None else [f"{data} {name}" for name in names]
    answers = Answers([one.right for one in facts], [one.group for one in facts], drawn_by)
    draws = answers.draws
    seen, teacher = see(folder, labels, layout), teacher_maps(labels, rows)
    teacher_arranged = arrange(teacher, labels, rows, layout)
    boxes = [one.boxes for one in facts]
    label = folder.config.label_threshold
    scores = _scores(seen, teacher, [one.id for one in facts], sampled["consistency"] if sampled else {})
    comparison = Comparison(scores, answers)
    judged = comparison.judge()
    carried = thresholds if thresholds is not None else choose(scores)
    drawn = FidelityDraws(seen.relevance, teacher, label, draws)
    ours = _fidelity(seen.relevance, teacher, label, drawn)
    hit, _ = hits(seen.maps, boxes)
    points_to = {"proxy": pointing(seen.maps, boxes, draws), "teacher": pointing(teacher_arranged, boxes, draws)}
    part: dict[str, Any] = {
        "data": data,
        "questions": len(rows),
        "pictures": len(set(names)),
        "accuracy": accuracy(answers),
        "fidelity": ours,
        "question_blind": question_blind(seen.relevance, teacher, label, names, draws),
        "proxies": {
            name: _beside(other, labels, layout, teacher, label, draws, ours, drawn, boxes)
            for name, other in (others or {}).items()
        },
        "pointing": {**points_to, "difference": paired(hit - hits(teacher_arranged, boxes)[0], draws)},
        "question_sensitivity": {
            "proxy": _sensitivity(seen.maps, names),
            "teacher": _sensitivity(teacher_arranged, names),
        },
        "calibrated": bool(seen.scores) and all(one.calibrated for one in seen.scores),
        "confidence": judged,
        "auroc_difference": comparison.differences(),
        "flags": _flags(folder, seen, answers),
        "threshold": applied(scores, carried, answers),
        "sampling": {name: own for name, own in sampled.items() if name != "consistency"} if sampled else None,
        "curves": {
            **curves(scores, answers.right.tolist()),
            "precision_recall": precision_recall(seen.relevance, teacher, label),
        },
    }
    plays = np.isfinite(hit)
    points = {
        "auprc": ours["auprc"],
        "auprc_within": ours["auprc_within"],
        "f1": ours["thresholds"]["0.5"]["f1"],
        "patch_accuracy": ours["thresholds"]["0.5"]["accuracy"],
        "pointing": points_to["proxy"]["hit_rate"],
        "answer_accuracy": part["accuracy"]["all"]["rate"],
        "auroc": judged["fastrm"]["auroc"],
    }
    kept = {
        "auprc": drawn.by_name["auprc"],
        "auprc_within": drawn.by_name["auprc_within"],
        "f1": drawn.by_name["f1"],
        "patch_accuracy": drawn.by_name["accuracy"],
        "pointing": draws.means(np.nan_to_num(hit), plays) if draws.enough_of(plays) else np.zeros(0),
        "answer_accuracy": draws.means(answers.right.astype(float)),
        "auroc": comparison.draws("fastrm"),
    }
    return {
        "part": part,
        "thresholds": dict(carried),
        "points": points,
        "draws": {name: _listed(values) if draws.enough else [] for name, values in kept.items()},
        "origins": sorted(set(drawn_by)),
        "examples": _examples(np.array([one.confidence for one in seen.scores]), answers.right),
    }


def _scores(
    seen: Seen, teacher: Sequence[np.ndarray], ids: Sequence[str], sampled: Mapping[str, float]
) -> dict[str, list[float]]:
    """Raw values of each score on each question, NaN where it is not known; scores known nowhere are left out."""
    found = {
        "fastrm": [one.confidence for one in seen.scores],
        **{name: [one.features.get(name, np.nan) for one in seen.scores] for name in SCORES},
        "teacher_map_entropy": [spatial_entropy(one) for one in teacher],
        "sampling": [float(sampled.get(own, np.nan)) for own in ids],
    }
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def _fidelity(
    proxy: Sequence[np.ndarray], teacher: Sequence[np.ndarray], label: float, drawn: FidelityDraws
) -> dict[str, Any]:
    return {
        **fidelity(proxy, teacher, label),
        "ci95": drawn.intervals(),
        "label_thresholds": swept(proxy, teacher),
    }


def _beside(
    folder: ProxyFolder,
    labels: Labels,
    layout: PatchLayout,
    teacher: Sequence[np.ndarray],
    label: float,
    draws: Draws,
    ours: Mapping[str, Any],
    our_draws: FidelityDraws,
    boxes: Sequence[Sequence[Any]],
) -> dict[str, Any]:
    """Another proxy on the same questions and labels; `difference` is what ours has above it, paired."""
    seen = see(folder, labels, layout)
    drawn = FidelityDraws(seen.relevance, teacher, label, draws)
    found = _fidelity(seen.relevance, teacher, label, drawn)
    points = {
        "auprc": (ours["auprc"], found["auprc"]),
        "auprc_within": (ours["auprc_within"], found["auprc_within"]),
        "f1": (ours["thresholds"]["0.5"]["f1"], found["thresholds"]["0.5"]["f1"]),
    }
    return {
        "fidelity": found,
        "pointing": pointing(seen.maps, boxes, draws),
        "difference": {
            name: {
                "difference": None if one is None or other is None else one - other,
                "ci95": interval(our_draws.by_name[name] - drawn.by_name[name]) if draws.enough else None,
            }
            for name, (one, other) in points.items()
        },
    }


def _flags(folder: ProxyFolder, seen: Seen, answers: Answers) -> dict[str, Any] | None:
    """How often right and wrong answers fall below the folder's threshold; None when it is not calibrated."""
    if folder.confidence is None:
        return None
    bound = folder.confidence.threshold
    low = np.array([one.confidence < bound for one in seen.scores], float)
    of = {"of_right": answers.right, "of_wrong": ~answers.right}
    return {"threshold": bound, **{name: rate(low, answers.draws, where) for name, where in of.items()}}


def _sensitivity(maps: Sequence[RelevanceMap], pictures: Sequence[str]) -> dict[str, Any]:
    """Mean absolute difference of the maps of two questions on one picture, over up to 100 pictures."""
    by_picture: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(pictures):
        by_picture[name].append(row)
    pairs = [(rows[0], rows[1]) for rows in by_picture.values() if len(rows) > 1][:_PAIRS]
    if not pairs:
        return {"pairs": 0, "mean_absolute_difference": None, "ci95": None, "identical": None}
    gaps = np.array([np.abs(maps[one].values - maps[other].values).mean() for one, other in pairs], float)
    draws = Draws([pictures[one] for one, _ in pairs])
    return {
        "pairs": len(pairs),
        "mean_absolute_difference": float(gaps.mean()),
        "ci95": interval(draws.means(gaps)) if draws.enough else None,
        "identical": int((gaps == 0).sum()),
    }


def _examples(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """The surest and the least sure answers, right and wrong, two of each kind."""
    order = np.argsort(-confidence, kind="stable")
    found = []
    for kind in (right, ~right):
        own = order[kind[order]]
        found += [*own[:_EACH], *own[max(_EACH, len(own) - _EACH) :]]
    return [{"row": int(row), "confidence": float(confidence[row])} for row in found]


def _listed(values: np.ndarray) -> list[float | None]:
    """Draws as JSON has them: NaN is null."""
    return [round(float(value), 6) if np.isfinite(value) else None for value in values]
