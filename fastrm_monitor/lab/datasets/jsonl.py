"""Any questions about pictures, as JSON lines: `docs/datasets.md` describes the fields."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.file_set import FileSet, Row
from fastrm_monitor.lab.datasets.files import name, number, picture_name, shown, text
from fastrm_monitor.lab.datasets.json_stream import FormError, json_lines
from fastrm_monitor.lab.datasets.vqav2 import normalise
from fastrm_monitor.types import Region


class JSONL(FileSet):
    """Questions of one's own, one JSON object a line.

    Args:
        questions: the file.
        images: folder that the paths of the pictures start from; None for the file's own folder.
        limit: first so many questions; None for all.

    Raises:
        DataError: the file is missing or a line is not of the form, two have the same id, or no picture is found.
    """

    def __init__(self, questions: Path, images: Path | None = None, limit: int | None = None) -> None:
        super().__init__("jsonl", questions, images or questions.parent, islice(_rows(questions), limit))

    def right(self, sample: Sample, answer: str) -> bool:
        """The same as one of the reference answers after VQAv2's normalisation."""
        return normalise(answer) in {normalise(reference) for reference in sample.answers}


def _rows(questions: Path) -> Iterator[Row]:
    known: set[str] = set()
    for line, raw in json_lines(questions):
        try:
            row = _row({"id": line, "group": "all", **raw})
            if row.id in known:
                raise FormError(f"has the id {shown(row.id)} of another line")
        except FormError as error:
            raise DataError(f"Line {line} of {questions} {error}: docs/datasets.md describes the fields.") from None
        known.add(row.id)
        yield row


def _row(raw: dict[str, Any]) -> Row:
    answers = raw.get("answer")
    if not isinstance(answers, list):
        answers = [answers]
    if not answers:
        raise FormError("has no text 'answer'")
    return Row(
        id=name(raw, "id"),
        picture=sys.intern(picture_name(raw, "image")),
        question=text(raw, "question"),
        answers=tuple(sys.intern(text({"answer": one}, "answer")) for one in answers),
        group=sys.intern(text(raw, "group")),
        boxes=_boxes(raw.get("boxes", [])),
    )


def _boxes(given: Any) -> tuple[Region, ...]:
    if not isinstance(given, list) or not all(isinstance(box, list) and len(box) == 4 for box in given):
        raise FormError("has 'boxes' that are no list of [left, top, right, bottom]")
    boxes = []
    for box in given:
        left, top, right, bottom = (number({"boxes": edge}, "boxes") for edge in box)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise FormError("has a box that is not within 0..1, fractions of the picture's width and height")
        boxes.append((left, top, right, bottom))
    return tuple(boxes)
