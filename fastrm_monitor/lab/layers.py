"""Which layer's states a proxy should read: the final ones against other single layers and concatenations.

Every choice gets the same query-row network, recipe, budget and pictures; only its input differs. Each layer's states
are brought to unit root mean square by position, so that in a concatenation none drowns the others.

Questions are labelled anew, since the labels' cache keeps the final states alone: states of the image positions and of
t of every layer in question, in a temporary folder of the labels' own form, one set of shards a layer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, TaskID
from safetensors.torch import save_file
from torch import Tensor

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.base import Dataset, Sample
from fastrm_monitor.lab.distill import Recipe, predict, split_by_picture, teacher_maps, train_proxy
from fastrm_monitor.lab.fidelity import FidelityDraws, fidelity
from fastrm_monitor.lab.intervals import Draws, interval, significance
from fastrm_monitor.lab.labels import LabelBatch, LabelFacts, Labels
from fastrm_monitor.lab.teacher import Teacher
from fastrm_monitor.scoring.patches import layout_for

FINAL = "final"
_HELD = 0.3
"""Share of pictures held out of the training: half of them are judged, the others choose the epoch."""
_SHARD = 256


def layers(
    asker: Asker,
    dataset: Dataset,
    *,
    choices: Sequence[Sequence[int]] | None = None,
    epochs: int = 12,
    seed: int = 0,
    limit: int | None = 4000,
    batch: int = 32,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train one proxy for each choice of layers and judge them on the same unseen pictures.

    Args:
        asker: of the model.
        dataset: its questions; those whose picture cannot be read are left out.
        choices: layers to read, e.g. `[(2,), (2, 4)]`; layer l of L is the output of the l-th decoder layer, layer L
            stands for the final states, after the final norm. Those are always among the choices. None for the
            quarters and a concatenation of middle and end.
        epochs: of each training.
        seed: of the split, the weights and the order.
        limit: the first so many questions; None for all.
        batch: questions that the teacher explains at once.
        progress: shows labelling and training.

    Returns:
        `questions` and `pictures` that are judged, `training_questions`, `epochs`, and `choices`: by name ("final",
        "layer 2", "layers 2+4") `layers`, `width`, `parameters`, `auprc`, `auprc_within` (see `fidelity`) and `f1`
        (decision 0.5), each with its `ci95` over pictures, and for all but "final" `difference` to it, paired:
        `{difference, ci95, p}` of each of the three. `base_rate` over patches and `chance_within` are those of all.

    Raises:
        DataError: a choice is not of this model's layers, or there are too few pictures.
    """
    count = int(asker.model.config.get_text_config().num_hidden_layers)
    wanted = _choices(choices, count)
    bar = progress or Progress(disable=True)
    with tempfile.TemporaryDirectory(prefix="fastrm-layers-") as folder:
        kept = sorted({layer for choice in wanted.values() for layer in choice})
        sets = _label(asker, dataset, Path(folder), kept, limit, batch, bar)
        return _compare(asker, sets, wanted, Recipe(epochs=epochs, patience=epochs, heads=False, seed=seed), bar)


