"""Labels on disk: for each question the final states, the teacher's map, the answer and whether it was right.

Made once for a (model, data set), in shards that are written whole; a run that was broken off goes on at the next
shard. Reading goes through memory maps, so a set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab import sharing
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.base import Dataset, Sample
from fastrm_monitor.lab.teacher import Teacher
from fastrm_monitor.terminal import printable
from fastrm_monitor.types import Region

_SHARD = 256
_FORM = 2  # raise it when the contents of a shard change


def default_cache() -> Path:
    """Where labels go unless `--cache` says otherwise: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastrm-monitor" / "labels"


@dataclass(frozen=True)
class LabelFacts:
    """What is known of one labelled question beside its tensors.

    Attributes:
        id: of the question.
        picture_id: of its picture.
        group: kind of question.
        answer: what the model said.
        right: whether that is right.
        numbers: `token_probability`, `token_entropy` and `image_attention`, the attention that t pays to the image.
        boxes: of the objects that the right answer rests on, as fractions of the picture.
        size: (width, height) of the picture in pixels.
    """

    id: str
    picture_id: str
    group: str
    answer: str
    right: bool
    numbers: dict[str, float]
    boxes: tuple[Region, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class LeftOut:
    """Questions without a label: their picture cannot be read, or nobody knows whether the answer is right.

    Attributes:
        questions: how many.
        of: how many the data set has.
        first: why the first of them has none, on one line; empty when that was not kept.
    """

    questions: int = 0
    of: int = 0
    first: str = ""

    def __str__(self) -> str:
        reason = f"; first: {self.first}" if self.first else ""
        return f"{self.questions} of {self.of} questions left out{reason}"


@dataclass(frozen=True, eq=False)
class LabelBatch:
    """Labelled prompts, left-padded: `states` float32 (B, T, d), `targets` float32 (B, T), masks bool (B, T)."""

    states: Tensor
    image: Tensor
    valid: Tensor
    targets: Tensor


class Labels:
    """The labels of one (model, data set).

    Args:
        shards: their files.
        questions: how many the data set has; None for as many as there are labels.
    """

    def __init__(self, shards: Sequence[Path], questions: int | None = None) -> None:
        self.facts: list[LabelFacts] = []
        reasons: list[str] = []
        self._where: list[tuple[int, int, int]] = []  # shard, first row, end row
        self._shards = [safe_open(path, framework="pt") for path in shards]
        for number, shard in enumerate(self._shards):
            start = 0
            for length, raw in zip(shard.get_tensor("lengths").tolist(), _facts(shard), strict=True):
                self._where.append((number, start, start + length))
                self.facts.append(raw)
                start += length
            reasons.append(shard.metadata().get("left_out", ""))
        of = len(self.facts) if questions is None else questions
        self.left_out = LeftOut(of - len(self.facts), of, next(filter(None, reasons), ""))

    def __len__(self) -> int:
        return len(self.facts)

    def batch(self, indices: Sequence[int]) -> LabelBatch:
        """The labels of some questions, as one padded batch."""
        parts = []
        for index in indices:
            shard, start, end = self._where[index]
            opened = self._shards[shard]
            parts.append([opened.get_slice(name)[start:end] for name in ("states", "image", "targets")])
        length = max(len(part[0]) for part in parts)
        states = torch.zeros(len(parts), length, parts[0][0].shape[1])
        image, valid = (torch.zeros(len(parts), length, dtype=torch.bool) for _ in range(2))
        targets = torch.zeros(len(parts), length)
        for row, (own, where, target) in enumerate(parts):
            fit = slice(length - len(own), length)
            states[row, fit], image[row, fit], targets[row, fit] = own.float(), where, target.float()
            valid[row, fit] = True
        return LabelBatch(states, image, valid, targets)

    def batches(self, indices: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], LabelBatch]]:
        """The given questions in batches of at most `size`, in order."""
        for start in range(0, len(indices), size):
            part = indices[start : start + size]
            yield part, self.batch(part)


