"""One file of the spool: records are appended, read from the front, and taken off the end. Knows nothing of the others.

What a file holds is known from its index in memory; a file that was left behind is read once to make it.
"""

from __future__ import annotations

import logging
import os
from array import array
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fastrm_monitor.records.frames import HEADER, delivered, delivered_mark, records

_MOST_BYTES = 4 << 20
"""A longer file gets no more records: space is freed file by file."""

DAMAGED = ".damaged"
"""The end of the name of a file of which nothing can be read: kept, and read by nobody."""

logger = logging.getLogger(__name__)

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@dataclass(eq=False)
class Segment:
    """A file of records.

    Attributes:
        path: ends in ".flagged" or ".sampled".
        owner: the process that wrote it.
        ends: positions where its records end.
        done: the first so many need no delivery any more.
        lent: so many after those are being delivered.
        full: it gets no more records.
    """

    path: Path
    owner: str
    ends: array[int] = field(default_factory=lambda: array("Q"))  # a list of as many takes five times the memory
    done: int = 0
    lent: int = 0
    full: bool = False

    @classmethod
    def left_behind(cls, path: Path, owner: str) -> Segment | None:
        """The index of a file; None when it is of a later version, or when it holds nothing and was removed.

        A file of which nothing can be read is renamed to `*.damaged`, and is one record that cannot be read.
        """
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if of_later_version(data):
            return None
        known = data.startswith(HEADER) or HEADER.startswith(data) or delivered(data) > len(HEADER)
        ends, done = array("Q"), 0
        for end, payload in records(data):
            ends.append(end)
            known = known or payload is not None
        if not known:
            return cls._set_aside(path, owner, len(data))
        if ends and delivered(data) > len(HEADER):
            ends.insert(0, delivered(data))  # as one record that needs no delivery
            done = 1
        if ends:
            return cls(path, owner, ends, done, full=True)
        with suppress(OSError):
            path.unlink()
        return None

    @classmethod
    def _set_aside(cls, path: Path, owner: str, size: int) -> Segment | None:
        kept = path.with_name(path.name.replace(".", "-") + DAMAGED)
        try:
            path.replace(kept)
        except OSError:
            return None
        logger.warning(
            "fastrm-monitor: a spool file cannot be read; it is kept as %s, delete it to free its room", kept
        )
        return cls(path, owner, array("Q", [size]), full=True)

    @property
    def flagged(self) -> bool:
        """Whether its records are of flagged answers."""
        return self.path.suffix == ".flagged"

    @property
    def size(self) -> int:
        """Bytes up to the end of its last record."""
        return self._end(len(self.ends))

    @property
    def waiting(self) -> int:
        """Records that are not delivered."""
        return len(self.ends) - self.done

    @property
    def droppable(self) -> int:
        """Bytes of unflagged records that are not being delivered."""
        return 0 if self.flagged else self.size - self._end(self.done + self.lent)

    def has_room(self, length: int) -> bool:
        """Whether a record of so many bytes may be appended."""
        return not self.full and (not self.ends or self.size + length <= _MOST_BYTES)

    def append(self, data: bytes) -> None:
        """Write a record at the end.

        Raises:
            OSError: it could not be written; what was half-written is cut off by the next, or skipped by the reader.
        """
        new = 0 if self.ends else os.O_CREAT
        try:
            descriptor = os.open(self.path, os.O_WRONLY | new | _NO_LINK, 0o600)
            try:
                os.ftruncate(descriptor, self.size if self.ends else 0)
                os.lseek(descriptor, 0, os.SEEK_END)
                write_all(descriptor, data if self.ends else HEADER + data)
            except OSError:  # on a full disk, what was half-written takes the room that others need
                with suppress(OSError):
                    os.ftruncate(descriptor, self.size if self.ends else 0)
                raise
            finally:
                os.close(descriptor)
        except OSError:
            self.full = True  # the next record goes to another file, this one may be gone
            raise
        self.ends.append(self.size + len(data))

    def lend(self, most: int, most_bytes: int) -> list[bytes | None]:
        """The payloads of the next records to deliver, at least one; None for one that is damaged or gone."""
        start = self._end(self.done)
        chosen = self.ends[self.done : self.done + most]
        while len(chosen) > 1 and chosen[-1] - start > most_bytes:
            chosen.pop()
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                found = dict(records(file.read(chosen[-1] - start), 0))
        except OSError:
            found = {}
        self.lent = len(chosen)
        return [found.get(end - start) for end in chosen]

    def finish(self) -> None:
        """What was lent needs no delivery any more, and whoever takes the file over is told so."""
        self.done, self.lent = self.done + self.lent, 0
        if self.waiting:  # else the file goes
            with suppress(OSError):
                descriptor = os.open(self.path, os.O_WRONLY | _NO_LINK)
                try:
                    os.lseek(descriptor, len(HEADER), os.SEEK_SET)
                    write_all(descriptor, delivered_mark(self._end(self.done)))
                finally:
                    os.close(descriptor)

    def drop_newest(self) -> int:
        """Take the last record off; returns its bytes."""
        end = self.ends.pop()
        with suppress(OSError):
            os.truncate(self.path, self.size)
        return end - self.size

    def remove(self) -> None:
        """Delete the file."""
        with suppress(OSError):
            self.path.unlink()

    def _end(self, count: int) -> int:
        return self.ends[count - 1] if count else len(HEADER)


def of_later_version(data: bytes) -> bool:
    """Whether a file's bytes are for a later version of this package to read."""
    return data.startswith(HEADER[:-1]) and len(data) >= len(HEADER) and not data.startswith(HEADER)


def write_new(path: Path, data: bytes) -> None:
    """Write a file for the owner only, in place of one that may be there; a reader finds the old or the new one.

    Raises:
        OSError: it could not be written; the old one is as it was.
    """
    new = path.with_suffix(".new")
    with suppress(FileNotFoundError):
        new.unlink()
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o600)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)
    new.replace(path)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all the bytes; the system may take them in parts.

    Raises:
        OSError: it took no more.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