def _choices(choices: Sequence[Sequence[int]] | None, count: int) -> dict[str, tuple[int, ...]]:
    """Layers by name, the final states first."""
    if choices is None:
        quarters = sorted({max(1, round(count * part)) for part in (0.25, 0.5, 0.75)} - {count})
        choices = [*((layer,) for layer in quarters), *([(quarters[len(quarters) // 2], count)] if quarters else [])]
    found: dict[str, tuple[int, ...]] = {FINAL: (count,)}
    for choice in choices:
        own = tuple(choice)
        if not own or not all(1 <= layer <= count for layer in own):
            raise DataError(f"The layers {own} are not among the model's 1 to {count}.")
        if own != (count,):
            found[f"layer{'s' if len(own) > 1 else ''} {'+'.join(str(layer) for layer in own)}"] = own
    return found


def _label(
    asker: Asker, dataset: Dataset, folder: Path, kept: Sequence[int], limit: int | None, batch: int, bar: Progress
) -> dict[int, Labels]:
    """The labels of each layer."""
    teacher = Teacher(asker.model)
    samples = islice(dataset, limit)
    task = bar.add_task(f"states of {dataset.name}", total=min(len(dataset), limit or len(dataset)))
    shards: dict[int, list[Path]] = {layer: [] for layer in kept}
    while chunk := list(islice(samples, _SHARD)):
        gathered = _Gathered(kept)
        for start in range(0, len(chunk), batch):
            part = chunk[start : start + batch]
            gathered.add(asker, teacher, part)
            bar.advance(task, len(part))
        gathered.write(folder, shards)
    if not shards[kept[0]]:
        raise DataError(f"{dataset.name} has no question whose picture can be read.")
    return {layer: Labels(own) for layer, own in shards.items()}


class _Gathered:
    """Labels of one shard, with states of several layers."""

    def __init__(self, kept: Sequence[int]) -> None:
        self._states: dict[int, list[Tensor]] = {layer: [] for layer in kept}
        self._image: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._facts: list[LabelFacts] = []

    def add(self, asker: Asker, teacher: Teacher, chunk: Sequence[Sample]) -> None:
        """Explain some samples at once."""
        readable, pictures = [], []
        for sample in chunk:
            try:
                pictures.append(sample.picture())
                readable.append(sample)
            except DataError:
                continue
        if not readable:
            return
        inputs = asker.inputs(pictures, [sample.question for sample in readable])
        explained = teacher.explain(inputs)
        with torch.inference_mode():
            states = asker.model(**inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states
            rows = explained.image.clone()
            rows[:, -1] = True  # what a query-row proxy reads: the image positions and t
            for layer, own in self._states.items():
                own += [one[where].half().cpu() for one, where in zip(_even(states[layer]), rows, strict=True)]
        for place, where in enumerate(rows):
            self._image.append(explained.image[place][where].cpu())
            self._targets.append(explained.relevance[place][where].half().cpu())
        self._facts += [
            LabelFacts(
                id=one.id,
                picture_id=one.picture_id,
                group=one.group,
                answer="",
                right=False,
                numbers={},
                boxes=one.boxes,
                size=picture.size,
            )
            for one, picture in zip(readable, pictures, strict=True)
        ]

    def write(self, folder: Path, shards: Mapping[int, list[Path]]) -> None:
        """One shard a layer; none when no picture could be read."""
        if not self._facts:
            return
        for layer, own in self._states.items():
            path = folder / f"layer-{layer}-{len(shards[layer]):05d}.safetensors"
            tensors = {
                "states": torch.cat(own),
                "image": torch.cat(self._image),
                "targets": torch.cat(self._targets),
                "lengths": torch.tensor([len(one) for one in self._image]),
            }
            try:
                save_file(tensors, path, metadata={"facts": _json(self._facts)})
            except OSError as error:
                raise DataError(f"States cannot be kept in {folder} ({error}): set TMPDIR to a larger disk.") from None
            shards[layer].append(path)


def _even(states: Tensor) -> Tensor:
    """Each position's states at root mean square 1, float32."""
    own = states.float()
    return own * torch.rsqrt(own.square().mean(-1, keepdim=True) + 1e-6)


class _Joined(Labels):
    """Labels whose states are those of several layers side by side."""

    def __init__(self, parts: Sequence[Labels]) -> None:
        self._parts, self.facts = parts, parts[0].facts

    def batch(self, indices: Sequence[int]) -> LabelBatch:
        """See `Labels.batch`; `states` is (B, T, layers * d)."""
        batches = [one.batch(indices) for one in self._parts]
        return replace(batches[0], states=torch.cat([one.states for one in batches], -1))


def _compare(
    asker: Asker, sets: Mapping[int, Labels], wanted: Mapping[str, tuple[int, ...]], recipe: Recipe, bar: Progress
) -> dict[str, Any]:
    layout = layout_for(asker.model.config, asker.processor)
    first = next(iter(sets.values()))
    training, held = split_by_picture(first, _HELD, recipe.seed)
    judged, choosing = _halves(first, held, recipe.seed)
    if not judged or not choosing:
        raise DataError(
            f"{len({one.picture_id for one in first.facts})} pictures are too few to compare layers: use more."
        )
    names = [first.facts[row].picture_id for row in judged]
    draws, teacher = Draws(names), teacher_maps(first, judged)
    found: dict[str, Any] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    chance: float | None = None
    for name, choice in wanted.items():
        labels = _Joined([sets[layer] for layer in choice])
        task = bar.add_task(f"training on {name}", total=recipe.epochs)
        proxy = train_proxy(labels, training, choosing, recipe, layout, _shown(bar, task))
        relevance = predict(proxy, labels, judged)
        own = fidelity(relevance, teacher, recipe.label_threshold)
        chance = own["chance_within"]  # of the questions alone: every choice has the same
        drawn[name] = FidelityDraws(relevance, teacher, recipe.label_threshold, draws).by_name
        points = {"auprc": own["auprc"], "auprc_within": own["auprc_within"], "f1": own["thresholds"]["0.5"]["f1"]}
        found[name] = {
            "layers": list(choice),
            "width": proxy.config.hidden_size,
            "parameters": sum(one.numel() for one in proxy.parameters()),
            **{
                figure: {"value": value, "ci95": _interval(drawn[name][figure], draws)}
                for figure, value in points.items()
            },
        }
        if name != FINAL:
            found[name]["difference"] = {
                figure: _difference(
                    value, found[FINAL][figure]["value"], drawn[name][figure] - drawn[FINAL][figure], draws
                )
                for figure, value in points.items()
            }
    return {
        "questions": len(judged),
        "pictures": draws.pictures,
        "training_questions": len(training),
        "epochs": recipe.epochs,
        "base_rate": float(np.mean(np.concatenate(teacher) >= recipe.label_threshold)),
        "chance_within": chance,
        "choices": found,
    }


def _halves(labels: Labels, rows: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Rows of either half of the pictures."""
    names = sorted({labels.facts[row].picture_id for row in rows})
    first = set(np.random.default_rng(seed).permutation(names)[: len(names) // 2].tolist())
    one, other = ([row for row in rows if (labels.facts[row].picture_id in first) == side] for side in (True, False))
    return one, other


def _interval(drawn: np.ndarray, draws: Draws) -> list[float] | None:
    return interval(drawn) if draws.enough else None


def _difference(value: float | None, final: float | None, drawn: np.ndarray, draws: Draws) -> dict[str, Any]:
    return {
        "difference": None if value is None or final is None else value - final,
        "ci95": _interval(drawn, draws),
        "p": significance(drawn) if draws.enough else None,
    }


def _shown(bar: Progress, task: TaskID) -> Callable[[int, float], None]:
    return lambda epoch, auprc: bar.update(task, completed=epoch)


def _json(facts: Sequence[LabelFacts]) -> str:
    return json.dumps([asdict(one) for one in facts])
