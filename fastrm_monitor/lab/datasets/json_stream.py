"""JSON files read entry by entry: GQA's are up to 10 GB, and only the entry at hand is held.

The decoder is the standard library's. (ijson would do, but its C parser ends the process at an integer of 5,000 digits;
files come from elsewhere, so whatever they hold must be a `DataError`.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from fastrm_monitor.errors import DataError

_CHUNK = 2**18
"""Characters read at once."""
_LONGEST = 2**26
"""Most characters of an entry: a file that is no JSON must not be read into memory to its end."""
_BLANKS = re.compile(r"[ \t\r\n]*")
_GOES_ON = ("", *"+-.eE0123456789")
_DECODER = json.JSONDecoder()


class FormError(Exception):
    """What was read is JSON, but not of the form that is wanted; the message goes on where the caller named the row."""


def members(path: Path) -> Iterator[tuple[str, Any]]:
    """The members of the object that a file holds, one after the other.

    Raises:
        DataError: the file is missing or not a complete JSON file.
        FormError: it holds a list.
    """
    with _reading(path) as file:
        reader = _Reader(file)
        for key in reader.keys():  # noqa: SIM118 - not a dict
            yield key, reader.value()


def entries(path: Path, key: str) -> Iterator[Any]:
    """The entries of the list under `key` of the object that a file holds, one after the other.

    Raises:
        DataError: the file is missing or not a complete JSON file.
        FormError: it holds a list, or there is no list under `key`.
    """
    met = False
    with _reading(path) as file:
        reader = _Reader(file)
        for here in reader.keys():  # noqa: SIM118 - not a dict
            if reader.peek() != "[":
                reader.value()
                continue
            met = met or here == key
            for entry in reader.entries():
                if here == key:
                    yield entry
    if not met:
        raise FormError(f"has no list '{key}'")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank.

    Raises:
        DataError: the file is missing, or a line is not a JSON object.
    """
    with _reading(path) as file:
        line, number = file.readline(_LONGEST), 1
        while line:
            if not line.isspace():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    raise DataError(
                        f"Line {number} of {path} is not a complete JSON object: each line is one question."
                    )
                yield number, row
            line, number = file.readline(_LONGEST), number + 1


def json_files(path: Path) -> list[Path]:
    """The file itself, or the .json files of a folder, shard 10 after shard 9.

    Raises:
        DataError: there is no .json file in the folder.
    """
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.json"), key=lambda one: ([int(n) for n in re.findall("[0-9]+", one.name)], one.name))
    if not found:
        raise DataError(f"There is no .json file in the folder {path}.")
    return found


@contextmanager
def _reading(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder: name a file in it.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a complete JSON file ({error}): download it again.") from None


class _Reader:
    """Reads JSON from a file, of which it holds only what the value at hand needs."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0

    def keys(self) -> Iterator[str]:
        """The keys of the object that the file holds; whoever asks for the next has read the value behind this one."""
        if self.peek() == "[":
            raise FormError("holds a list, not an object")
        self._take("{")
        if self.peek() == "}":
            self._take("}")
        else:
            while True:
                key = self.value()
                if not isinstance(key, str):
                    raise ValueError("a key is not text")
                self._take(":")
                yield key
                if self._take(",}") == "}":
                    break
        if self.peek():
            raise ValueError("something follows its end")

    def entries(self) -> Iterator[Any]:
        """The entries of the list that begins here."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        yield self.value()
        while self._take(",]") == ",":
            yield self.value()

    def value(self) -> Any:
        """The whole value that begins here."""
        self.peek()
        while True:
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            # What was read may end within a number, and decode as a shorter one.
            if self._text[end : end + 1] not in _GOES_ON or not self._more():
                self._at = end
                return found

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            self._at = cast("re.Match[str]", _BLANKS.match(self._text, self._at)).end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _take(self, expected: str) -> str:
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(f"'{expected[-1]}' is missing")
        self._at += 1
        return found

    def _more(self) -> bool:
        """Read on; false at the end of the file. Twice as much each time, so that a long value is not read for ever."""
        held = len(self._text) - self._at
        if held > _LONGEST:
            raise ValueError(f"an entry has more than {_LONGEST} characters")
        chunk = self._file.read(max(_CHUNK, held))
        if chunk:
            self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)
