"""Distillation: from labels to a proxy folder.

The proxy learns the teacher's maps on some pictures, stops by AUPRC on others, and the confidence is calibrated on
those others, whose right answers are known. Pictures, not questions, are split.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.fidelity import auprc
from fastrm_monitor.lab.intervals import over_pictures
from fastrm_monitor.lab.labels import LabelBatch, Labels
from fastrm_monitor.lab.reliability import auroc, calibration_error
from fastrm_monitor.scoring.confidence import ANSWER_FEATURES, LogisticConfidence, transform
from fastrm_monitor.scoring.entropy import MAP_FEATURES, map_features
from fastrm_monitor.scoring.patches import PatchLayout, PictureInput
from fastrm_monitor.scoring.proxy import Form, Proxy, ProxyConfig, build_proxy
from fastrm_monitor.types import RelevanceMap

CONFIDENCE_FEATURES = (*ANSWER_FEATURES, "p_ik", *MAP_FEATURES)


@dataclass(frozen=True)
class Recipe:
    """How a proxy is trained.

    Attributes:
        form: "query-row" or "self-attention".
        key_size: d_k.
        projection_size: hidden width of the projections; 0 for the paper's one linear map.
        targets: "soft" teaches the teacher's relevance itself, "hard" its thresholded form, as in the paper.
        label_threshold: of the hard targets and of all reported fidelity.
        epochs: at most; training stops after `patience` epochs without a better validation AUPRC.
        patience: see `epochs`.
        batch: questions a step.
        rate: peak learning rate.
        validation: share of pictures held out.
        flag_rate: share of the validation answers that the stored threshold would flag.
        seed: of weights and order.
    """

    form: Form = "query-row"
    key_size: int = 64
    projection_size: int = 128
    targets: str = "soft"
    label_threshold: float = 0.3
    epochs: int = 40
    patience: int = 6
    batch: int = 64
    rate: float = 2e-3
    validation: float = 0.2
    flag_rate: float = 0.2
    seed: int = 0


def split_by_picture(labels: Labels, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers for training and validation; a picture's questions all fall on one side.

    Raises:
        DataError: there are too few pictures for two sides.
    """
    inside = [zlib.crc32(f"{seed}:{one.picture_id}".encode()) / 2**32 < share for one in labels.facts]
    training = [row for row, held in enumerate(inside) if not held]
    validation = [row for row, held in enumerate(inside) if held]
    if not training or not validation:
        raise DataError(
            f"{len({one.picture_id for one in labels.facts})} pictures are too few to hold any out: use more."
        )
    return training, validation


