"""Any questions about pictures, as JSON lines: `docs/datasets.md` describes the fields."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.exported import read_rows
from fastrm_monitor.lab.datasets.file_set import FileSet, Row
from fastrm_monitor.lab.datasets.files import name, number, picture_name, shown, text
from fastrm_monitor.lab.datasets.json_stream import FormError
from fastrm_monitor.lab.datasets.vqav2 import normalise
from fastrm_monitor.types import Region


class JSONL(FileSet):
    """Questions of one's own, one JSON object a line; or cases with verdicts that `fastrm-monitor export` wrote.

    Such a case counts as a question when its verdict says whether the answer is right and it has one picture; others
    are passed over. Of an answer that was wrong nobody knows the right one, so there all that is known of another
    answer is that it is another.

    Args:
        questions: the file, or an export's folder or Parquet file.
        images: folder that the paths of the pictures start from; None for the file's own folder.
        limit: first so many questions; None for all.

    Raises:
        DataError: the file is missing or a line is not of the form, two have the same id, or no picture is found.
        MissingExtraError: a Parquet file without pyarrow.
    """

    def __init__(self, questions: Path, images: Path | None = None, limit: int | None = None) -> None:
        self._wrong: dict[str, frozenset[str]] = {}
        folder = questions if questions.is_dir() else questions.parent
        super().__init__("jsonl", questions, images or folder, islice(self._read(questions), limit))
        if self._wrong:  # a changed verdict makes other labels
            mark = zlib.crc32(repr([(key, sorted(answers)) for key, answers in self._wrong.items()]).encode())
            self.name = f"{self.name}-{mark:08x}"

    def right(self, sample: Sample, answer: str) -> bool | None:
        """The same as one of the reference answers after VQAv2's normalisation; None when only a wrong one is known."""
        if sample.id in self._wrong:
            return False if normalise(answer) in self._wrong[sample.id] else None
        return normalise(answer) in {normalise(reference) for reference in sample.answers}

    def _read(self, questions: Path) -> Iterator[Row]:
        known: set[str] = set()
        for line, raw in read_rows(questions):
            if _is_open(raw):
                continue
            try:
                row = _row({"id": line, "group": "all", **raw})
                if row.id in known:
                    raise FormError(f"has the id {shown(row.id)} of another line")
            except FormError as error:
                raise DataError(f"Line {line} of {questions} {error}: docs/datasets.md describes the fields.") from None
            known.add(row.id)
            if raw.get("right") is False:
                self._wrong[row.id] = frozenset(map(normalise, row.answers))
                row = row._replace(answers=())
            yield row


def _is_open(raw: dict[str, Any]) -> bool:
    """Whether an exported case is no question: nobody knows whether the answer is right, or there is no picture."""
    return "right" in raw and (raw["right"] is None or raw.get("image") is None)


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
