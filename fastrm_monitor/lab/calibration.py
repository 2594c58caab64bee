"""Calibration: from answers whose truth is known to P(right).

Two steps. A logistic model *ranks* all answers given, of the traffic and of questions that break its habits: fitted on
the traffic alone it would lean on the token probability, which is what fails when the habit does. Then one slope and
one intercept *calibrate* the ranking on the traffic alone, which changes no order.

How much the questions beside the traffic weigh is a trade: where habits hold, an answer from habit is mostly right, and
where they do not, it is mostly wrong, and nothing in the pass says which world this is. docs/evidence.md has the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrm_monitor.lab.distill import arrange, last_states
from fastrm_monitor.lab.intervals import over_pictures
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.lab.reliability import auroc, calibration_error
from fastrm_monitor.scoring.confidence import ANSWER_FEATURES, LogisticConfidence, transform
from fastrm_monitor.scoring.entropy import map_features
from fastrm_monitor.scoring.patches import PatchLayout
from fastrm_monitor.scoring.proxy import SIGNALS, Proxy
from fastrm_monitor.scoring.scorer import Measured
from fastrm_monitor.types import RelevanceMap

CONFIDENCE_FEATURES = (*ANSWER_FEATURES, "p_ik", *SIGNALS)
"""What the confidence is fitted on, as far as the proxy gives it."""
TRAFFIC_SHARE = 0.7
"""Of all weight that the traffic has in the ranking, where there are questions beside it."""
_LEAST = 20
"""Right and wrong answers below which nothing is fitted."""


@dataclass(frozen=True, eq=False)
class Probe:
    """P(I know): a linear probe on h_t (Kadavath et al. 2022), logit = weights . h_t + bias."""

    weights: np.ndarray
    bias: float

    def __call__(self, last: Tensor) -> Tensor:
        """P(IK) of states (B, d), float32 (B,)."""
        return torch.sigmoid(last.float() @ torch.from_numpy(self.weights) + self.bias)


@dataclass(frozen=True, eq=False)
class Held:
    """Questions that nothing was trained on: some rows of some labels."""

    labels: Labels
    rows: Sequence[int]


def fit_probe(labels: Labels, rows: Sequence[int]) -> Probe | None:
    """The probe, from the training questions; None when fewer than 20 of their answers are right or wrong."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    right = np.array([labels.facts[row].right for row in rows])
    if _poor(right):
        return None
    states = last_states(labels, rows)
    scaler = StandardScaler().fit(states)
    model = LogisticRegression(C=0.01, max_iter=2000).fit(scaler.transform(states), right)
    weights = (model.coef_[0] / scaler.scale_).astype(np.float32)
    return Probe(weights, float(model.intercept_[0] - scaler.mean_ @ weights))


@torch.inference_mode()
def features(
    proxy: Proxy, probe: Probe | None, labels: Labels, rows: Sequence[int], layout: PatchLayout
) -> tuple[list[RelevanceMap], list[dict[str, float]]]:
    """Map and features of each question, as they are had when serving."""
    read: list[tuple[np.ndarray, dict[str, float]]] = []
    for _, batch in labels.batches(rows, 128):
        reading = proxy.read(batch.states, batch.image, batch.valid)
        signals = reading.signals(batch.image)
        if probe is not None:
            signals["p_ik"] = probe(batch.states[:, -1])
        read += Measured(torch.sigmoid(reading.relevance), batch.image, signals).rows()
    maps = arrange([relevance for relevance, _ in read], labels, rows, layout)
    numbers = [
        {**map_features([one]), **labels.facts[row].numbers, **own}
        for one, row, (_, own) in zip(maps, rows, read, strict=True)
    ]
    return maps, numbers