def make_labels(
    asker: Asker, dataset: Dataset, cache: Path, *, batch: int = 16, progress: Progress | None = None
) -> Labels:
    """Label a data set, or what of it is not yet in the cache.

    Questions whose picture cannot be read, or of whose answer nobody knows whether it is right, are left out and
    counted in one line at the end, and in `left_out` of the labels. Of several processes (see `sharing`) each makes
    every W-th shard, and all return all labels.

    Raises:
        DataError: the set is empty, no question could be used, or the cache cannot be written or is not shared by all.
    """
    if not len(dataset):
        raise DataError(f"{dataset.name} holds no questions: use more pictures.")
    folder = cache / _key(asker, dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"Labels cannot be kept in {cache} ({error.strerror}): choose another --cache.") from None
    bar = progress or Progress(disable=True)
    task = bar.add_task(f"labelling {dataset.name}", total=len(dataset))
    samples = iter(dataset)
    count = (len(dataset) + _SHARD - 1) // _SHARD
    paths = [folder / f"shard-{number:05d}.safetensors" for number in range(count)]
    own = list(sharing.mine(paths))
    first = ""
    labeller: _Labeller | None = None
    for number, path in enumerate(paths):
        chunk = list(islice(samples, _SHARD))
        if path in own and not _whole(path):
            labeller = labeller or _Labeller(asker, dataset)
            for start in range(0, len(chunk), batch):
                labeller.add(chunk[start : start + batch])
                bar.advance(task, min(batch, len(chunk) - start))
            first = first or labeller.left_out
            labeller.write(path)
        bar.update(task, completed=min((number + 1) * _SHARD, len(dataset)))
    made = sharing.total(sum(path.exists() for path in own))  # waits for all
    shards = [path for path in paths if path.exists()]
    if not made:
        first = first or "see what the other processes say"
        raise DataError(f"Not one question of {dataset.name} could be used; first: {first}")
    if made != len(shards):
        raise DataError(f"{cache} is not one folder for all processes: choose a --cache on a disk that they share.")
    labels = Labels(shards, len(dataset))
    if not labels.left_out.first:  # a shard of which nothing could be used is not there to say why
        labels.left_out = replace(labels.left_out, first=first)
    if labels.left_out.questions and sharing.is_main():
        bar.console.print(str(labels.left_out), markup=False, highlight=False, soft_wrap=True)
    return labels


def _key(asker: Asker, dataset: Dataset) -> str:
    config = asker.model.config.to_json_string()
    questions = json.dumps([(sample.id, sample.question, sample.answers) for sample in dataset])
    parts = (str(_FORM), config, asker.prompt("?"), str(asker.max_new_tokens), questions, dataset.name)
    return hashlib.sha256("\0".join(parts).encode() + _weights_sample(asker.model)).hexdigest()[:24]


def _weights_sample(model: Any) -> bytes:
    """A few values of every weight: a fine-tuned model shares config and norms with its base, but not these."""
    parts = [value.detach().flatten()[:: max(1, value.numel() // 16)].float().cpu() for value in model.parameters()]
    return torch.cat(parts).numpy().tobytes()


def _whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as opened:
            return "lengths" in opened.keys()  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError):
        return False


def _facts(shard: Any) -> list[LabelFacts]:
    rows = json.loads(shard.metadata()["facts"])
    return [
        LabelFacts(**{**row, "boxes": tuple(tuple(box) for box in row["boxes"]), "size": tuple(row["size"])})
        for row in rows
    ]


class _Labeller:
    """Gathers the labels of one shard after the other; each is put in place whole."""

    def __init__(self, asker: Asker, dataset: Dataset) -> None:
        self._asker, self._dataset, self._teacher = asker, dataset, Teacher(asker.model)
        self._facts: list[dict[str, Any]] = []
        self.left_out = ""  # why the first question of this shard was, if one was
        self._parts: dict[str, list[Tensor]] = {"states": [], "image": [], "targets": []}

    def add(self, chunk: Sequence[Sample]) -> None:
        """Label some samples at once, those aside that cannot be used."""
        readable, pictures = [], []
        for sample in chunk:
            try:
                pictures.append(sample.picture())
                readable.append(sample)
            except DataError as error:
                self.left_out = self.left_out or printable(str(error))
        if not readable:
            return
        inputs = self._asker.inputs(pictures, [sample.question for sample in readable])
        said = self._asker.answer(inputs)
        explained = self._teacher.explain(inputs)
        looked = explained.image_attention.tolist()
        for row, sample in enumerate(readable):
            right = self._dataset.right(sample, said[row].text)
            if right is None:
                reason = f"whether {said[row].text[:40]!r} is right for question {sample.id} is not known."
                self.left_out = self.left_out or printable(reason)
                continue
            own = explained.valid[row]
            self._parts["states"].append(explained.states[row][own].half().cpu())
            self._parts["image"].append(explained.image[row][own].cpu())
            self._parts["targets"].append(explained.relevance[row][own].half().cpu())
            self._facts.append(
                {
                    "id": sample.id,
                    "picture_id": sample.picture_id,
                    "group": sample.group,
                    "answer": said[row].text,
                    "right": right,
                    "numbers": {**said[row].numbers, "image_attention": looked[row]},
                    "boxes": sample.boxes,
                    "size": pictures[row].size,
                }
            )

    def write(self, path: Path) -> None:
        """Write what was gathered since the last time; no file when that is nothing."""
        reason, self.left_out = self.left_out, ""
        if not self._facts:
            return
        tensors = {name: torch.cat(parts) for name, parts in self._parts.items()}
        tensors["lengths"] = torch.tensor([len(one) for one in self._parts["image"]])
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            save_file(tensors, part, metadata={"facts": json.dumps(self._facts), "left_out": reason})
            part.replace(path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise DataError(f"Labels cannot be written to {path.parent} ({error}): choose another --cache.") from None
        self._facts.clear()
        for parts in self._parts.values():
            parts.clear()
