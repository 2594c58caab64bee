"""The data sets that a command line names: which options each form uses, and which files belong to which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrm_monitor.errors import DataError, FastRMError
from fastrm_monitor.lab.datasets.base import Dataset
from fastrm_monitor.lab.datasets.scene_set import TEST_SEED, TRAIN_SEED, VALIDATION_SEED

FILES_OF: dict[str, tuple[str, ...]] = {
    "scenes": (),
    "vqav2": ("questions", "annotations", "images"),
    "gqa": ("questions", "images", "scene-graphs"),
    "pope": ("questions", "images"),
    "jsonl": ("questions", "images"),
}
"""The options with files that each form uses."""
TAUGHT_SEEDS = {
    1: "the embedded model was trained on",
    TRAIN_SEED: "proxies are trained on",
    VALIDATION_SEED: "confidences are fitted on",
}
"""Seeds whose scenes are no test, and what they taught."""


@dataclass(frozen=True)
class Chosen:
    """One data set as the command line names it: the form and its files."""

    form: str
    questions: Path | None = None
    annotations: Path | None = None
    images: Path | None = None
    scene_graphs: Path | None = None

    @property
    def title(self) -> str:
        """What a report calls it: the form and the file's name."""
        return self.form if self.questions is None else f"{self.form} {self.questions.stem}"

    def open(self, limit: int | None = None) -> Dataset:
        """The data set of a form with files.

        Args:
            limit: first so many questions; None for all.

        Raises:
            DataError: a file that the form needs was not given, or one cannot be read.
        """
        if self.form == "jsonl":
            from fastrm_monitor.lab.datasets.jsonl import JSONL

            if self.questions is None:
                raise DataError("--dataset jsonl needs --questions FILE.")
            return JSONL(self.questions, self.images, limit)
        if self.form == "vqav2":
            from fastrm_monitor.lab.datasets.vqav2 import VQAv2

            if self.questions is None or self.annotations is None or self.images is None:
                raise DataError("--dataset vqav2 needs --questions FILE, --annotations FILE and --images FOLDER.")
            return VQAv2(self.questions, self.annotations, self.images, limit)
        if self.questions is None or self.images is None:
            raise DataError(f"--dataset {self.form} needs --questions FILE and --images FOLDER.")
        if self.form == "pope":
            from fastrm_monitor.lab.datasets.pope import POPE

            return POPE(self.questions, self.images, limit)
        from fastrm_monitor.lab.datasets.gqa import GQA

        return GQA(self.questions, self.images, self.scene_graphs, limit)


def choose(forms: Sequence[str], given: Mapping[str, Sequence[Path]]) -> list[Chosen]:
    """Match forms and files.

    One form takes all questions files, a data set each. Of several forms each takes the next file of every option that
    it uses; an option given once, `questions` aside, serves all.

    Args:
        forms: what `--dataset` was given.
        given: the values of each option with files, in order.

    Raises:
        FastRMError: a form is not known.
        DataError: an option is not used by any form, or was not given once for each.
    """
    for form in forms:
        if form not in FILES_OF:
            raise FastRMError(f"--dataset '{form}' is not known: choose {' or '.join(FILES_OF)}.")
    used = {option for form in forms for option in FILES_OF[form]}
    if idle := [f"--{option}" for option, values in given.items() if values and option not in used]:
        raise DataError(f"--dataset {' and '.join(dict.fromkeys(forms))} does not use {' and '.join(idle)}.")
    if len(forms) == 1:
        forms = [*forms] * max(1, len(given.get("questions", ())))
    files: list[dict[str, Path]] = [{} for _ in forms]
    for option, values in given.items():
        users = [place for place, form in enumerate(forms) if option in FILES_OF[form]]
        if len(values) == 1 and option != "questions":
            values = [*values] * len(users)
        if values and len(values) != len(users):
            raise DataError(
                f"--{option} was given {len(values)} times for {len(users)} data sets: give one for each, in the order "
                "of --dataset."
            )
        for place, value in zip(users, values, strict=False):
            files[place][option.replace("-", "_")] = value
    return [Chosen(form, **own) for form, own in zip(forms, files, strict=True)]


def check_limit(chosen: Sequence[Chosen], limit: int | None) -> None:
    """Refuse a limit that no data set uses: of scenes as many are drawn as are asked for.

    Raises:
        DataError: there are scenes only.
    """
    if limit is not None and all(one.form == "scenes" for one in chosen):
        raise DataError("--dataset scenes does not use --limit: say with --pictures how many scenes are drawn.")


def seed_of_scenes(chosen: Sequence[Chosen], seed: int | None) -> int:
    """The seed of the test scenes: the one given, or the usual one.

    Raises:
        DataError: no data set uses it, or what is to be tested has learnt from its scenes.
    """
    if seed is None:
        return TEST_SEED
    if all(one.form != "scenes" for one in chosen):
        raise DataError(f"--dataset {' and '.join(dict.fromkeys(one.form for one in chosen))} does not use --seed.")
    if seed in TAUGHT_SEEDS:
        raise DataError(
            f"--seed {seed} draws the scenes that {TAUGHT_SEEDS[seed]}, which say nothing about new ones: choose "
            "another."
        )
    return seed
