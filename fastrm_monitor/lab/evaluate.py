"""Evaluation: what a proxy and its confidence are worth on a data set, as one dictionary (`report.json`).

Schema 1, documented in docs/evaluate.md. Every rate stands beside its n and an interval drawn over pictures.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

import fastrm_monitor
from fastrm_monitor.lab.distill import arrange, last_states, predict, teacher_maps
from fastrm_monitor.lab.fidelity import fidelity, pointing
from fastrm_monitor.lab.intervals import over_pictures
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.lab.reliability import accuracy, auroc_difference, judge
from fastrm_monitor.scoring.checkpoint import ProxyFolder
from fastrm_monitor.scoring.entropy import map_features, spatial_entropy
from fastrm_monitor.scoring.patches import PatchLayout
from fastrm_monitor.scoring.scorer import Scorer
from fastrm_monitor.types import RelevanceMap

SCHEMA_VERSION = 1
_PAIRS = 100


def evaluate(labels: Labels, folder: ProxyFolder, layout: PatchLayout, data: str) -> dict[str, Any]:
    """Judge one proxy folder on one labelled data set."""
    rows = list(range(len(labels)))
    facts = labels.facts
    names, groups = [one.picture_id for one in facts], [one.group for one in facts]
    right = [one.right for one in facts]
    proxy_raw, teacher_raw = predict(folder.proxy, labels, rows), teacher_maps(labels, rows)
    proxy_maps = arrange(proxy_raw, labels, rows, layout)
    teacher_arranged = arrange(teacher_raw, labels, rows, layout)
    boxes = [one.boxes for one in facts]
    scores = _scores(labels, folder, proxy_maps, teacher_raw)
    return {
        "data": data,
        "questions": len(rows),
        "pictures": len(set(names)),
        "accuracy": accuracy(right, groups, names),
        "fidelity": fidelity(proxy_raw, teacher_raw, folder.config.label_threshold),
        "pointing": {
            "proxy": pointing(proxy_maps, boxes, names),
            "teacher": pointing(teacher_arranged, boxes, names),
        },
        "question_sensitivity": {
            "proxy": _sensitivity(proxy_maps, names),
            "teacher": _sensitivity(teacher_arranged, names),
        },
        "confidence": judge(scores, right, groups, names),
        "auroc_difference": auroc_difference(scores["fastrm"], scores["token_probability"], right, names),
        "flags": _flags(labels, folder, proxy_maps),
    }


def report(model: str, folder: ProxyFolder, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole report: the first part is the main data set, the others are its shifts."""
    first, *others = parts
    return {
        "schema_version": SCHEMA_VERSION,
        "library_version": fastrm_monitor.__version__,
        "model": model,
        "proxy": {"path": str(folder.path), "version": folder.version, "form": folder.config.form},
        **first,
        "shifts": {part["data"]: part for part in others},
    }


def _all_features(labels: Labels, folder: ProxyFolder, maps: list[RelevanceMap]) -> list[dict[str, float]]:
    rows = range(len(labels))
    features = [{**map_features([one]), **labels.facts[row].numbers} for one, row in zip(maps, rows, strict=True)]
    fitted = folder.confidence
    if fitted is not None and fitted.probe:
        logits = last_states(labels, rows) @ np.array(fitted.probe, np.float32) + fitted.probe_bias
        for one, value in zip(features, torch.sigmoid(torch.from_numpy(logits)).tolist(), strict=True):
            one["p_ik"] = value
    return features


def _scores(
    labels: Labels, folder: ProxyFolder, maps: list[RelevanceMap], teacher: list[np.ndarray]
) -> dict[str, list[float]]:
    features = _all_features(labels, folder, maps)
    confidence = Scorer(folder).confidence
    names = ["token_probability", "token_entropy", "map_entropy", "map_mass", "map_max"]
    if "p_ik" in features[0]:
        names.insert(2, "p_ik")
    return {
        "fastrm": [confidence(one)[0] for one in features],
        **{name: [one[name] for one in features] for name in names},
        "teacher_map_entropy": [spatial_entropy(one) for one in teacher],
    }


def _flags(labels: Labels, folder: ProxyFolder, maps: list[RelevanceMap]) -> dict[str, Any] | None:
    """How often right and wrong answers fall below the folder's threshold; None when it is not calibrated."""
    if folder.confidence is None:
        return None
    confidence, bound = Scorer(folder).confidence, folder.confidence.threshold
    low = np.array([confidence(one)[0] < bound for one in _all_features(labels, folder, maps)])
    right = np.array([one.right for one in labels.facts])
    names = np.array([one.picture_id for one in labels.facts])

    def rate(where: np.ndarray) -> dict[str, Any]:
        own = low[where].astype(float)
        if not len(own):
            return {"n": 0, "rate": None, "ci95": None}
        interval = over_pictures(lambda rows: float(own[rows].mean()), names[where].tolist())
        return {"n": len(own), "rate": float(own.mean()), "ci95": interval}

    return {"threshold": bound, "of_right": rate(right), "of_wrong": rate(~right)}


def _sensitivity(maps: list[RelevanceMap], pictures: list[str]) -> dict[str, Any]:
    """Mean absolute difference of the maps of two questions on one picture, over up to 100 pictures."""
    by_picture: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(pictures):
        by_picture[name].append(row)
    pairs = [(rows[0], rows[1]) for rows in by_picture.values() if len(rows) > 1][:_PAIRS]
    if not pairs:
        return {"pairs": 0, "mean_absolute_difference": None, "ci95": None, "identical": None}
    gaps = np.array([np.abs(maps[one].values - maps[other].values).mean() for one, other in pairs], float)
    names = [pictures[one] for one, _ in pairs]
    return {
        "pairs": len(pairs),
        "mean_absolute_difference": float(gaps.mean()),
        "ci95": over_pictures(lambda rows: float(gaps[rows].mean()), names),
        "identical": int((gaps == 0).sum()),
    }
