"""Taking cases out of spool files, so that a text that was purged does not lie on the disk until a server replays it.

Only files of processes that have ended are rewritten, their lock held, so that no server takes them over meanwhile.
A running server knows the positions in its own files by heart; it reaches the database, and so it writes what waits
within the minute and deletes the files, leaving out what was purged (see `Store.add`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fastrm_monitor.records.frames import HEADER, damaged, decode_case, delivered, records
from fastrm_monitor.records.purge import Selection
from fastrm_monitor.records.segments import of_later_version, write_new

_KINDS = (".flagged", ".sampled")


@dataclass(frozen=True)
class Scrubbed:
    """What became of cases in a spool.

    Attributes:
        removed: cases whose text is gone from the disk's files.
        left: cases that are to be deleted and lie in files of a running server, or in files that cannot be rewritten.
    """

    removed: int = 0
    left: int = 0


def scrub(folder: Path, selection: Selection) -> Scrubbed:
    """Take the cases of a selection out of a spool's files; call it after `purge`, which keeps them out of the store.

    Damaged records stay, since nobody can tell whose they are; a server deletes them with their file.

    Args:
        folder: of the spool; nothing is done where there is none.
        selection: which cases.
    """
    now = datetime.now(UTC)
    removed = left = 0
    paths = sorted(path for path in folder.glob("*.*.*") if path.suffix in _KINDS) if folder.is_dir() else []
    for owner in sorted({path.name.split(".")[0] for path in paths}):
        lock = FileLock(folder / f"{owner}.lock", mode=0o600, thread_local=False)
        ours = False
        with suppress(Timeout, OSError):
            lock.acquire(blocking=False)
            ours = True
        try:
            for path in paths:
                if path.name.split(".")[0] == owner:
                    found = _scrub_file(path, selection, now, ours)
                    removed, left = removed + found.removed, left + found.left
        finally:
            lock.release()
    return Scrubbed(removed, left)


def _scrub_file(path: Path, selection: Selection, now: datetime, ours: bool) -> Scrubbed:
    """Rewrite one file, or when it is not `ours` count only."""
    try:
        data = path.read_bytes()
    except OSError:  # delivered meanwhile
        return Scrubbed()
    if of_later_version(data):
        return Scrubbed()
    kept, wanted = [], 0
    start = delivered(data)  # what lies before goes, whoever's it is
    for end, payload in records(data):
        if payload is not None and _is_in(payload, selection, now):
            wanted += 1
        elif payload is None:
            kept.append(damaged(data[start:end]))  # to be counted even if nothing is left behind it
        else:
            kept.append(data[start:end])  # as it is, checksum included
        start = end
    if not wanted and delivered(data) == len(HEADER):
        return Scrubbed()
    if ours:
        try:
            if kept:
                write_new(path, HEADER + b"".join(kept))
            else:
                path.unlink()
        except OSError:
            return Scrubbed(left=wanted)
        return Scrubbed(removed=wanted)
    return Scrubbed(left=wanted)


def _is_in(payload: bytes, selection: Selection, now: datetime) -> bool:
    try:
        return selection.has(decode_case(payload), now)
    except ValueError:
        return False
