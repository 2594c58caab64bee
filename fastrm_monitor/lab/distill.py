"""Distillation: from labels to a proxy.

The proxy learns the teacher's maps on some pictures and stops by AUPRC on others. Where it is known which objects a
question asks about, and which answers are right, two heads learn that from the same states. Pictures, not questions,
are split.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab import sharing
from fastrm_monitor.lab.fidelity import auprc, inside
from fastrm_monitor.lab.labels import LabelBatch, LabelFacts, Labels
from fastrm_monitor.scoring.patches import PatchGrid, PatchLayout, PictureInput
from fastrm_monitor.scoring.proxy import Form, Proxy, ProxyConfig, QueryRowProxy, build_proxy
from fastrm_monitor.types import RelevanceMap


@dataclass(frozen=True)
class Recipe:
    """How a proxy is trained.

    Attributes:
        form: "query-row" or "self-attention".
        key_size: d_k.
        projection_size: hidden width of the projections; 0 for the paper's one linear map.
        match_size: hidden width of what is added to the dot product of key and query; 0 for nothing, as in the paper.
        targets: "centred" teaches the teacher's relevance on a logistic scale whose middle is the label threshold, so
            that a decision at 0.5 is one at the threshold; "soft" the relevance itself; "hard" its thresholded form,
            as in the paper.
        softness: width of the scale of "centred" targets, in units of relevance.
        heads: whether the heads beyond the paper are trained, where the labels know what they need (query-row only).
        label_threshold: of the targets and of all reported fidelity.
        epochs: at most; training stops after `patience` epochs without a better validation AUPRC.
        patience: see `epochs`.
        batch: questions a step.
        rate: peak learning rate.
        validation: share of pictures held out, but at most `validation_pictures`: more would tell nothing new.
        validation_pictures: see `validation`.
        flag_rate: share of the traffic that the stored threshold would flag.
        seed: of weights and order.
    """

    form: Form = "query-row"
    key_size: int = 64
    projection_size: int = 256
    match_size: int = 0
    targets: str = "centred"
    softness: float = 0.08
    heads: bool = True
    label_threshold: float = 0.3
    epochs: int = 20
    patience: int = 6
    batch: int = 128
    rate: float = 2.5e-3
    validation: float = 0.2
    validation_pictures: int = 1000
    flag_rate: float = 0.2
    seed: int = 0


_HEAD_WEIGHT = 0.3
"""Of the losses of the heads beside that of the relevance."""
_LEAST_FOR_HEAD = 50
"""Questions with boxes, and right and wrong answers, below which a head is left out."""


def split(labels: Labels, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Row numbers for training and validation, as a recipe wants them; see `split_by_picture`."""
    pictures = len({one.picture_id for one in labels.facts})
    return split_by_picture(labels, min(recipe.validation, recipe.validation_pictures / max(pictures, 1)), recipe.seed)


