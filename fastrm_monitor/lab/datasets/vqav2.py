"""VQAv2 from its official files, unmodified: questions JSON, annotations JSON, a folder of COCO pictures.

The score is the official one: for each annotator left out, min(matches among the other nine / 3, 1), averaged, after
the official normalisation of answers (Antol et al. 2015, Goyal et al. 2017). One thing is ours: the official script
compares answers as they were written where all ten annotators wrote the same; here they are normalised there too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.file_set import FileSet, Row
from fastrm_monitor.lab.datasets.files import name, picture_name, shown, text
from fastrm_monitor.lab.datasets.json_stream import FormError, entries

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_CONTRACTED = (
    "ain't aren't can't couldn't could've didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't shouldn't "
    "should've somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't weren't we've what'll what're what's what've when's "
    "where'd where's where've who'd who'll who's who've why'll why're why's won't wouldn't would've y'all "
    "you'd you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def normalise(answer: str) -> str:
    """An answer as the official evaluation compares it: lower case, no punctuation or articles, digits for numbers."""
    given = answer.replace("\n", " ").replace("\t", " ").strip().lower()
    digits_with_comma = re.search(r"\d,\d", given) is not None
    text = given
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in given or f" {mark}" in given
        text = text.replace(mark, "" if beside_blank or digits_with_comma else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_score(answer: str, references: tuple[str, ...]) -> float:
    """The official accuracy of one answer, 0..1, against the annotators' answers."""
    given = normalise(answer)
    known = [normalise(reference) for reference in references]
    if len(known) == 1:
        return float(given == known[0])
    matches = [sum(other == given for n, other in enumerate(known) if n != left_out) for left_out in range(len(known))]
    return sum(min(count / 3, 1.0) for count in matches) / len(matches)


class VQAv2(FileSet):
    """VQAv2's official files; the group of a question is its answer type: yes/no, number, other.

    Args:
        questions: e.g. `v2_OpenEnded_mscoco_val2014_questions.json`.
        annotations: e.g. `v2_mscoco_val2014_annotations.json`.
        images: folder of the pictures; found by id or COCO name, whatever the common extension.
        limit: first so many questions; None for all.

    Raises:
        DataError: a file is missing, truncated or of another form, or no picture is found.
    """

    def __init__(self, questions: Path, annotations: Path, images: Path, limit: int | None = None) -> None:
        super().__init__("vqav2", questions, images, _rows(questions, annotations, limit))

    def right(self, sample: Sample, answer: str) -> bool:
        """At least half of the official score: two of the ten annotators agree."""
        return vqa_score(answer, sample.answers) >= 0.5


def _rows(questions: Path, annotations: Path, limit: int | None) -> Iterator[Row]:
    asked = list(islice(_asked(questions), limit))
    known = _annotated(annotations, {question_id for question_id, *_ in asked})
    missing = [question_id for question_id, *_ in asked if question_id not in known]
    if missing:
        raise DataError(
            f"{annotations} has no annotation for {len(missing)} of {len(asked)} questions of {questions} "
            f"(first: {shown(missing[0])}): take the two files of the same split."
        )
    for question_id, picture, question in asked:
        yield Row(question_id, picture, question, *known[question_id])


def _asked(questions: Path) -> Iterator[tuple[str, str, str]]:
    """(question id, picture id, question) of every question."""
    where = "it"
    try:
        for number, raw in enumerate(entries(questions, "questions"), start=1):
            where = f"row {number}"
            yield name(raw, "question_id"), sys.intern(picture_name(raw, "image_id")), text(raw, "question")
    except FormError as error:
        raise _wrong(questions, "questions", "question_id, image_id, question", f"{where} {error}") from None


def _annotated(annotations: Path, wanted: set[str]) -> dict[str, tuple[tuple[str, ...], str]]:
    """The answers and the answer type of the wanted questions; reading stops when all were met."""
    known: dict[str, tuple[tuple[str, ...], str]] = {}
    where = "it"
    try:
        for number, raw in enumerate(entries(annotations, "annotations"), start=1):
            where = f"row {number}"
            question_id, answers = name(raw, "question_id"), raw.get("answers")
            if not isinstance(answers, list) or not answers:
                raise FormError("has no list 'answers'")
            if question_id in wanted:
                said = tuple(sys.intern(_answer(one)) for one in answers)
                known[question_id] = said, sys.intern(text({"answer_type": "all", **raw}, "answer_type"))
            if len(known) == len(wanted):
                break
    except FormError as error:
        raise _wrong(annotations, "annotations", "question_id, answers", f"{where} {error}") from None
    return known


def _answer(annotator: Any) -> str:
    """What an annotator said; it may be blank, and is a number in some copies of the files."""
    if not isinstance(annotator, dict) or not isinstance(annotator.get("answer"), str | int | float):
        raise FormError("has an annotator without 'answer'")
    return str(annotator["answer"])


def _wrong(path: Path, key: str, needed: str, found: str) -> DataError:
    return DataError(
        f"{path} is not an official VQAv2 file: it needs a list '{key}' whose rows have {needed} ({found})."
    )