def train_proxy(
    labels: Labels,
    training: Sequence[int],
    validation: Sequence[int],
    recipe: Recipe,
    told: Callable[[int, float], None] = lambda epoch, auprc: None,
) -> Proxy:
    """Train a proxy; the weights of the best validation AUPRC are kept.

    Args:
        labels: of the LVLM's questions.
        training: rows to learn from.
        validation: rows of other pictures.
        recipe: see `Recipe`.
        told: called after each epoch with its number and validation AUPRC.
    """
    torch.manual_seed(recipe.seed)
    width = labels.batch(training[:1]).states.shape[-1]
    proxy = build_proxy(ProxyConfig(width, recipe.form, recipe.key_size, recipe.projection_size))
    steps = -(-len(training) // recipe.batch)
    optimizer = torch.optim.AdamW(proxy.parameters(), lr=recipe.rate, weight_decay=0.01)
    total = recipe.epochs * steps + 1
    if total == 10:  # a tenth of it is one step, by which the scheduler divides less one
        total += 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=total, pct_start=0.1)
    rng = np.random.default_rng(recipe.seed)
    truth = teacher_maps(labels, validation)
    best, kept, worse = -1.0, copy.deepcopy(proxy.state_dict()), 0
    for epoch in range(1, recipe.epochs + 1):
        proxy.train()
        for _, batch in labels.batches([training[n] for n in rng.permutation(len(training))], recipe.batch):
            loss = _loss(proxy, batch, recipe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(proxy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        reached = auprc(predict(proxy, labels, validation), truth, recipe.label_threshold) or 0.0
        told(epoch, reached)
        if reached > best:
            best, kept, worse = reached, copy.deepcopy(proxy.state_dict()), 0
        else:
            worse += 1
            if worse >= recipe.patience:
                break
    proxy.load_state_dict(kept)
    return proxy.eval().requires_grad_(False)


def _loss(proxy: Proxy, batch: LabelBatch, recipe: Recipe) -> Tensor:
    logits = proxy(batch.states, batch.image, batch.valid)[batch.image]
    targets = batch.targets[batch.image]
    if recipe.targets == "hard":
        targets = (targets >= recipe.label_threshold).float()
    return nn.functional.binary_cross_entropy_with_logits(logits, targets)


@torch.inference_mode()
def predict(proxy: Proxy, labels: Labels, rows: Sequence[int]) -> list[np.ndarray]:
    """The proxy's relevance of each question, float32 (N,) in token order."""
    maps = []
    for _, batch in labels.batches(rows, 128):
        relevance = torch.sigmoid(proxy(batch.states, batch.image, batch.valid))
        maps += [one[where].numpy() for one, where in zip(relevance, batch.image, strict=True)]
    return maps


def teacher_maps(labels: Labels, rows: Sequence[int]) -> list[np.ndarray]:
    """The teacher's relevance of each question, float32 (N,) in token order."""
    maps = []
    for _, batch in labels.batches(rows, 128):
        maps += [one[where].numpy() for one, where in zip(batch.targets, batch.image, strict=True)]
    return maps


def last_states(labels: Labels, rows: Sequence[int]) -> np.ndarray:
    """h_t of each question, float32 (S, d)."""
    return np.concatenate([batch.states[:, -1].numpy() for _, batch in labels.batches(rows, 128)])


def arrange(maps: Sequence[np.ndarray], labels: Labels, rows: Sequence[int], layout: PatchLayout) -> list[RelevanceMap]:
    """Token relevances laid on the pictures: one map a question (each has one picture)."""
    return [
        layout.grids(len(one), [PictureInput(labels.facts[row].size)])[0].arrange(one)
        for one, row in zip(maps, rows, strict=True)
    ]


def fit_confidence(
    proxy: Proxy, labels: Labels, rows: Sequence[int], layout: PatchLayout, *, flag_rate: float, data: str
) -> LogisticConfidence | None:
    """Calibrate P(right) on questions whose right answers are known.

    The probe's outputs enter the logistic model out of fold (folds by picture), else it would trust a probe that has
    seen its own answers. Calibration error and AUROC are out of fold likewise.

    Returns:
        The confidence; None when fewer than 20 answers are right or fewer than 20 wrong, or when they lie on too few
        pictures to hold any out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.preprocessing import StandardScaler

    facts = [labels.facts[row] for row in rows]
    right = np.array([one.right for one in facts])
    pictures = [one.picture_id for one in facts]
    if min(right.sum(), (~right).sum()) < 20 or len(set(pictures)) < 5:
        return None
    folds = list(GroupKFold(5).split(right, groups=pictures))
    if any(len(set(right[learnt])) < 2 for learnt, _ in folds):
        return None
    states = last_states(labels, rows)
    scaler = StandardScaler().fit(states)
    probe = LogisticRegression(C=0.01, max_iter=2000)
    known = cross_val_predict(probe, scaler.transform(states), right, cv=folds, method="predict_proba")[:, 1]
    probe.fit(scaler.transform(states), right)
    weights = probe.coef_[0] / scaler.scale_
    maps = arrange(predict(proxy, labels, rows), labels, rows, layout)
    features = [
        {**map_features([one]), **fact.numbers, "p_ik": float(p)}
        for one, fact, p in zip(maps, facts, known, strict=True)
    ]
    table = np.array([[transform(name, one[name]) for name in CONFIDENCE_FEATURES] for one in features])
    scale = StandardScaler().fit(table)
    model = LogisticRegression(C=1.0, max_iter=2000)
    held = cross_val_predict(model, scale.transform(table), right, cv=folds, method="predict_proba")[:, 1]
    model.fit(scale.transform(table), right)
    return LogisticConfidence(
        features=CONFIDENCE_FEATURES,
        mean=_floats(scale.mean_),
        scale=_floats(scale.scale_),
        weights=_floats(model.coef_[0]),
        intercept=float(model.intercept_[0]),
        threshold=float(np.quantile(held, flag_rate)),
        probe=_floats(weights),
        probe_bias=float(probe.intercept_[0] - scaler.mean_ @ weights),
        fitted_on={
            "data": data,
            "answers": len(right),
            "pictures": len(set(pictures)),
            "accuracy": float(right.mean()),
            "held_out_auroc": auroc(held, right),
            "held_out_auroc_ci95": over_pictures(lambda drawn: auroc(held[drawn], right[drawn]), pictures),
            "held_out_ece": calibration_error(held, right),
            "flag_rate": flag_rate,
        },
    )


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def summary(recipe: Recipe, labels: Labels, training: Sequence[int], data: str) -> dict[str, Any]:
    """What `config.json` says of the training."""
    names = {labels.facts[row].picture_id for row in training}
    return {**asdict(recipe), "data": data, "questions": len(training), "pictures": len(names)}
