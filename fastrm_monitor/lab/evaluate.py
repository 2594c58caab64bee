"""Evaluation: what a proxy and its confidence are worth on some data sets, section by section.

Each finished section of a data set is kept in OUTPUT/parts, so that a run that was broken off goes on where it stopped.
The numbers are made elsewhere: `judgement`, `perturb`, `sampling`, `layers`, `cost`; this is the order of the work.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

import fastrm_monitor
from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.base import Dataset, Traced
from fastrm_monitor.lab.datasets.pope import POPE
from fastrm_monitor.lab.distill import arrange, predict, teacher_maps
from fastrm_monitor.lab.existence import existence
from fastrm_monitor.lab.judgement import judge_set
from fastrm_monitor.lab.labels import Labels, make_labels
from fastrm_monitor.lab.report import notes
from fastrm_monitor.lab.report.contents import SCHEMA_VERSION, assemble
from fastrm_monitor.lab.report.examples import gather
from fastrm_monitor.lab.report.parts import Parts
from fastrm_monitor.lab.training_pictures import pictures_in_training
from fastrm_monitor.scoring.checkpoint import ProxyFolder
from fastrm_monitor.scoring.patches import PatchLayout

SECTIONS = ("perturbation", "sampling", "layers", "cost")
"""What may be left out: each asks the model again."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation.

    Attributes:
        asker: of the model.
        model: its name.
        folders: the product's proxy, then those whose fidelity stands beside it, by name.
        layout: of the model's patches.
        output: folder of the report; its parts go into `parts` there.
        cache: folder of the labels.
        progress: shows what is done.
        sections: which of `SECTIONS` are measured.
        batch: questions that the teacher explains at once.
        again: questions of a data set that perturbation and sampling ask again.
    """

    asker: Asker
    model: str
    folders: Mapping[str, ProxyFolder]
    layout: PatchLayout
    output: Path
    cache: Path
    progress: Progress
    sections: Sequence[str] = SECTIONS
    batch: int = 16
    again: int = 300

    def run(self, datasets: Sequence[tuple[str, Dataset]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The report, and the examples for its page.

        Args:
            datasets: name in the report and data; the first is the one that the others are held against.

        Raises:
            DataError: a data set cannot be read, or labels cannot be written.
            FastRMError: a part cannot be written.
        """
        parts = Parts(self.output / "parts", self._facts())
        judged: list[dict[str, Any]] = []
        once: dict[str, Any] = {}
        pope: dict[str, Any] = {}
        masked: dict[str, Any] = {}
        left_out: dict[str, Any] = {}
        known: dict[str, Any] = {}
        drawn_from: dict[str, Any] = {}
        for name, dataset in _distinct(datasets):
            drawn_from[name] = dataset.name
            known[name] = self._in_training(name, dataset)
            labels = make_labels(self.asker, dataset, self.cache, batch=self.batch, progress=self.progress)
            left_out[name] = asdict(labels.left_out)
            own = _Set(parts, name, dataset, labels)
            judged.append(self._judge(own, judged[0]["thresholds"] if judged else None))
            if isinstance(dataset, POPE):
                pope[name] = existence(labels.facts)
            if "perturbation" in self.sections:
                masked[name] = self._perturbed(own)
            if len(judged) == 1:
                once = self._once(own, judged[0])
        examples = once.pop("examples")
        more = {"drawn_from": drawn_from, "pope": pope, "perturbation": masked}
        more |= {"left_out": left_out, "in_training": known}
        return assemble(self.model, self.folders, judged, **more, **once), examples

    def _in_training(self, name: str, dataset: Dataset) -> dict[str, Any]:
        """By proxy how many of the pictures it was made of, said before the hours that the rest may take."""
        found = {proxy: pictures_in_training(folder, dataset) for proxy, folder in self.folders.items()}
        of = len({sample.picture_id for sample in dataset})
        known = {proxy: {"pictures": pictures, "of": of} for proxy, pictures in found.items() if pictures}
        for proxy, own in known.items():
            said = notes.in_training(name, proxy, own)
            self.progress.console.print(said, style="red", markup=False, highlight=False, soft_wrap=True)
        return known

    @property
    def _product(self) -> ProxyFolder:
        return next(iter(self.folders.values()))

    def _facts(self) -> dict[str, Any]:
        """What every part depends on."""
        return {
            "schema_version": SCHEMA_VERSION,
            "library_version": fastrm_monitor.__version__,
            "model": self.model,
            "proxies": {name: folder.version for name, folder in self.folders.items()},
            "confidence": _digest(asdict(self._product.confidence) if self._product.confidence else None),
        }

    def _judge(self, own: _Set, thresholds: Mapping[str, float] | None) -> dict[str, Any]:
        sampled = self._sampled(own) if "sampling" in self.sections else None
        others = dict(list(self.folders.items())[1:])
        origins = own.origins()
        task = self.progress.add_task(f"judging {own.name}", total=1)
        judged: dict[str, Any] = own.part(
            "judgement",
            lambda: judge_set(
                own.labels,
                self._product,
                self.layout,
                own.name,
                others=others,
                sampled=sampled,
                thresholds=thresholds,
                origins=origins,
            ),
            sampled=_digest(sampled),
            thresholds=thresholds,
            origins=_digest(origins),
        )
        self.progress.update(task, completed=1)
        return judged

    def _sampled(self, own: _Set) -> Any:
        from fastrm_monitor.lab.sampling import sampling_consistency

        return own.part(
            "sampling",
            lambda: sampling_consistency(self.asker, own.dataset, limit=self.again, progress=self.progress),
            again=self.again,
        )

    def _once(self, own: _Set, judged: Mapping[str, Any]) -> dict[str, Any]:
        """What is made of the first data set alone: its examples, layers and cost."""
        found: dict[str, Any] = {
            "examples": own.part(
                "examples",
                lambda: gather(own.dataset, own.labels, judged["examples"], self._product, self.layout),
                chosen=judged["examples"],
            )
        }
        if "layers" in self.sections:
            found["layers"] = own.part("layers", lambda: _or_reason(self._layers, own))
        if "cost" in self.sections:
            found["cost"] = own.part("cost", lambda: self._cost(own))
        return found

    def _perturbed(self, own: _Set) -> Any:
        return own.part("perturbation", lambda: _or_reason(self._masked, own), again=self.again)

    def _masked(self, own: _Set) -> dict[str, Any]:
        from fastrm_monitor.lab.perturb import perturbation

        rows = range(len(own.labels))
        raw = {"proxy": predict(self._product.proxy, own.labels, rows), "teacher": teacher_maps(own.labels, rows)}
        maps = {name: arrange(one, own.labels, rows, self.layout) for name, one in raw.items()}
        return perturbation(self.asker, own.dataset, own.labels, maps, limit=self.again, progress=self.progress)

    def _layers(self, own: _Set) -> dict[str, Any]:
        from fastrm_monitor.lab.layers import layers

        return layers(self.asker, own.dataset, progress=self.progress)

    def _cost(self, own: _Set) -> dict[str, Any]:
        from fastrm_monitor.lab.cost import cost

        known = own.labels.facts[0].id
        sample = next(sample for sample in own.dataset if sample.id == known)  # its picture can be read
        inputs = self.asker.inputs([sample.picture()], [sample.question])
        # Copies, since they are moved to the model's device and the labels are not there.
        proxies = {name: copy.deepcopy(folder.proxy) for name, folder in self.folders.items()}
        return cost(self.asker.model, inputs, proxies, progress=self.progress)


