"""What every data set that is read from files is: rows, each a tenth of its JSON, and a folder of pictures."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.files import find_picture, find_pictures, shown
from fastrm_monitor.records.images import load_picture
from fastrm_monitor.types import Region

if TYPE_CHECKING:
    from PIL.Image import Image

_LOOKED_FOR = 500
"""Questions whose pictures are looked for at once: a wrong folder is noticed before an hour of work."""


class Row(NamedTuple):
    """What is kept of a question; `picture` is an id or a path below the folder, the rest as in `Sample`.

    Loaders intern what repeats (pictures, answers, groups): a train split then takes a few hundred bytes a question.
    """

    id: str
    picture: str
    question: str
    answers: tuple[str, ...]
    group: str
    boxes: tuple[Region, ...] = ()


class FileSet:
    """A data set without its rule of what is right: each form adds its own.

    Args:
        form: short name of the form.
        source: the questions file, or its folder.
        images: folder of the pictures; found by id or name, whatever the common extension.
        rows: the questions; read only when the folder is there.

    Raises:
        DataError: there is no folder, no question, two questions of one id, or not one picture of the first questions.
    """

    def __init__(self, form: str, source: Path, images: Path, rows: Iterable[Row]) -> None:
        if not images.is_dir():
            raise DataError(f"There is no folder of pictures at {images}.")
        self._images, self._rows = images, list(_unlike(rows, source))
        if not self._rows:
            raise DataError(f"{source} holds no questions.")
        # The pictures too: labels of those that lay there before, or in another folder, must not be taken for these.
        folder = _first_picture(images, self._rows).parent
        mark = zlib.crc32(str(folder.resolve()).encode(errors="surrogateescape"))
        for row in self._rows:
            mark = zlib.crc32(repr(row).encode(errors="surrogatepass"), mark)
        for picture, file in self._files():
            state = _state(file)
            own = f"{picture} {state.st_size} {state.st_mtime_ns}" if state else f"{picture} missing"
            mark = zlib.crc32(own.encode(errors="surrogatepass"), mark)
        self.name = f"{form}-{source.stem[:80]}-{len(self._rows)}-{mark:08x}"

    def files(self) -> Iterator[os.DirEntry[str]]:
        """The file of every picture that is there, once each."""
        return (file for _, file in self._files() if file is not None)

    def _files(self) -> Iterator[tuple[str, os.DirEntry[str] | None]]:
        return find_pictures(self._images, dict.fromkeys(row.picture for row in self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        for row in self._rows:
            yield Sample(
                id=row.id,
                picture_id=row.picture,
                picture=partial(_load, self._images, row.picture),
                question=row.question,
                answers=row.answers,
                group=row.group,
                boxes=row.boxes,
            )

    def origin(self, picture_id: str) -> str:
        """Where its file lies below the folder, and the file's bytes: files of one name may be of different sets."""
        path = find_picture(self._images, picture_id)
        return f"{path.relative_to(self._images).as_posix()}, {path.stat().st_size} bytes"


def _unlike(rows: Iterable[Row], source: Path) -> Iterator[Row]:
    """The rows, as long as no id comes twice: answers are kept and looked up by it."""
    known: set[str] = set()
    for row in rows:
        if row.id in known:
            raise DataError(
                f"{source} has two questions of the id {shown(row.id)}: if it was put together from several files, "
                "give each of them by a --questions of its own."
            )
        known.add(row.id)
        yield row


def _state(file: os.DirEntry[str] | None) -> os.stat_result | None:
    try:
        return None if file is None else file.stat()
    except OSError:  # gone since the folder was read
        return None


def _first_picture(images: Path, rows: list[Row]) -> Path:
    refused: DataError | None = None
    for picture in dict.fromkeys(row.picture for row in rows[:_LOOKED_FOR]):
        try:
            return find_picture(images, picture)
        except DataError as error:
            refused = refused or error
    assert refused is not None  # noqa: S101 - there is a row
    raise refused


def _load(images: Path, picture: str) -> Image:
    return load_picture(find_picture(images, picture))
