"""Whatever lies in the files of a data set, loading them ends in samples that can be used or in one sentence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.base import Dataset
from fastrm_monitor.lab.datasets.gqa import GQA
from fastrm_monitor.lab.datasets.jsonl import JSONL
from fastrm_monitor.lab.datasets.pope import POPE
from fastrm_monitor.lab.datasets.vqav2 import VQAv2

THOROUGH = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
LOADERS: dict[str, Callable[[Path, Path, Path], Dataset]] = {
    "vqav2": lambda first, second, images: VQAv2(first, second, images),
    "gqa": lambda first, second, images: GQA(first, images, second),
    "pope": lambda first, second, images: POPE(first, images),
    "jsonl": lambda first, second, images: JSONL(first, images),
}
EVERY_FORM = pytest.mark.parametrize("form", LOADERS)


RIGHT: dict[str, tuple[Any, Any]] = {
    "vqav2": (
        {"questions": [{"question_id": n, "image_id": 1, "question": "is it red?"} for n in (1, 2)]},
        {"annotations": [{"question_id": n, "answers": [{"answer": "no"}], "answer_type": "yes/no"} for n in (1, 2)]},
    ),
    "gqa": (
        {
            one: {
                "imageId": "1",
                "question": "is it red?",
                "answer": "yes",
                "types": {"structural": "verify"},
                "annotations": {"question": {"1": "7"}, "answer": {"0": "8"}},
            }
            for one in ("01", "02")
        },
        {"1": {"width": 9, "height": 9, "objects": {one: {"x": 1, "y": 2, "w": 3, "h": 4} for one in "78"}}},
    ),
    "pope": ([{"question_id": n, "image": "1.png", "text": "is it red?", "label": "yes"} for n in (1, 2)], []),
    "jsonl": (
        [{"id": n, "image": "1.png", "question": "is it?", "answer": ["a"], "boxes": [[0, 0, 1, 1]]} for n in (1, 2)],
        [],
    ),
}
"""Files that are right; those of pope and jsonl are lists of lines."""


def spoil(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """The value with anything in some place of it, or with that place left out."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(anything)
    made = value.copy()
    key = draw(st.sampled_from(sorted(made) if isinstance(made, dict) else range(len(made))))
    if draw(st.integers(0, 5)) == 0:
        del made[key]
    else:
        made[key] = spoil(made[key], draw)
    return made


def content(form: str, value: Any) -> bytes:
    lines = value if form in ("pope", "jsonl") and isinstance(value, list) else [value]
    return "\n".join(map(json.dumps, lines)).encode()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(folder / "1.png")
    return folder


def check(form: str, images: Path, first: bytes, second: bytes) -> None:
    """Load files of these contents: samples can be written, their boxes lie in the picture; or one sentence is said."""
    questions, others = images.with_name("first.json"), images.with_name("second.json")
    questions.write_bytes(first)
    others.write_bytes(second)
    try:
        data = LOADERS[form](questions, others, images)
    except DataError as error:
        said = str(error)
        assert said.endswith(".")
        assert len(said) < 600
        assert said.encode().decode().isprintable()
        return
    assert len(data) == len(list(data)) > 0
    for sample in data:
        said = [sample.id, sample.picture_id, sample.question, sample.group, *sample.answers]
        assert all(isinstance(one, str) and one.encode() is not None for one in said)
        assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in sample.boxes)
        assert data.right(sample, "yes") in (True, False)
        with contextlib.suppress(DataError):
            assert sample.picture().size == (2, 2)


@EVERY_FORM
@THOROUGH
@given(first=st.binary(max_size=60), second=st.binary(max_size=60))
def test_bytes(form: str, images: Path, first: bytes, second: bytes) -> None:
    """Random bytes never give anything but a sentence."""
    check(form, images, first, second)


@EVERY_FORM
@THOROUGH
@given(data=st.data())
def test_nearly_right(form: str, images: Path, data: st.DataObject) -> None:
    """Neither do files in which any field may be missing or anything at all, nor those cut off anywhere."""
    files = list(RIGHT[form])
    for _ in range(data.draw(st.integers(0, 2))):
        which = data.draw(st.integers(0, 1))
        files[which] = spoil(files[which], data.draw)
    first, second = (content(form, one) for one in files)
    cut = data.draw(st.none() | st.integers(0, len(first)))
    check(form, images, first[:cut], second)


@EVERY_FORM
def test_right(form: str, images: Path) -> None:
    """Unspoilt, the files are read, boxes and all."""
    check(form, images, *(content(form, one) for one in RIGHT[form]))
    data = list(LOADERS[form](images.with_name("first.json"), images.with_name("second.json"), images))
    assert len(data) == 2
    assert all(bool(sample.boxes) == (form in ("gqa", "jsonl")) for sample in data)
