"""POPE's official files and measures, and the splits that scenes make."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.pope import POPE, SPLITS, pope_summary, said
from fastrm_monitor.lab.datasets.scene_files import write_pope
from fastrm_monitor.lab.datasets.scenes import HABIT_COLOR, HABIT_SHAPE, scenes

PICTURES, SEED = 12, 3


@pytest.fixture
def files(tmp_path: Path) -> tuple[tuple[Path, ...], Path]:
    return write_pope(tmp_path, "natural", PICTURES, SEED)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("No, there is no dog.", "no"),
        ("Yes, there is. It is not large.", "yes"),
        ("There is not a dog", "no"),
        ("no\n", "no"),
        ("I cannot see it", "yes"),  # as in the official evaluation
        ("a dog", "yes"),
        ("", "yes"),
    ],
)
def test_said(answer: str, expected: str) -> None:
    """An answer is a no when its first sentence has the word no or not, and else a yes."""
    assert said(answer) == expected


def test_summary() -> None:
    """Two hits, a false alarm, a miss and a right no, counted by hand."""
    answered = [("Yes", "yes"), ("yes.", "no"), ("No, none", "no"), ("no", "yes"), ("Yes, two", "yes")]
    assert pope_summary(answered) == {
        "n": 5,
        "accuracy": pytest.approx(3 / 5),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "yes_rate": pytest.approx(3 / 5),
    }


def test_summary_without_cases() -> None:
    """Nobody says yes, or nobody says anything: nothing is divided by nothing."""
    assert pope_summary([("no", "no"), ("no", "yes")]) == {
        "n": 2, "accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_rate": 0.0,
    }  # fmt: skip
    assert set(pope_summary(iter([])).values()) == {0}


def test_official_row(files: tuple[tuple[Path, ...], Path], tmp_path: Path) -> None:
    """A row as POPE's own file has it, whose picture is here by another name of the same number."""
    row = {
        "question_id": 1,
        "image": "COCO_val2014_000000310196.jpg",
        "text": "Is there a snowboard in the image?",
        "label": "yes",
    }
    path = tmp_path / "coco_pope_adversarial.json"
    path.write_text(json.dumps(row) + "\n")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(next(files[1].iterdir()), pictures / "000000310196.png")
    (sample,) = POPE(path, pictures)
    assert (sample.id, sample.picture_id) == ("1", "COCO_val2014_000000310196.jpg")
    assert (sample.question, sample.answers, sample.group) == (row["text"], ("yes",), "adversarial")
    assert sample.boxes == ()
    assert sample.picture().size == (64, 64)


def test_scenes_read_back(files: tuple[tuple[Path, ...], Path]) -> None:
    """In each split half of the labels are yes; labels are what the scene's objects say; pixels are the scene's."""
    drawn = list(scenes("natural", SEED, PICTURES))
    for path, split in zip(files[0], SPLITS, strict=True):
        data = POPE(path, files[1])
        assert len(data) == len({sample.id for sample in data}) >= 4 * PICTURES
        assert Counter(sample.answers[0] for sample in data) == {"yes": len(data) / 2, "no": len(data) / 2}
        for sample in data:
            scene = drawn[int(sample.picture_id[13:25]) - 1]
            color, shape = sample.question.split()[3:5]
            there = any((thing.color, thing.shape) == (color, shape) for thing in scene.objects)
            assert sample.answers == ("yes" if there else "no",)
            assert sample.group == split
            assert np.array_equal(np.asarray(sample.picture()), scene.pixels)


def test_splits_choose_what_is_absent(files: tuple[tuple[Path, ...], Path]) -> None:
    """Popular asks for absent pairs that are frequent elsewhere, adversarial for the habit of what is there."""
    drawn = list(scenes("natural", SEED, PICTURES))
    often = Counter(pair for scene in drawn for pair in {(thing.color, thing.shape) for thing in scene.objects})
    frequency, habitual = {}, {}
    for path, split in zip(files[0], SPLITS, strict=True):
        absent = [sample for sample in POPE(path, files[1]) if sample.answers == ("no",)]
        pairs = [(*sample.question.split()[3:5], drawn[int(sample.picture_id[13:25]) - 1]) for sample in absent]
        frequency[split] = np.mean([often[color, shape] for color, shape, _ in pairs])
        habitual[split] = np.mean(
            [
                any(
                    (color, shape) in ((HABIT_COLOR[thing.shape], thing.shape), (thing.color, HABIT_SHAPE[thing.color]))
                    for thing in scene.objects
                )
                for color, shape, scene in pairs
            ]
        )
    assert frequency["popular"] > 1.5 * frequency["random"]
    assert habitual["adversarial"] > 1.5 * habitual["random"]
    assert habitual["adversarial"] > habitual["popular"]


