"""GQA's official files: scenes written in their form are read back, boxes included; wrong files are one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.gqa import GQA
from fastrm_monitor.lab.datasets.scene_files import write_gqa
from fastrm_monitor.lab.datasets.scenes import SIZE, scenes

OFFICIAL = {
    "question": "Is the tray on top of the table black or light brown?",
    "answer": "light brown",
    "fullAnswer": "The tray is light brown.",
    "imageId": "2354786",
    "isBalanced": True,
    "groups": {"global": "color", "local": "10-tray_color"},
    "types": {"detailed": "chooseAttr", "semantic": "attr", "structural": "choose"},
    "annotations": {
        "answer": {},
        "question": {"2": "1060704", "7": "1060703"},
        "fullAnswer": {"1": "1060704"},
    },
    "semantic": [{"operation": "select", "dependencies": [], "argument": "table (1060703)"}],
    "semanticStr": "select: table (1060703)",
}
GRAPH = {
    "width": 500,
    "height": 400,
    "objects": {
        "1060703": {"name": "table", "x": 0, "y": 200, "w": 500, "h": 240, "attributes": [], "relations": []},
        "1060704": {"name": "tray", "x": 50, "y": 100, "w": 100, "h": 40, "attributes": [], "relations": []},
        "1060705": {"name": "cup", "x": 10, "y": 20, "w": 30, "h": 40, "attributes": [], "relations": []},
    },
}
TRAY, TABLE = (0.1, 0.25, 0.3, 0.35), (0.0, 0.5, 1.0, 1.0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Questions, scene graphs and pictures of four scenes."""
    return write_gqa(tmp_path, "natural", pictures=4, seed=3, questions=6)


def one_question(folder: Path, changes: dict[str, Any] | None = None, graph: Any = GRAPH) -> tuple[Path, Path, Path]:
    """The files of one question in the official form."""
    Image.new("RGB", (50, 40)).save(folder / "2354786.jpg")
    (folder / "q.json").write_text(json.dumps({"07333408": {**OFFICIAL, **(changes or {})}}))
    (folder / "g.json").write_text(json.dumps({"2354786": graph}))
    return folder / "q.json", folder, folder / "g.json"


def test_official_row(tmp_path: Path) -> None:
    """A row as GQA's own file has it: its group is the structural type, its boxes those of the objects it names."""
    questions, images, graphs = one_question(tmp_path)
    (sample,) = GQA(questions, images, graphs)
    assert (sample.id, sample.picture_id) == ("07333408", "2354786")
    assert (sample.question, sample.answers) == (OFFICIAL["question"], ("light brown",))
    assert sample.group == "choose"
    assert sample.boxes == (TRAY, pytest.approx(TABLE))  # the table reaches out of the picture, its box does not
    assert sample.picture().size == (50, 40)
    (blind,) = GQA(questions, images)
    assert blind.boxes == ()


def test_answer_objects(tmp_path: Path) -> None:
    """The object that the answer stands for counts too, once."""
    spans = {"question": {"2": "1060704"}, "answer": {"0": "1060704", "1": "1060703"}, "fullAnswer": {"1": "1060705"}}
    (sample,) = GQA(*one_question(tmp_path, {"annotations": spans}))
    assert sample.boxes == (TRAY, pytest.approx(TABLE))


def test_unknown_object(tmp_path: Path) -> None:
    """When one of the named objects has no box, it is not pretended that the other is all there is."""
    spans = {"question": {"2": "1060704", "3": "99"}, "answer": {}}
    (tmp_path / "one").mkdir()
    (sample,) = GQA(*one_question(tmp_path, {"annotations": {"question": {}, "answer": {}}}))
    assert sample.boxes == ()
    (sample,) = GQA(*one_question(tmp_path, {"annotations": spans}))
    assert sample.boxes == ()


