"""GQA from its official files, unmodified: questions JSON or the folder of its shards, scene graphs, pictures.

An answer is right when it is the reference word for word (Hudson and Manning 2019), case, outer blanks and a final full
stop aside. Scene graphs are known for train and val: they tell where the objects lie that a question names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.file_set import FileSet, Row
from fastrm_monitor.lab.datasets.files import name, number, picture_name, shown, text
from fastrm_monitor.lab.datasets.json_stream import FormError, json_files, members
from fastrm_monitor.types import Region

Asked = tuple[Row, tuple[str, ...]]
"""A question and the ids of the objects that it names."""


class GQA(FileSet):
    """GQA's official files; the group of a question is its structural type: query, verify, choose, logical, compare.

    Args:
        questions: e.g. `testdev_balanced_questions.json`, or the folder `train_all_questions` with its shards.
        images: folder of the pictures.
        scene_graphs: e.g. `val_sceneGraphs.json`, or a folder with those of several splits; without it no sample has
            boxes. A sample has none either when one of the objects it names has no box of its own.
        limit: first so many questions; None for all.

    Raises:
        DataError: a file is missing, truncated or of another form, a picture has no scene graph, or none is found.
    """

    def __init__(
        self, questions: Path, images: Path, scene_graphs: Path | None = None, limit: int | None = None
    ) -> None:
        asked = islice(_asked(questions), limit)
        rows = _located(list(asked), scene_graphs, questions) if scene_graphs else (row for row, _ in asked)
        super().__init__("gqa", questions, images, rows)

    def right(self, sample: Sample, answer: str) -> bool:
        """Word for word, whatever the case, blanks around it or a full stop behind it."""
        return _plain(answer) == _plain(sample.answers[0])


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".").rstrip().lower()


def _asked(questions: Path) -> Iterator[Asked]:
    for path in json_files(questions):
        where = "it"
        try:
            for question_id, raw in members(path):
                where = f"question {shown(question_id)}"
                yield _question(question_id, raw)
        except FormError as error:
            raise DataError(f"{path} is not an official GQA questions file: {where} {error}.") from None


def _question(question_id: str, raw: Any) -> Asked:
    if isinstance(raw, dict) and "question" in raw and "answer" not in raw:
        raise FormError("has no answer, as in the splits test and challenge: take train, val or testdev")
    row = Row(
        id=name({"id": question_id}, "id"),
        picture=sys.intern(picture_name(raw, "imageId")),
        question=text(raw, "question"),
        answers=(sys.intern(text(raw, "answer")),),
        group=sys.intern(text(raw.get("types"), "structural")),
    )
    return row, tuple(dict.fromkeys([*_named(raw, "question"), *_named(raw, "answer")]))


def _named(raw: dict[str, Any], where: str) -> list[str]:
    """The ids of the objects that the words of the question, or of the answer, stand for."""
    annotations = raw.get("annotations")
    spans = annotations.get(where) if isinstance(annotations, dict) else None
    return [one for one in spans.values() if isinstance(one, str)] if isinstance(spans, dict) else []


def _located(asked: list[Asked], scene_graphs: Path, questions: Path) -> Iterator[Row]:
    wanted: dict[str, set[str]] = {}
    for row, named in asked:
        wanted.setdefault(row.picture, set()).update(named)
    found = _boxes(scene_graphs, wanted)
    missing = [picture for picture in wanted if picture not in found]
    if missing:
        raise DataError(
            f"{scene_graphs} has no scene graph for {len(missing)} of {len(wanted)} pictures of {questions} "
            f"(first: {shown(missing[0])}): take that of the same split, or none for testdev."
        )
    if any(wanted.values()) and not any(found.values()):
        raise DataError(
            f"{scene_graphs} has not one of the objects that the questions of {questions} name: take the two files of "
            "the same split."
        )
    for row, named in asked:
        boxes = [found[row.picture].get(one) for one in named]
        yield row._replace(boxes=tuple(box for box in boxes if box) if all(boxes) else ())


def _boxes(scene_graphs: Path, wanted: dict[str, set[str]]) -> dict[str, dict[str, Region]]:
    """The boxes of the wanted objects, by picture and object; reading stops when every picture was met."""
    found: dict[str, dict[str, Region]] = {}
    for path in json_files(scene_graphs):
        where = "it"
        try:
            for picture, graph in members(path):
                where = f"picture {shown(picture)}"
                if picture in wanted:
                    found[picture] = dict(_regions(graph, wanted[picture]))
                if len(found) == len(wanted):
                    return found
        except FormError as error:
            raise DataError(f"{path} is not an official GQA scene graphs file: {where} {error}.") from None
    return found


def _regions(graph: Any, wanted: Iterable[str]) -> Iterator[tuple[str, Region]]:
    width, height = number(graph, "width"), number(graph, "height")
    objects = graph.get("objects")
    if width <= 0 or height <= 0 or not isinstance(objects, dict):
        raise FormError("has no size or no objects")
    for one in wanted:
        if one not in objects:
            continue
        x, y, w, h = (number(objects[one], key) for key in ("x", "y", "w", "h"))
        left, top = max(x / width, 0.0), max(y / height, 0.0)
        right, bottom = min((x + w) / width, 1.0), min((y + h) / height, 1.0)
        if left < right and top < bottom:
            yield one, (left, top, right, bottom)
