"""POPE from its official files, unmodified: is there such an object in the picture, in JSON lines (Li et al. 2023).

A split says how the absent objects were chosen: at random, among the frequent ones (popular), or among those that often
go with what is there (adversarial).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.file_set import FileSet, Row
from fastrm_monitor.lab.datasets.files import name, picture_name, text
from fastrm_monitor.lab.datasets.json_stream import FormError, json_lines

SPLITS = ("random", "popular", "adversarial")


class POPE(FileSet):
    """One of POPE's files; the group of its questions is its split, read from the file's name, or else "all".

    Args:
        questions: e.g. `coco_pope_adversarial.json`.
        images: folder of the pictures.
        limit: first so many questions; None for all.

    Raises:
        DataError: the file is missing, truncated or of another form, a label is not yes or no, or no picture is found.
    """

    def __init__(self, questions: Path, images: Path, limit: int | None = None) -> None:
        super().__init__("pope", questions, images, islice(_rows(questions), limit))

    def right(self, sample: Sample, answer: str) -> bool:
        """Whether the answer says what the label says."""
        return said(answer) == sample.answers[0]


def said(answer: str) -> str:
    """What an answer says in the official evaluation: "no" when its first sentence has the word No, no or not.

    Everything else is a "yes", an empty answer too.
    """
    words = answer.split(".")[0].replace(",", "").split()
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_summary(answered: Iterable[tuple[str, str]]) -> dict[str, float]:
    """POPE's measures over (answer, label "yes" or "no"), with yes as the positive class.

    Returns:
        `n`, `accuracy`, `precision`, `recall`, `f1` and `yes_rate`, the share of answers that say yes; a ratio without
        cases is 0, as in the official evaluation.
    """
    pairs = [(said(answer) == "yes", label == "yes") for answer, label in answered]
    hits = sum(yes and true for yes, true in pairs)
    yeses, trues = sum(yes for yes, _ in pairs), sum(true for _, true in pairs)
    precision, recall = _ratio(hits, yeses), _ratio(hits, trues)
    return {
        "n": len(pairs),
        "accuracy": _ratio(sum(yes == true for yes, true in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_rate": _ratio(yeses, len(pairs)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _rows(questions: Path) -> Iterator[Row]:
    split = re.search("|".join(SPLITS), questions.stem)
    group = split[0] if split else "all"
    for line, raw in json_lines(questions):
        try:
            label = sys.intern(text(raw, "label").strip().lower())
            if label not in ("yes", "no"):
                raise FormError("has a label other than yes and no")
            picture = sys.intern(picture_name(raw, "image"))
            yield Row(name(raw, "question_id"), picture, text(raw, "text"), (label,), group)
        except FormError as error:
            raise DataError(f"{questions} is not an official POPE file: line {line} {error}.") from None