def test_scenes_read_back(files: tuple[Path, Path, Path]) -> None:
    """Scenes written in the official form are read as the same questions, answers, pixels and boxes."""
    questions, graphs, images = files
    samples = list(GQA(questions, images, graphs))
    drawn = list(scenes("natural", 3, 4, 6))
    boxed = 0
    for sample in samples:
        scene = drawn[int(sample.picture_id) - 1]
        (asked,) = [one for one in scene.questions if one.text == sample.question]
        assert sample.answers == (asked.answer,)
        assert set(sample.boxes) == {tuple(edge / SIZE for edge in scene.objects[n].box) for n in asked.asked}
        assert np.array_equal(np.asarray(sample.picture()), scene.pixels)
        boxed += bool(sample.boxes)
    assert len(samples) == len({sample.id for sample in samples}) >= 8
    assert boxed >= 5
    assert {sample.group for sample in samples} <= {"verify", "query", "choose"}


@pytest.mark.parametrize(
    ("answer", "right"),
    [("light brown", True), (" Light Brown.\n", True), ("brown", False), ("light brown tray", False), ("", False)],
)
def test_right(tmp_path: Path, answer: str, right: bool) -> None:
    """Right means word for word, case, outer blanks and a full stop aside."""
    data = GQA(*one_question(tmp_path))
    assert data.right(next(iter(data)), answer) is right


def test_shards(files: tuple[Path, Path, Path]) -> None:
    """A folder of shards is the same data as one file, and a folder of scene graphs as one of them."""
    questions, graphs, images = files
    rows, known = list(json.loads(questions.read_text()).items()), list(json.loads(graphs.read_text()).items())
    for name, whole, kept in (("train_all_questions", rows, questions), ("graphs", known, graphs)):
        folder = kept.with_name(name)
        folder.mkdir()
        for number, part in enumerate((whole[:1], whole[1:3], whole[3:])):
            (folder / f"{name}_{number * 5}.json").write_text(json.dumps(dict(part)))
    sharded = GQA(questions.with_name("train_all_questions"), images, graphs.with_name("graphs"))
    facts = [(one.id, one.question, one.answers, one.boxes) for one in GQA(questions, images, graphs)]
    assert [(one.id, one.question, one.answers, one.boxes) for one in sharded] == facts
    assert sharded.name.startswith(f"gqa-train_all_questions-{len(rows)}-")


def test_limit(files: tuple[Path, Path, Path]) -> None:
    """A limit takes the first questions, and nothing behind them is read."""
    questions, graphs, images = files
    whole = [sample.id for sample in GQA(questions, images, graphs)]
    questions.write_text(questions.read_text()[:-100])
    assert [sample.id for sample in GQA(questions, images, graphs, limit=3)] == whole[:3]


