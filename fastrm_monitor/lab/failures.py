"""Known failure modes, and where the map lies when they happen.

The modes are told by the form of the answer alone, so that any data set has them: a wrong "yes" is hallucinated, a
wrong "no" missed something that is there, a wrong number is a wrong count, any other wrong answer names the attribute
of something else than was asked for. Whether the relevance lay on the objects asked about is known where the data set
knows their boxes; an object that is not there has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrm_monitor.lab.datasets.vqav2 import normalise
from fastrm_monitor.lab.fidelity import inside
from fastrm_monitor.lab.intervals import Draws, interval, rate
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.types import RelevanceMap

MODES = {"hallucinated": ("yes", "yes"), "missed": ("no", "yes"), "count": ("number",) * 2, "object": ("other",) * 2}
"""Kind of the wrong answers of each failure mode, and of the right ones that they are held against.

A wrong "no" is held against a right "yes": in both the object is there."""


def failures(
    labels: Labels, maps: Mapping[str, Sequence[RelevanceMap]], changed: Mapping[int, bool] | None = None
) -> dict[str, Any]:
    """The share of relevance on the boxes asked about, wrong answers against right ones, by failure mode.

    Args:
        labels: the answers.
        maps: by name ("proxy", "teacher"), one map a labelled question.
        changed: by row, whether masking the most relevant quarter of the patches changed the answer, as far as asked.

    Returns:
        For each of `MODES`: `wrong` and `right`, each with `answers`; `on_boxes`, the share of the relevance on the
        boxes, and `mass`, the mean relevance of a patch, both by map name as `{n, mean, ci95}`; `boxes`, the share of
        patches on the boxes, which a map that knows nothing has; `changed` as `{n, rate, ci95}`. And `difference`,
        wrong less right, of `on_boxes` and `mass` by map name as `{difference, ci95}`.
    """
    draws = Draws([one.picture_id for one in labels.facts])
    right = np.array([one.right for one in labels.facts], bool)
    kinds = np.array([_kind(one.answer) for one in labels.facts], str)
    laid = next(iter(maps.values()))  # every map of a picture has the same grid
    area = np.array(
        [inside(own, one.boxes).mean() if one.boxes else np.nan for own, one in zip(laid, labels.facts, strict=True)]
    )
    on_boxes = {name: _on_boxes(labels, own) for name, own in maps.items()}
    mass = {name: np.array([one.values.mean() for one in own], float) for name, own in maps.items()}
    asked = np.zeros(len(right), bool)
    other = np.zeros(len(right))
    for row, differs in (changed or {}).items():
        asked[row], other[row] = True, differs

    def side(where: np.ndarray) -> dict[str, Any]:
        return {
            "answers": int(where.sum()),
            "on_boxes": {name: mean_of(own, draws, where) for name, own in on_boxes.items()},
            "boxes": mean_of(area, draws, where),
            "mass": {name: mean_of(own, draws, where) for name, own in mass.items()},
            "changed": rate(other, draws, where & asked),
        }

    found = {}
    for mode, (of_wrong, of_right) in MODES.items():
        wrong, held = ~right & (kinds == of_wrong), right & (kinds == of_right)
        found[mode] = {
            "wrong": side(wrong),
            "right": side(held),
            "difference": {
                "on_boxes": {name: _difference(own, draws, wrong, held) for name, own in on_boxes.items()},
                "mass": {name: _difference(own, draws, wrong, held) for name, own in mass.items()},
            },
        }
    return found


def mean_of(values: np.ndarray, draws: Draws, where: np.ndarray | None = None) -> dict[str, Any]:
    """`n`, `mean` and `ci95` over pictures of the values (S,) that `where` names and that are known (not NaN)."""
    known = np.isfinite(values) if where is None else where & np.isfinite(values)
    if not known.any():
        return {"n": 0, "mean": None, "ci95": None}
    bounds = interval(draws.means(np.nan_to_num(values), known)) if draws.enough_of(known) else None
    return {"n": int(known.sum()), "mean": float(values[known].mean()), "ci95": bounds}


def _difference(values: np.ndarray, draws: Draws, one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    known = np.isfinite(values)
    sides = [where & known for where in (one, other)]
    if not all(where.any() for where in sides):
        return {"difference": None, "ci95": None}
    filled = np.nan_to_num(values)
    first, second = (draws.means(filled, where) for where in sides)
    enough = all(draws.enough_of(where) for where in sides)
    return {
        "difference": float(values[sides[0]].mean() - values[sides[1]].mean()),
        "ci95": interval(first - second) if enough else None,
    }


def _kind(answer: str) -> str:
    word = normalise(answer)
    if word in ("yes", "no"):
        return word
    return "number" if word.isdigit() else "other"


def _on_boxes(labels: Labels, maps: Sequence[RelevanceMap]) -> np.ndarray:
    """Share of each map's relevance in the boxes, (S,); NaN without boxes or without any relevance."""
    found = np.full(len(maps), np.nan)
    for row, (own, facts) in enumerate(zip(maps, labels.facts, strict=True)):
        total = float(own.values.sum())
        if facts.boxes and total > 0:
            found[row] = float(own.values[inside(own, facts.boxes)].sum()) / total
    return found
