"""What the loaders share: fields of the kind that a form wants, and pictures found by id or name."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.json_stream import FormError

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG")
_COCO_SPLITS = ("train2014", "val2014", "test2015")
_HALF = re.compile("[\ud800-\udfff]")
_LONGEST_NAME = 1000
"""Most characters of an id or a name; a longer one says that the file is damaged."""


# --- fields --------------------------------------------------------------------------------------------------------


def text(row: Any, key: str) -> str:
    """The text under `key`.

    Raises:
        FormError: there is none, it is blank, or it holds half a character, which no file can be written with.
    """
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise FormError(f"has no text '{key}'")
    if _HALF.search(value):
        raise FormError(f"has half a character in '{key}'")
    return value


def name(row: Any, key: str) -> str:
    """The id or name under `key`, whether it is written as text or as a whole number.

    Raises:
        FormError: it is neither, or too long to be one.
    """
    value = row.get(key) if isinstance(row, dict) else None
    given = str(value) if isinstance(value, int) and not isinstance(value, bool) else text(row, key)
    if len(given) > _LONGEST_NAME:
        raise FormError(f"has {len(given)} characters in '{key}'")
    return given


def picture_name(row: Any, key: str) -> str:
    """The id or relative path of a picture under `key`.

    Raises:
        FormError: it is none, or it leads out of the folder of pictures.
    """
    given = name(row, key)
    path = PureWindowsPath(given)  # knows both kinds of separators, and drives
    if path.anchor or ".." in path.parts or "\0" in given:
        raise FormError(f"names a picture outside the folder of pictures ({shown(given)})")
    return given


def number(row: Any, key: str) -> float:
    """The finite number under `key`.

    Raises:
        FormError: there is none.
    """
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if math.isfinite(found):
            return found
    raise FormError(f"has no number '{key}'")


def shown(value: str) -> str:
    """A value from a file as an error may show it: short, on one line, nothing that a terminal cannot print."""
    short = value if len(value) <= 40 else f"{value[:40]}..."
    return short if re.fullmatch("[A-Za-z0-9_.-]+", short) else ascii(short)


# --- pictures ------------------------------------------------------------------------------------------------------


def find_picture(images: Path, picture: int | str) -> Path:
    """The file of a picture: by name, plain id or COCO's name of any split, with any common extension.

    Raises:
        DataError: there is none, or the folder cannot be read.
    """
    given = str(picture)
    try:
        for one in _names(given):
            if (images / one).is_file():
                return images / one
    except OSError as error:
        raise DataError(f"The picture {shown(given)} in {images} cannot be read: {error.strerror}.") from None
    what = f"of id {shown(given)}" if given.isdecimal() else shown(given)
    tried = shown(f"{_stems(given)[-1]}.jpg")
    raise DataError(f"There is no picture {what} in {images} (tried names such as {tried}).")


def find_pictures(images: Path, pictures: Iterable[str]) -> Iterator[tuple[str, os.DirEntry[str] | None]]:
    """Each picture with the file that `find_picture` finds, None where there is none; each folder is read once."""
    folders: dict[str, dict[str, os.DirEntry[str]]] = {}
    for picture in pictures:
        yield picture, next((file for one in _names(picture) if (file := _entry(images, one, folders))), None)


def _entry(images: Path, name: str, folders: dict[str, dict[str, os.DirEntry[str]]]) -> os.DirEntry[str] | None:
    folder, _, base = name.rpartition("/")
    if folder not in folders:
        try:
            with os.scandir(images / folder) as entries:
                folders[folder] = {one.name: one for one in entries}
        except OSError:
            folders[folder] = {}
    found = folders[folder].get(base)
    return found if found is not None and found.is_file() else None


def _names(given: str) -> Iterator[str]:
    """What the file of a picture may be called, the likeliest first."""
    if given.endswith(_EXTENSIONS):
        yield given
    for stem in dict.fromkeys(_stems(given)):
        yield from (f"{stem}{extension}" for extension in _EXTENSIONS)


def _stems(given: str) -> list[str]:
    stem = given.rpartition(".")[0] if given.endswith(_EXTENSIONS) else given
    stems = [stem]
    numbered = re.fullmatch(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]+)", stem)
    if numbered:
        padded = f"{int(numbered[1]):012d}"
        stems += [numbered[1], *(f"COCO_{split}_{padded}" for split in _COCO_SPLITS), padded]
    return stems