def test_right(files: tuple[tuple[Path, ...], Path]) -> None:
    """An answer in a sentence is as right as a word."""
    data = POPE(files[0][0], files[1])
    yes = next(sample for sample in data if sample.answers == ("yes",))
    answers = ("Yes, there is.", "yes", "No", "There is no circle.")
    assert [data.right(yes, answer) for answer in answers] == [True, True, False, False]


def test_limit_and_name(files: tuple[tuple[Path, ...], Path]) -> None:
    """A limit takes the first questions; names tell splits and numbers apart; other files have no split."""
    whole, part = POPE(files[0][0], files[1]), POPE(files[0][0], files[1], limit=4)
    assert [sample.id for sample in part] == ["1", "2", "3", "4"]
    assert part.name.startswith("pope-coco_pope_random-4-")
    assert len({whole.name, part.name, POPE(files[0][1], files[1]).name}) == 3
    other = Path(shutil.copy(files[0][0], files[0][0].with_name("mine.json")))
    assert {sample.group for sample in POPE(other, files[1])} == {"all"}


def _change(**changes: object) -> Callable[[Path, Path], object]:
    def spoil(questions: Path, images: Path) -> None:
        first, *others = questions.read_text().splitlines()
        questions.write_text("\n".join([first, json.dumps({**json.loads(others[0]), **changes}), *others[1:]]))

    return spoil


NOT_POPE = "is not an official POPE file: line 2"
WRONG: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no file": (lambda q, i: q.unlink(), r"There is no file .*coco_pope_random\.json"),
    "a folder": (lambda q, i: (q.unlink(), q.mkdir()), r"coco_pope_random\.json is a folder: name a file in it"),
    "truncated": (lambda q, i: q.write_text(q.read_text()[:-9]), r"Line 72 of .* is not a complete JSON object"),
    "empty file": (lambda q, i: q.write_text(""), r"coco_pope_random\.json holds no questions"),
    "no text": (lambda q, i: q.write_bytes(b"\xff\xd8"), "is not a complete JSON file"),
    "one list": (lambda q, i: q.write_text(f"[{','.join(q.read_text().splitlines())}]"), "Line 1 of .* complete JSON"),
    "label": (_change(label="maybe"), f"{NOT_POPE} has a label other than yes and no"),
    "no label": (_change(label=None), f"{NOT_POPE} has no text 'label'"),
    "no question": (_change(text=7), f"{NOT_POPE} has no text 'text'"),
    "half a character": (_change(text="\udc00?"), f"{NOT_POPE} has half a character in 'text'"),
    "no id": (_change(question_id=None), f"{NOT_POPE} has no text 'question_id'"),
    "endless id": (_change(question_id="1" * 2000), f"{NOT_POPE} has 2000 characters in 'question_id'"),
    "no picture's name": (_change(image=[]), f"{NOT_POPE} has no text 'image'"),
    "picture above": (_change(image="a/../../b.jpg"), "outside the folder of pictures .'a/../../b.jpg'"),
    "picture elsewhere": (_change(image="/etc/passwd.jpg"), "outside the folder of pictures"),
    "picture on a drive": (_change(image="C:\\b.jpg"), "outside the folder of pictures"),
    "picture above, otherwise": (_change(image="..\\b.jpg"), "outside the folder of pictures"),
    "end of text in a name": (_change(image="a\0b.jpg"), "outside the folder of pictures"),
    "no folder": (lambda q, i: i.rename(i.with_name("moved")), "There is no folder of pictures at"),
    "no pictures": (
        lambda q, i: [one.unlink() for one in i.iterdir()],
        r"There is no picture COCO_val2014_000000000001\.png in .*tried names such as 000000000001\.jpg",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_files(
    files: tuple[tuple[Path, ...], Path], spoil: Callable[[Path, Path], object], sentence: str
) -> None:
    """Whatever is wrong with the file is said at once, in one sentence that names it."""
    spoil(files[0][0], files[1])
    with pytest.raises(DataError, match=sentence) as caught:
        POPE(files[0][0], files[1])
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
