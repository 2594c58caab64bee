"""Questions of one's own, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.jsonl import JSONL
from fastrm_monitor.lab.datasets.scene_files import write_jsonl
from fastrm_monitor.lab.datasets.scenes import SIZE, scenes

ROW = {"image": "a.png", "question": "what color is it?", "answer": "red"}


@pytest.fixture
def write(tmp_path: Path):
    """Write rows beside the picture a.png; returns the file."""
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")

    def write(*rows: object) -> Path:
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    return write


def test_least_and_most(write) -> None:
    """Three fields are enough; the others say which question it is, of what kind, and where its objects lie."""
    boxes = [[0, 0.25, 0.5, 1], [0.1, 0.2, 0.3, 0.4]]
    full = {**ROW, "answer": ["red", "dark red"], "id": 7, "group": "color", "boxes": boxes, "note": "not read"}
    least, most = JSONL(write(ROW, full))
    assert (least.id, least.picture_id, least.group, least.boxes) == ("1", "a.png", "all", ())
    assert (least.question, least.answers) == (ROW["question"], ("red",))
    assert least.picture().size == (40, 20)
    assert (most.id, most.group, most.answers) == ("7", "color", ("red", "dark red"))
    assert most.boxes == tuple(tuple(box) for box in boxes)


def test_pictures_lie_elsewhere(write, tmp_path: Path) -> None:
    """Paths start from the folder named, else from the file's own; the extension may differ."""
    below = tmp_path / "pictures" / "b"
    below.mkdir(parents=True)
    Image.new("RGB", (3, 3)).save(below / "c.d.jpg")
    path = write({**ROW, "image": "b/c.d.png"})
    assert next(iter(JSONL(path, tmp_path / "pictures"))).picture().size == (3, 3)
    with pytest.raises(DataError, match=r"There is no picture 'b/c\.d\.png' in"):
        JSONL(path)


def test_scenes_read_back(tmp_path: Path) -> None:
    """Scenes written as lines are read as the same questions, answers, groups, boxes and pixels."""
    samples = list(JSONL(write_jsonl(tmp_path / "scenes", "easy", pictures=3, seed=5)))
    drawn = [(scene, question) for scene in scenes("easy", 5, 3) for question in scene.questions]
    for sample, (scene, question) in zip(samples, drawn, strict=True):
        assert (sample.question, sample.answers, sample.group) == (question.text, (question.answer,), question.family)
        assert sample.boxes == tuple(tuple(edge / SIZE for edge in scene.objects[n].box) for n in question.asked)
        assert np.array_equal(np.asarray(sample.picture()), scene.pixels)


def test_right(write) -> None:
    """Any of the answers will do, compared as VQAv2 compares answers."""
    data = JSONL(write({**ROW, "answer": ["the red car", "2 cars"]}))
    sample = next(iter(data))
    given = ("Red car.", "two cars", "red", "")
    assert [data.right(sample, answer) for answer in given] == [True, True, False, False]


def test_limit_and_name(write) -> None:
    """A limit takes the first lines; the name changes with boxes and groups, for labels hold them."""
    rows = [{**ROW, "id": f"q{number}"} for number in range(4)]
    whole = JSONL(write(*rows)).name
    assert [sample.id for sample in JSONL(write(*rows), limit=2)] == ["q0", "q1"]
    assert JSONL(write(*rows)).name == whole
    others = [
        JSONL(write({**rows[0], **change}, *rows[1:])).name for change in ({"boxes": [[0, 0, 1, 1]]}, {"group": "x"})
    ]
    assert len({whole, *others, JSONL(write(*rows), limit=2).name}) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": None}, "has no text 'image'"),
        ({"image": "../a.png"}, r"names a picture outside the folder of pictures \('../a.png'\)"),
        ({"image": "/a.png"}, "names a picture outside the folder of pictures"),
        ({"question": ""}, "has no text 'question'"),
        ({"question": "\ud800"}, "has half a character in 'question'"),
        ({"answer": None}, "has no text 'answer'"),
        ({"answer": []}, "has no text 'answer'"),
        ({"answer": ["red", 2]}, "has no text 'answer'"),
        ({"group": 3}, "has no text 'group'"),
        ({"id": True}, "has no text 'id'"),
        ({"id": 1}, "has the id 1 of another line"),
        ({"id": "x" * 1001}, "has 1001 characters in 'id'"),
        ({"boxes": [0, 0, 1, 1]}, "has 'boxes' that are no list of"),
        ({"boxes": [[0, 0, 1]]}, "has 'boxes' that are no list of"),
        ({"boxes": {}}, "has 'boxes' that are no list of"),
        ({"boxes": [[0, 0, "1", 1]]}, "has no number 'boxes'"),
        ({"boxes": [[0, 0, float("nan"), 1]]}, "has no number 'boxes'"),
        ({"boxes": [[0, 0, 10**400, 1]]}, "has no number 'boxes'"),
        ({"boxes": [[10, 10, 40, 40]]}, "has a box that is not within 0..1"),
        ({"boxes": [[0.5, 0, 0.5, 1]]}, "has a box that is not within 0..1"),
        ({"boxes": [[-0.1, 0, 0.5, 1]]}, "has a box that is not within 0..1"),
    ],
)
def test_wrong_line(write, change: dict[str, object], said: str) -> None:
    """A field of another kind is named with its line, and where the fields are described."""
    path = write(ROW, {**ROW, **change})
    with pytest.raises(
        DataError, match=rf"^Line 2 of .*mine\.jsonl {said}.*: docs/datasets\.md describes the fields\.$"
    ):
        JSONL(path)


def test_wrong_files(write, tmp_path: Path) -> None:
    """No file, no line, no object, no folder and no picture are one sentence each."""
    path = write(ROW)
    (tmp_path / "empty").mkdir()
    wrong = {
        "There is no file": (tmp_path / "gone.jsonl", tmp_path),
        "There is no folder of pictures at": (path, tmp_path / "gone"),
        r"There is no picture a\.png in": (path, tmp_path / "empty"),
    }
    for said, (questions, images) in wrong.items():
        with pytest.raises(DataError, match=rf"^{said} .*\.$"):
            JSONL(questions, images)
    for content, said in (("\n \n", "holds no questions"), ('{"image"', "is not a complete JSON object")):
        path.write_text(content)
        with pytest.raises(DataError, match=said):
            JSONL(path)