def split_by_picture(labels: Labels, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers for training and validation; a picture's questions all fall on one side.

    Raises:
        DataError: there are too few pictures for two sides.
    """
    held = {name: _lot(f"{seed}:{name}") < share for name in {one.picture_id for one in labels.facts}}
    training = [row for row, one in enumerate(labels.facts) if not held[one.picture_id]]
    validation = [row for row, one in enumerate(labels.facts) if held[one.picture_id]]
    if not training or not validation:
        raise DataError(
            f"{len({one.picture_id for one in labels.facts})} pictures are too few to hold any out: use more."
        )
    return training, validation


def _lot(text: str) -> float:
    """A number in 0..1 that any two texts have independently (a checksum's would not be: it is linear)."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2**64


def train_proxy(
    labels: Labels,
    training: Sequence[int],
    validation: Sequence[int],
    recipe: Recipe,
    layout: PatchLayout,
    told: Callable[[int, float], None] = lambda epoch, auprc: None,
) -> Proxy:
    """Train a proxy; the weights of the best validation AUPRC are kept.

    Of several processes (see `sharing`) each learns from its share of every batch; all return the same proxy.

    Args:
        labels: of the LVLM's questions.
        training: rows to learn from.
        validation: rows of other pictures.
        recipe: see `Recipe`.
        layout: of the model's patches.
        told: called after each epoch with its number and validation AUPRC.
    """
    torch.manual_seed(recipe.seed)
    width = labels.batch(training[:1]).states.shape[-1]
    proxy = build_proxy(_config(width, labels, training, recipe))
    boxes = _Boxes(labels, layout)
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
        order = [training[n] for n in rng.permutation(len(training))]
        for start in range(0, len(order), recipe.batch):
            rows = list(sharing.mine(order[start : start + recipe.batch]))
            optimizer.zero_grad(set_to_none=True)
            if rows:  # the last batch may be too short for a share to everyone
                _loss(proxy, labels.batch(rows), recipe, boxes, rows).backward()
            sharing.average_gradients(proxy, len(rows))
            nn.utils.clip_grad_norm_(proxy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        reached = sharing.from_main(
            lambda: auprc(predict(proxy, labels, validation), truth, recipe.label_threshold) or 0.0
        )
        told(epoch, reached)
        if reached > best:
            best, kept, worse = reached, copy.deepcopy(proxy.state_dict()), 0
        else:
            worse += 1
            if worse >= recipe.patience:
                break
    proxy.load_state_dict(kept)
    if recipe.targets == "centred" and isinstance(proxy, QueryRowProxy):
        _centre(proxy, predict(proxy, labels, validation), truth, recipe.label_threshold)
    return proxy.eval().requires_grad_(False)


@torch.no_grad()
def _centre(proxy: QueryRowProxy, maps: Sequence[np.ndarray], teacher: Sequence[np.ndarray], threshold: float) -> None:
    """Shift the relevance's bias so that 0.5 is the decision with the best F1 on the validation pictures.

    Few patches are relevant, so a network that minimises cross entropy is shy of saying so; no ranking changes.
    """
    said, truth = np.concatenate(maps), np.concatenate(teacher) >= threshold
    order = np.argsort(-said, kind="stable")
    found = np.cumsum(truth[order])
    best = int(np.argmax(2 * found / (np.arange(1, len(order) + 1) + max(int(truth.sum()), 1))))
    cut = float(np.clip(said[order][best], 0.05, 0.95))
    proxy.relevance.bias.sub_(math.log(cut / (1 - cut)))


def _config(width: int, labels: Labels, training: Sequence[int], recipe: Recipe) -> ProxyConfig:
    """The network's sizes, with the heads that can be taught."""
    config = ProxyConfig(width, recipe.form, recipe.key_size, recipe.projection_size, recipe.match_size)
    if recipe.form != "query-row" or not recipe.heads:
        return config
    facts = [labels.facts[row] for row in training]
    right = sum(one.right for one in facts)
    return replace(
        config,
        grounding=sum(bool(one.boxes) for one in facts) >= _LEAST_FOR_HEAD,
        evidence=min(right, len(facts) - right) >= _LEAST_FOR_HEAD,
    )


class _Boxes:
    """Which image tokens show what a question asks about; looked up once a question."""

    def __init__(self, labels: Labels, layout: PatchLayout) -> None:
        self._labels, self._layout, self._known = labels, layout, dict[int, Tensor]()

    def facts(self, row: int) -> LabelFacts:
        """What is known of a question."""
        return self._labels.facts[row]

    def __call__(self, row: int, tokens: int) -> Tensor:
        """Bool (N,) of one question."""
        if row not in self._known:
            self._known[row] = torch.from_numpy(asked_patches(self._labels, row, tokens, self._layout))
        return self._known[row]


def _loss(proxy: Proxy, batch: LabelBatch, recipe: Recipe, boxes: _Boxes, rows: Sequence[int]) -> Tensor:
    entropy = nn.functional.binary_cross_entropy_with_logits
    reading = proxy.read(batch.states, batch.image, batch.valid)
    loss = entropy(reading.relevance[batch.image], _targets(batch.targets[batch.image], recipe))
    facts = [boxes.facts(row) for row in rows]
    if reading.grounding is not None:
        # Nothing to point at says nothing about where to look: questions without boxes do not teach this head.
        located = [number for number, one in enumerate(facts) if one.boxes]
        if located:
            shown = torch.cat([boxes(rows[number], int(batch.image[number].sum())) for number in located])
            loss = loss + _HEAD_WEIGHT * entropy(reading.grounding[located][batch.image[located]], shown.float())
    if reading.evidence is not None:
        right = torch.tensor([float(one.right) for one in facts])
        loss = loss + _HEAD_WEIGHT * entropy(reading.evidence, right)
    return loss


def _targets(relevance: Tensor, recipe: Recipe) -> Tensor:
    if recipe.targets == "soft":
        return relevance
    if recipe.targets == "hard":
        return (relevance >= recipe.label_threshold).float()
    return torch.sigmoid((relevance - recipe.label_threshold) / recipe.softness)


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
    return [_grid(labels, row, len(one), layout).arrange(one) for one, row in zip(maps, rows, strict=True)]


def _grid(labels: Labels, row: int, tokens: int, layout: PatchLayout) -> PatchGrid:
    return layout.grids(tokens, [PictureInput(labels.facts[row].size)])[0]


def asked_patches(labels: Labels, row: int, tokens: int, layout: PatchLayout) -> np.ndarray:
    """Which of a question's image tokens show an object that it asks about (centre in its box), bool (N,)."""
    grid = _grid(labels, row, tokens, layout)
    shown = np.zeros(tokens, bool)
    shown[grid.tokens] = inside(grid.arrange(np.zeros(tokens, np.float32)), labels.facts[row].boxes)
    return shown


def summary(recipe: Recipe, labels: Labels, training: Sequence[int], data: str) -> dict[str, Any]:
    """What `config.json` says of the training."""
    names = {labels.facts[row].picture_id for row in training}
    return {**asdict(recipe), "data": data, "questions": len(training), "pictures": len(names)}
