"""VQAv2 from its official files, unmodified: questions JSON, annotations JSON, a folder of COCO pictures.

The score is the official one: for each annotator left out, min(matches among the other nine / 3, 1), averaged, after
the official normalisation of answers (Antol et al. 2015, Goyal et al. 2017).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.records.images import load_picture

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
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


class VQAv2:
    """VQAv2's official files.

    Args:
        questions: e.g. `v2_OpenEnded_mscoco_val2014_questions.json`.
        annotations: e.g. `v2_mscoco_val2014_annotations.json`.
        images: folder of the pictures; found by id or COCO name, whatever the common extension.
        limit: first so many questions; None for all.

    Raises:
        DataError: a file is missing, truncated or of another form, or no picture is found.
    """

    def __init__(self, questions: Path, annotations: Path, images: Path, limit: int | None = None) -> None:
        asked = _read(questions, "questions", ("question_id", "image_id", "question"))[:limit]
        known = {row["question_id"]: row for row in _read(annotations, "annotations", ("question_id", "answers"))}
        if not images.is_dir():
            raise DataError(f"There is no folder of pictures at {images}.")
        if not asked:
            raise DataError(f"{questions} holds no questions.")
        missing = [row["question_id"] for row in asked if row["question_id"] not in known]
        if missing:
            raise DataError(
                f"{annotations} has no annotation for {len(missing)} of {len(asked)} questions of {questions} "
                f"(first: {missing[0]}): take the two files of the same split."
            )
        # The folder's path and time too: labels of other pictures must not be taken for these.
        folder = zlib.crc32(f"{images.resolve()} {images.stat().st_mtime_ns}".encode())
        self.name = f"vqav2-{questions.stem[:80]}-{len(asked)}-{folder:08x}"
        self._images = images
        self._rows = [(row, known[row["question_id"]]) for row in asked]
        _check_folder(images, [row["image_id"] for row in asked[:_LOOKED_FOR]])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        for row, annotation in self._rows:
            yield Sample(
                id=str(row["question_id"]),
                picture_id=str(row["image_id"]),
                picture=partial(_load, self._images, row["image_id"]),
                question=row["question"],
                answers=tuple(str(one["answer"]) for one in annotation["answers"]),
                group=str(annotation.get("answer_type", "all")),
            )

    def right(self, sample: Sample, answer: str) -> bool:
        """At least half of the official score: two of the ten annotators agree."""
        return vqa_score(answer, sample.answers) >= 0.5


_LOOKED_FOR = 500
"""Questions whose pictures are looked for at once: a wrong folder is noticed before an hour of work."""


def _check_folder(images: Path, image_ids: list[int | str]) -> None:
    refused: DataError | None = None
    for image_id in dict.fromkeys(image_ids):
        try:
            find_picture(images, image_id)
        except DataError as error:
            refused = refused or error
        else:
            return
    if refused is not None:
        raise refused


def _load(images: Path, image_id: int | str) -> Any:
    return load_picture(find_picture(images, image_id))


def find_picture(images: Path, image_id: int | str) -> Path:
    """The file of a picture: COCO's name of any split, or the plain id, with any common extension.

    Raises:
        DataError: there is none.
    """
    stems = [str(image_id)]
    if len(stems[0]) > 200:
        raise DataError(
            f"A picture's id has {len(stems[0])} characters ({stems[0][:20]}...): the questions file is damaged."
        )
    if str(image_id).isdigit():
        number = f"{int(image_id):012d}"
        stems += [f"COCO_{split}_{number}" for split in ("train2014", "val2014", "test2015")] + [number]
    for stem in stems:
        for extension in _EXTENSIONS:
            path = images / f"{stem}{extension}"
            if path.is_file():
                return path
    raise DataError(f"There is no picture of id {image_id} in {images} (tried names such as {stems[-1]}.jpg).")


def _read(path: Path, key: str, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))[key]
        if not isinstance(rows, list) or not all(_usable(row, needed) for row in rows):
            raise KeyError(key)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, OSError) as error:
        raise DataError(f"{path} is not a complete JSON file ({error}): download it again.") from None
    except (KeyError, TypeError):
        raise DataError(
            f"{path} is not an official VQAv2 file: it needs a list '{key}' whose rows have {', '.join(needed)}."
        ) from None
    return rows


def _usable(row: Any, needed: tuple[str, ...]) -> bool:
    """Whether a row has the needed fields and they are of the kind that the official files have."""
    if not isinstance(row, dict) or not set(needed) <= set(row):
        return False
    answers = row.get("answers", [{"answer": ""}])
    question = row.get("question", "")
    return (
        all(isinstance(row[name], int | str) for name in needed if name != "answers")
        and isinstance(question, str)
        and not any("\ud800" <= character <= "\udfff" for character in question)  # half a character
        and isinstance(answers, list)
        and len(answers) > 0
        and all(isinstance(one, dict) and "answer" in one for one in answers)
    )