@dataclass(frozen=True, eq=False)
class _Set:
    """A data set under way."""

    parts: Parts
    name: str
    dataset: Dataset
    labels: Labels

    def part(self, section: str, make: Callable[[], Any], **options: Any) -> Any:
        """A section of this data set; made anew when the answers are not those that it was made of."""
        known = [(one.id, one.picture_id, one.right, one.numbers) for one in self.labels.facts]
        return self.parts.get(self.name, section, make, dataset=self.dataset.name, answers=_digest(known), **options)

    def origins(self) -> list[str] | None:
        """What the picture of each question was made of; None where the data set cannot say."""
        if not isinstance(self.dataset, Traced):
            return None
        pictures = [one.picture_id for one in self.labels.facts]
        known = {name: self.dataset.origin(name) for name in dict.fromkeys(pictures)}
        return [known[name] for name in pictures]


def _distinct(datasets: Sequence[tuple[str, Dataset]]) -> list[tuple[str, Dataset]]:
    """The data sets, those of one name numbered: files of two folders may be called the same."""
    found: dict[str, Dataset] = {}
    for name, dataset in datasets:
        names = (name, *(f"{name} ({number})" for number in range(2, len(datasets) + 1)))
        found[next(one for one in names if one not in found)] = dataset
    return list(found.items())


def _or_reason(measure: Callable[[_Set], dict[str, Any]], own: _Set) -> dict[str, Any]:
    """The section, or `too_few` with the reason: what can be said of small data is not lost with what cannot."""
    try:
        return measure(own)
    except DataError as error:
        return {"too_few": str(error)}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
