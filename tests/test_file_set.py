"""What all sets of files share: labels are of the pictures that lie there now, and an id means one question."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.files import find_picture, find_pictures
from fastrm_monitor.lab.datasets.gqa import GQA
from fastrm_monitor.lab.datasets.jsonl import JSONL
from fastrm_monitor.lab.datasets.pope import POPE
from fastrm_monitor.lab.datasets.scene_files import write_gqa, write_jsonl, write_pope, write_vqav2
from fastrm_monitor.lab.datasets.vqav2 import VQAv2


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "own", "easy", pictures=4, seed=9)


def other_content(picture: Path) -> None:
    """Another picture of another size in the same file, which keeps its time of change."""
    before = picture.stat()
    picture.write_bytes(picture.read_bytes() + b"more")
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))


def other_time(picture: Path) -> None:
    """Something of the same size in the same file, written a moment later."""
    before = picture.stat()
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [other_content, other_time, Path.unlink])
@pytest.mark.parametrize("number", [0, 3])
def test_changed_picture_is_another_set(questions: Path, change: Callable[[Path], None], number: int) -> None:
    """Overwriting any one picture in place changes the name that labels are kept under, and so does taking it away."""
    before = JSONL(questions).name
    assert JSONL(questions).name == before
    change(questions.parent / "pictures" / f"{number}.png")
    assert JSONL(questions).name != before


def test_other_files_do_not_matter(questions: Path) -> None:
    """A picture that no question asks about may come and go: the labels stay good."""
    before = JSONL(questions).name
    (questions.parent / "pictures" / "99.png").write_bytes(b"")
    assert JSONL(questions).name == before


def test_pictures_are_found_as_one_by_one(tmp_path: Path) -> None:
    """Reading the folders finds the same file for every kind of name as looking for each picture does."""
    (tmp_path / "below").mkdir()
    for name in ("1.png", "COCO_val2014_000000000002.jpg", "000000000003.webp", "scene.a.JPG", "below/4.jpeg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name, "PNG")
    (tmp_path / "5.png").symlink_to("gone.png")
    (tmp_path / "6.jpg").mkdir()
    asked = [
        *("1", "1.jpg", "000000000001", "2", "COCO_val2014_000000000002.png", "3", "scene.a", "scene.a.png"),
        *("below/4", "below/4.jpeg", "5", "6", "7", "gone/8.png", "scene"),
    ]
    found = {picture: file and Path(file.path) for picture, file in find_pictures(tmp_path, asked)}
    assert list(found) == asked
    assert sum(file is not None for file in found.values()) == 9
    for picture, file in found.items():
        if file is None:
            with pytest.raises(DataError, match="There is no picture"):
                find_picture(tmp_path, picture)
        else:
            assert find_picture(tmp_path, picture) == file


def test_each_folder_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of pictures cost one reading of their folder, not dozens of tries each."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"")
    read, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(path) or real(path))
    monkeypatch.setattr(Path, "is_file", lambda path: pytest.fail(f"{path} was looked for on its own"))
    found = dict(find_pictures(tmp_path, (str(number) for number in range(5000))))
    assert sum(file is not None for file in found.values()) == 3
    assert len(read) == 1


def twice_pope(folder: Path) -> Callable[[], Any]:
    (one, other, _), images = write_pope(folder, "natural", pictures=4, seed=9)
    whole = folder / "coco_pope_all.json"
    whole.write_text(one.read_text() + other.read_text())
    return lambda: POPE(whole, images)


def twice_gqa(folder: Path) -> Callable[[], Any]:
    one, _, images = write_gqa(folder, "natural", pictures=4, seed=9)
    shards = folder / "shards"
    shards.mkdir()
    for name in ("a.json", "b.json"):
        (shards / name).write_text(one.read_text())
    return lambda: GQA(shards, images)


def twice_vqav2(folder: Path) -> Callable[[], Any]:
    asked, annotated, images = write_vqav2(folder, "natural", pictures=4, seed=9)
    raw = json.loads(asked.read_text())
    asked.write_text(json.dumps({"questions": [*raw["questions"], raw["questions"][0]]}))
    return lambda: VQAv2(asked, annotated, images)


@pytest.mark.parametrize("make", [twice_pope, twice_gqa, twice_vqav2])
def test_repeated_ids_are_refused(tmp_path: Path, make: Callable[[Path], Callable[[], Any]]) -> None:
    """Files put together whose ids repeat are one sentence that says what to do, for every official form."""
    opened = make(tmp_path)
    with pytest.raises(
        DataError, match=r"has two questions of the id \w+: .* give each of them by a --questions of its own\.$"
    ):
        opened()


def test_repeated_id_is_noticed_where_it_stands(tmp_path: Path) -> None:
    """Nothing behind a repeated id is read, and nothing behind the limit: that id does not matter then."""
    (one, *_), images = write_pope(tmp_path, "natural", pictures=4, seed=9)
    first, second, *_ = one.read_text().splitlines()
    one.write_text("\n".join((first, second, first, "no JSON")))
    with pytest.raises(DataError, match="two questions of the id 1"):
        POPE(one, images)
    assert len(POPE(one, images, limit=2)) == 2