def test_name_says_what_changes_the_samples(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Labels are cached by name: it is the same for the same files, another without boxes, fewer or other questions."""
    questions, graphs, images = files
    names = [GQA(questions, images, graphs).name, GQA(questions, images).name, GQA(questions, images, limit=3).name]
    raw = json.loads(questions.read_text())
    next(iter(raw.values()))["types"]["structural"] = "logical"
    other = tmp_path / "other" / "questions.json"
    other.parent.mkdir()
    other.write_text(json.dumps(raw))
    names.append(GQA(other, images).name)
    assert len(set(names)) == 4
    assert GQA(questions, images, graphs).name == names[0]


def _rewrite(path: Path, change: Callable[[Any], object]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def _first(change: Callable[[Any], object]) -> Callable[[Path, Path, Path], object]:
    return lambda q, g, i: _rewrite(q, lambda raw: change(next(iter(raw.values()))))


def _graph(change: Callable[[Any], object]) -> Callable[[Path, Path, Path], object]:
    return lambda q, g, i: _rewrite(g, lambda raw: [change(one) for one in raw.values()])


NOT_GQA, NOT_GRAPHS = "is not an official GQA questions file", "is not an official GQA scene graphs file"
WRONG: dict[str, tuple[Callable[[Path, Path, Path], object], str]] = {
    "no file": (lambda q, g, i: q.unlink(), r"There is no file .*questions\.json"),
    "no graphs": (lambda q, g, i: g.unlink(), r"There is no file .*scene_graphs\.json"),
    "truncated": (lambda q, g, i: q.write_text(q.read_text()[:-9]), r"questions\.json is not a complete JSON file"),
    "truncated graphs": (lambda q, g, i: g.write_text(g.read_text()[:-9]), r"graphs\.json is not a complete JSON file"),
    "empty file": (lambda q, g, i: q.write_text(""), r"questions\.json is not a complete JSON file"),
    "no text": (lambda q, g, i: g.write_bytes(b"\xff\xd8"), r"graphs\.json is not a complete JSON file"),
    "no questions": (lambda q, g, i: q.write_text("{}"), r"questions\.json holds no questions"),
    "a list": (lambda q, g, i: q.write_text("[]"), f"{NOT_GQA}: it holds a list"),
    "a list of graphs": (lambda q, g, i: g.write_text("[]"), f"{NOT_GRAPHS}: it holds a list"),
    "files swapped": (lambda q, g, i: q.write_text(g.read_text()), f"{NOT_GQA}: question 1 has no text 'imageId'"),
    "graphs swapped": (lambda q, g, i: g.write_text(q.read_text()), r"no scene graph for 4 of 4 pictures"),
    "empty folder": (lambda q, g, i: (q.unlink(), q.mkdir()), r"There is no \.json file in the folder .*questions"),
    "not an object": (lambda q, g, i: q.write_text('{"1": 7}'), f"{NOT_GQA}: question 1 has no text 'imageId'"),
    "test split": (_first(lambda one: one.pop("answer")), "has no answer, as in the splits test and challenge"),
    "no types": (_first(lambda one: one.pop("types")), "has no text 'structural'"),
    "blank question": (_first(lambda one: one.update(question=" ")), "has no text 'question'"),
    "number for an answer": (_first(lambda one: one.update(answer=7)), "has no text 'answer'"),
    "half a character": (_first(lambda one: one.update(answer="\ud800")), "has half a character in 'answer'"),
    "endless id": (_first(lambda one: one.update(imageId="7" * 5000)), "has 5000 characters in 'imageId'"),
    "picture elsewhere": (
        _first(lambda one: one.update(imageId="../secret")),
        r"names a picture outside the folder of pictures \('../secret'\)",
    ),
    "graphs of another split": (
        lambda q, g, i: _rewrite(g, lambda raw: raw.pop("2")),
        r"has no scene graph for 1 of 4 pictures of .*\(first: 2\): take that of the same split",
    ),
    "other objects": (_graph(lambda one: one["objects"].clear()), "has not one of the objects that the questions of"),
    "no size": (_graph(lambda one: one.pop("width")), f"{NOT_GRAPHS}: picture 1 has no number 'width'"),
    "no width": (_graph(lambda one: one.update(width=0)), "picture 1 has no size or no objects"),
    "no objects": (_graph(lambda one: one.update(objects=[])), "picture 1 has no size or no objects"),
    "endless number": (_graph(lambda one: one.update(height=10**400)), "has no number 'height'"),
    "object without a box": (
        _graph(lambda one: [thing.pop("w") for thing in one["objects"].values()]),
        "has no number 'w'",
    ),
    "no folder": (lambda q, g, i: i.rename(i.with_name("moved")), "There is no folder of pictures at"),
    "no pictures": (lambda q, g, i: [one.unlink() for one in i.iterdir()], "There is no picture of id 1 in"),
}


@pytest.mark.parametrize(("spoil", "said"), WRONG.values(), ids=WRONG)
def test_wrong_files(files: tuple[Path, Path, Path], spoil: Callable[[Path, Path, Path], object], said: str) -> None:
    """Whatever is wrong with the files is said at once, in one sentence that names the file."""
    spoil(*files)
    questions, graphs, images = files
    with pytest.raises(DataError, match=said) as caught:
        GQA(questions, images, graphs)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
