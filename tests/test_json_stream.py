"""JSON read entry by entry is what the standard library reads whole, and what is no JSON is one sentence."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets import json_stream
from fastrm_monitor.lab.datasets.json_stream import FormError, entries, json_files, json_lines, members

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ANY_PATH = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.json"


@ANY_PATH
@given(st.dictionaries(st.text(), values, max_size=6), st.integers(1, 9), st.none() | st.integers(0, 3))
def test_members(path: Path, whole: dict[str, Any], chunk: int, indent: int | None) -> None:
    """Members are those of the whole file, in its order, wherever a read ends and however it is laid out."""
    path.write_text(json.dumps(whole, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        assert list(members(path)) == list(whole.items())


@ANY_PATH
@given(st.dictionaries(st.text(max_size=2), values, max_size=4), st.lists(values, max_size=6), st.integers(1, 9))
def test_entries(path: Path, others: dict[str, Any], rows: list[Any], chunk: int) -> None:
    """Entries are those of the list that was asked for, whatever lies around it."""
    path.write_text(json.dumps({**others, "rows": rows, "end": [1, {"rows": [2]}]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        assert list(entries(path, "rows")) == rows


def test_numbers_are_not_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that a read cuts in two is one number."""
    path.write_text('{"a": 123456, "b": -1.5e-10}')
    for chunk in range(1, 30):
        monkeypatch.setattr(json_stream, "_CHUNK", chunk)
        assert dict(members(path)) == {"a": 123456, "b": -1.5e-10}


def test_byte_order_mark(path: Path) -> None:
    """Files that an editor began with a byte order mark are read."""
    path.write_text('{"a": 1}', encoding="utf-8-sig")
    assert list(members(path)) == [("a", 1)]
    assert list(json_lines(path)) == [(1, {"a": 1})]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"  \n",
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a": [1, 2',
        b'{"a": "text',
        b'{"a": 1',
        b'{"a": 1,}',
        b'{"a": 1 "b": 2}',
        b"{1: 2}",
        b'{"a": 1} {"b": 2}',
        b'"text"',
        b"\xff\xd8\xff",
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_no_complete_json(path: Path, content: bytes) -> None:
    """What is cut off, doubled or no JSON at all is one sentence with the file's name; so are absurd values."""
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file.json is not a complete JSON file .*: download it again\.$") as caught:
        list(members(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", '[{"a": 1}]', " [1"])
def test_list_for_an_object(path: Path, content: str) -> None:
    """A list is JSON, but not of the form."""
    path.write_text(content)
    for read in (lambda: list(members(path)), lambda: list(entries(path, "rows"))):
        with pytest.raises(FormError, match="holds a list"):
            read()


@pytest.mark.parametrize("content", ["{}", '{"rows": {"a": []}}', '{"other": [1]}', '{"a": {"rows": [1]}}'])
def test_no_such_list(path: Path, content: str) -> None:
    """Without a list of that name there is nothing to read."""
    path.write_text(content)
    with pytest.raises(FormError, match="has no list 'rows'"):
        list(entries(path, "rows"))


def test_missing_and_folder(path: Path) -> None:
    """A file that is not there and a folder in its place are said."""
    with pytest.raises(DataError, match=r"There is no file .*file\.json\.$"):
        list(members(path))
    path.mkdir()
    for read in (members, json_lines):
        with pytest.raises(DataError, match=r"file\.json is a folder: name a file in it\.$"):
            list(read(path))


def test_json_lines(path: Path) -> None:
    """Lines keep their numbers past blank ones, and the last needs no line end."""
    path.write_text('{"a": 1}\n\n  \n{"b": "\u2028"}')
    assert list(json_lines(path)) == [(1, {"a": 1}), (4, {"b": "\u2028"})]


@pytest.mark.parametrize("line", ['{"a": 1', "[]", "7", "text", "{}{}", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_line_that_is_no_object(path: Path, line: str) -> None:
    """A line that holds anything but one object is named by its number."""
    path.write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(DataError, match=r"^Line 2 of .*file\.json is not a complete JSON object: .*\.$"):
        list(json_lines(path))


def test_long_files_are_not_held(path: Path) -> None:
    """Reading twelve megabytes takes less than three."""
    row = {"question": "is there a red circle in the picture?" * 10, "types": {"structural": "verify"}}
    path.write_text(json.dumps({"rows": [row] * 30_000}))
    assert path.stat().st_size > 12_000_000
    tracemalloc.start()
    count = sum(1 for _ in entries(path, "rows"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000
    assert peak < 3_000_000


def test_garbage_is_not_read_to_its_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry without end is given up, and a file without line ends too."""
    monkeypatch.setattr(json_stream, "_LONGEST", 1000)
    monkeypatch.setattr(json_stream, "_CHUNK", 100)
    path.write_text('{"a": "' + "x" * 100_000)
    with pytest.raises(DataError, match="an entry has more than 1000 characters"):
        list(members(path))
    with pytest.raises(DataError, match="Line 1 of"):
        list(json_lines(path))


def test_shards(tmp_path: Path) -> None:
    """A folder stands for its .json files in the order of their numbers; a file for itself."""
    for name in ("q_10.json", "q_9.json", "q_0.json", "readme.txt"):
        (tmp_path / name).write_text("{}")
    assert [one.name for one in json_files(tmp_path)] == ["q_0.json", "q_9.json", "q_10.json"]
    assert json_files(tmp_path / "q_9.json") == [tmp_path / "q_9.json"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"There is no \.json file in the folder .*empty\.$"):
        json_files(empty)
