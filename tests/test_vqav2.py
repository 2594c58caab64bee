"""VQAv2's official files and score: known examples, and one sentence for every file that is not what it should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.files import find_picture
from fastrm_monitor.lab.datasets.scene_files import write_vqav2
from fastrm_monitor.lab.datasets.scenes import scenes
from fastrm_monitor.lab.datasets.vqav2 import VQAv2, normalise, vqa_score


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        (" A red Car.\n", "red car"),
        ("the man", "man"),
        ("two", "2"),
        ("none", "0"),
        ("twenty one", "twenty 1"),
        ("dont know", "don't know"),
        ("couldn't", "couldn't"),
        ("yes, it is", "yes it is"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("1,000", "1000"),
        ("5.", "5"),
        ("2.5", "2.5"),
        (".5", ".5"),
        ("u.s.a.", "usa"),
        ("what?!", "what"),
        # A mark is removed where it stands beside a blank in the answer as given, else it becomes a blank.
        ("a-b/-c", "b c"),
        ("b-d -c", "bd c"),
        ("10:30", "10:30"),
        ("", ""),
    ],
)
def test_normalise(answer: str, expected: str) -> None:
    """Answers are compared as the official evaluation compares them."""
    assert normalise(answer) == expected


TEN = ("red",) * 4 + ("dark red",) * 3 + ("Maroon",) * 2 + ("pink",)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("red", 1.0),
        ("dark red", (7 * 1 + 3 * 2 / 3) / 10),
        ("the maroon.", (8 * 2 / 3 + 2 * 1 / 3) / 10),
        ("pink", 9 / 10 / 3),
        ("blue", 0.0),
    ],
)
def test_score(answer: str, expected: float) -> None:
    """For each annotator left out, a third for each of the others who said the same, at most 1; then the mean."""
    assert vqa_score(answer, TEN) == pytest.approx(expected)


def test_all_annotators_agree() -> None:
    """Answers are normalised where all ten agree, too, as docs/datasets.md says; the official script does not."""
    assert [vqa_score(answer, (said,) * 10) for answer, said in (("2", "two"), ("Yes.", "yes"), ("no", "yes"))] == [
        1,
        1,
        0,
    ]


def test_one_reference() -> None:
    """With a single reference the answer is right or wrong."""
    assert [vqa_score(answer, ("Two",)) for answer in ("2", "3")] == [1.0, 0.0]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    return write_vqav2(tmp_path, "easy", pictures=4, seed=3, questions=3)


def test_scenes_read_back(files: tuple[Path, Path, Path]) -> None:
    """Scenes written in the official form are read as the same questions, answers and pixels."""
    data = VQAv2(*files)
    samples = list(data)
    drawn = list(scenes("easy", 3, 4, 3))
    assert [sample.question for sample in samples] == [one.text for scene in drawn for one in scene.questions]
    assert [sample.answers for sample in samples] == [(one.answer,) * 10 for scene in drawn for one in scene.questions]
    assert len(data) == len({sample.id for sample in samples})
    assert list(dict.fromkeys(sample.picture_id for sample in samples)) == ["1", "2", "3", "4"]
    assert {sample.group for sample in samples} <= {"yes/no", "number", "other"}
    for sample in samples:
        assert np.array_equal(np.asarray(sample.picture()), drawn[int(sample.picture_id) - 1].pixels)


def test_limit_and_name(files: tuple[Path, Path, Path]) -> None:
    """A limit takes the first questions; the name says how many, and tells one folder of pictures from another."""
    whole, part = VQAv2(*files), VQAv2(*files, limit=5)
    assert [sample.id for sample in part] == [sample.id for sample in whole][:5]
    assert part.name.startswith("vqav2-questions-5-")
    other = shutil.copytree(files[2], files[2].with_name("others"))
    assert VQAv2(files[0], files[1], other, limit=5).name != part.name
    assert whole.name != part.name


def test_right(files: tuple[Path, Path, Path]) -> None:
    """Right means half of the official score: two annotators of ten are enough, one is not."""
    data = VQAv2(*files)
    sample = next(iter(data))
    marked = type(sample)("1", "1", sample.picture, "?", TEN, "other")
    assert [data.right(marked, answer) for answer in ("maroon", "pink")] == [True, False]


@pytest.mark.parametrize("name", ["1.jpg", "000000000001.png", "COCO_train2014_000000000001.JPEG", "1.webp"])
def test_picture_by_other_name(tmp_path: Path, name: str) -> None:
    """A picture is found by plain id, padded id or COCO name of any split, with any common extension."""
    Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert find_picture(tmp_path, 1) == tmp_path / name
    assert find_picture(tmp_path, "1") == tmp_path / name


def test_picture_by_text_id(tmp_path: Path) -> None:
    """Ids that are no numbers are names."""
    Image.new("RGB", (4, 4)).save(tmp_path / "scene-a.png")
    assert find_picture(tmp_path, "scene-a").name == "scene-a.png"


def test_some_pictures_missing(files: tuple[Path, Path, Path]) -> None:
    """A set of which some pictures are there opens; those that are not raise when they are asked for."""
    (files[2] / "COCO_val2014_000000000001.png").unlink()
    samples = list(VQAv2(*files))
    with pytest.raises(DataError, match="no picture of id 1 in"):
        samples[0].picture()
    assert samples[-1].picture().size == (64, 64)


def test_picture_that_is_none(files: tuple[Path, Path, Path]) -> None:
    """A picture that cannot be decoded is one sentence with its name."""
    (files[2] / "COCO_val2014_000000000001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"COCO_val2014_000000000001\.png"):
        next(iter(VQAv2(*files))).picture()


def _rewrite(path: Path, change: Callable[[dict], object]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


WRONG: dict[str, tuple[Callable[[Path, Path, Path], object], str]] = {
    "no questions file": (lambda q, a, i: q.unlink(), "There is no file .*questions.json"),
    "no annotations file": (lambda q, a, i: a.unlink(), "There is no file .*annotations.json"),
    "truncated": (lambda q, a, i: q.write_text(q.read_text()[:-200]), "questions.json is not a complete JSON file"),
    "empty file": (lambda q, a, i: a.write_text(""), "annotations.json is not a complete JSON file"),
    "no text": (lambda q, a, i: q.write_bytes(b"\xff\xd8\xff"), "questions.json is not a complete JSON file"),
    "files swapped": (
        lambda q, a, i: q.write_text(a.read_text()),
        "needs a list 'questions' whose rows have question_id",
    ),
    "a list": (lambda q, a, i: q.write_text("[]"), "is not an official VQAv2 file"),
    "rows of another form": (
        lambda q, a, i: _rewrite(q, lambda raw: raw["questions"][0].pop("image_id")),
        "is not an official VQAv2 file",
    ),
    "ids of another form": (
        lambda q, a, i: _rewrite(q, lambda raw: raw["questions"][0].update(question_id=[1])),
        "is not an official VQAv2 file",
    ),
    "answers of another form": (
        lambda q, a, i: _rewrite(a, lambda raw: raw["annotations"][0].update(answers=["red"])),
        "needs a list 'annotations' whose rows have question_id, answers",
    ),
    "no answers": (
        lambda q, a, i: _rewrite(a, lambda raw: raw["annotations"][0].update(answers=[])),
        "is not an official VQAv2 file",
    ),
    "no questions": (lambda q, a, i: _rewrite(q, lambda raw: raw["questions"].clear()), "holds no questions"),
    "another split": (
        lambda q, a, i: _rewrite(
            a, lambda raw: [row.update(question_id=row["question_id"] + 9**9) for row in raw["annotations"]]
        ),
        r"no annotation for 12 of 12 questions .*\(first: 1000\): take the two files of the same split",
    ),
    "no folder": (lambda q, a, i: i.rename(i.with_name("moved")), "There is no folder of pictures at"),
    "no pictures": (lambda q, a, i: _empty(i), "There is no picture of id 1 in .*tried names such as 000000000001.jpg"),
}


@pytest.mark.parametrize(("spoil", "said"), WRONG.values(), ids=WRONG)
def test_wrong_files(files: tuple[Path, Path, Path], spoil: Callable[[Path, Path, Path], object], said: str) -> None:
    """Whatever is wrong with the files is said at once, in one sentence that names the file."""
    spoil(*files)
    with pytest.raises(DataError, match=said) as caught:
        VQAv2(*files)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
