"""POPE's measures of a model, with intervals: does it say yes to objects that are not there (Li et al. 2023)?

The answers are those of labels; what the official evaluation makes of them is in `datasets.pope`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrm_monitor.lab.datasets.pope import pope_summary, said
from fastrm_monitor.lab.intervals import Draws, interval, rate
from fastrm_monitor.lab.labels import LabelFacts


def existence(facts: Sequence[LabelFacts]) -> dict[str, dict[str, Any]]:
    """The measures of labelled POPE questions by split, which is their group.

    Returns:
        By split `n`; `accuracy`, `precision`, `recall` and `yes_rate`, each `n`, `rate`, `ci95`; `f1` with `value` and
        `ci95`. Yes is the positive class; a ratio without cases is 0 as in the official evaluation, without interval.
    """
    splits = dict.fromkeys(one.group for one in facts)
    return {split: _measures([one for one in facts if one.group == split]) for split in splits}


def _measures(facts: Sequence[LabelFacts]) -> dict[str, Any]:
    draws = Draws([one.picture_id for one in facts])
    yes = np.array([said(one.answer) == "yes" for one in facts])
    right = np.array([one.right for one in facts])
    there = yes == right  # a right yes, or a wrong no
    summary = pope_summary((one.answer, "yes" if own else "no") for one, own in zip(facts, there, strict=True))
    rates = {
        "accuracy": rate(right, draws),
        "precision": rate(there, draws, yes),
        "recall": rate(yes, draws, there),
        "yes_rate": rate(yes, draws),
    }
    # 2 hits / (said + there) is the F1, and undefined in no draw with either.
    hits, called, present = (draws.sums(own.astype(float)) for own in (yes & there, yes, there))
    with np.errstate(invalid="ignore"):
        drawn = 2 * hits / (called + present)
    return {
        "n": len(facts),
        **{name: {**own, "rate": summary[name]} for name, own in rates.items()},
        "f1": {"value": summary["f1"], "ci95": interval(drawn) if draws.enough else None},
    }