def fit_confidence(
    proxy: Proxy,
    probe: Probe | None,
    held: Sequence[Held],
    layout: PatchLayout,
    *,
    flag_rate: float,
    data: str,
    share: float = TRAFFIC_SHARE,
    names: Sequence[str] = CONFIDENCE_FEATURES,
) -> LogisticConfidence | None:
    """Calibrate P(right) on questions whose right answers are known.

    Args:
        proxy: trained, on other pictures than those held.
        probe: likewise.
        held: the traffic first, then questions that break its habits.
        layout: of the model's patches.
        flag_rate: share of the traffic that the stored threshold would flag.
        data: name of the data, for `fitted_on`.
        share: see `TRAFFIC_SHARE`.
        names: features to rest on, as far as the proxy gives them.

    Returns:
        The confidence; None when fewer than 20 answers of the traffic are right or fewer than 20 wrong, or when they
        lie on too few pictures to hold any out. Calibration error and AUROC in `fitted_on` are those of the traffic,
        out of fold (folds by picture).
    """
    from sklearn.model_selection import GroupKFold

    facts = [one.labels.facts[row] for one in held for row in one.rows]
    numbers = [own for one in held for own in features(proxy, probe, one.labels, one.rows, layout)[1]]
    known = tuple(name for name in names if name in numbers[0])
    table = np.array([[transform(name, own[name]) for name in known] for own in numbers])
    right = np.array([one.right for one in facts])
    pictures = np.array([one.picture_id for one in facts])
    traffic = np.arange(len(facts)) < len(held[0].rows)
    if _poor(right[traffic]) or len(set(pictures[traffic])) < 5:
        return None
    said = np.full(len(facts), np.nan)
    for learnt, asked in GroupKFold(5).split(right, groups=pictures):
        if len(set(right[learnt][traffic[learnt]])) < 2:
            return None
        mean, scale, weights, intercept = _fit(table[learnt], right[learnt], traffic[learnt], share)
        said[asked] = 1 / (1 + np.exp(-((table[asked] - mean) / scale @ weights + intercept)))
    mean, scale, weights, intercept = _fit(table, right, traffic, share)
    own, truth, shown = said[traffic], right[traffic], pictures[traffic].tolist()
    return LogisticConfidence(
        features=known,
        mean=_floats(mean),
        scale=_floats(scale),
        weights=_floats(weights),
        intercept=intercept,
        threshold=float(np.quantile(own, flag_rate)),
        probe=_floats(probe.weights) if probe is not None else (),
        probe_bias=probe.bias if probe is not None else 0.0,
        fitted_on={
            "data": data,
            "answers": len(truth),
            "pictures": len(set(shown)),
            "accuracy": float(truth.mean()),
            "answers_beside_the_traffic": int((~traffic).sum()),
            "held_out_auroc": auroc(own, truth),
            "held_out_auroc_ci95": over_pictures(lambda drawn: auroc(own[drawn], truth[drawn]), shown),
            "held_out_ece": calibration_error(own, truth),
            "flag_rate": flag_rate,
        },
    )


def _fit(table: np.ndarray, right: np.ndarray, traffic: np.ndarray, share: float) -> tuple[Any, Any, Any, float]:
    """Mean, scale, weights and intercept of the two steps as one logistic model."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(table)
    scaled = scaler.transform(table)
    weight = np.ones(len(right))
    if not traffic.all():
        weight = len(right) * np.where(traffic, share / traffic.sum(), (1 - share) / (~traffic).sum())
    ranked = LogisticRegression(C=1.0, max_iter=2000).fit(scaled, right, sample_weight=weight)
    weights, intercept = ranked.coef_[0], float(ranked.intercept_[0])
    if not traffic.all():
        order = scaled[traffic] @ weights
        line = LogisticRegression(C=1e6, max_iter=2000).fit(order[:, None], right[traffic])
        slope = max(float(line.coef_[0, 0]), 1e-3)  # the order is the ranking's to say
        weights, intercept = weights * slope, float(line.intercept_[0])
    return scaler.mean_, scaler.scale_, weights, intercept


def _poor(right: np.ndarray) -> bool:
    return min(int(right.sum()), int((~right).sum())) < _LEAST


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
