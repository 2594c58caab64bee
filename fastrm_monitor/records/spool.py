"""A folder where cases wait while the database is away; it outlives the process. Knows no database and no counters.

Each process appends to files of its own, `OWNER.NUMBER.flagged` and `OWNER.NUMBER.sampled` (see `frames`), and holds
the lock `OWNER.lock` while it lives. Files whose lock is free were left by a process that ended: whoever gets the lock
takes them over. `OWNER.traffic` holds the counts that the database lacks. A record is marked after it was delivered,
so that a crash in between delivers it again; cases and counts are such that this changes nothing. Its space is freed
with its file's.

The operating system keeps what was written when the process dies, not when the power fails: nothing waits for the disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_state_path

from fastrm_monitor.records.forks import renew_in_child
from fastrm_monitor.records.frames import HEADER, frame, records
from fastrm_monitor.records.segments import DAMAGED, Segment, write_new

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk, which fewer records would mend."""

_BLOCK = 1 << 13
"""Bytes that are freed at once on a full disk, which frees whole blocks only."""

_LOOK_SECONDS = 1.0
"""How long the size of other processes' files is believed."""


@dataclass(frozen=True, eq=False)
class Lent:
    """Records to deliver: payloads, None for a damaged one. `Spool.done` or `Spool.keep` ends it."""

    segment: Segment
    payloads: list[bytes | None]


class Spool:
    """Records on disk, for one database; safe for threads, and for processes that share the folder.

    Nothing is made before the first record. A forked child has a spool of its own in the same folder.

    Args:
        folder: made when it is needed, for the owner only.
        limit: bytes that all files in the folder may have; beyond it unflagged records go first, the newest first.
        parents: whether the folders above may be made, too.
    """

    def __init__(self, folder: Path, limit: int, *, parents: bool = True) -> None:
        self.folder, self._limit, self._parents = folder, limit, parents
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Begin empty: the parent's files are the parent's."""
        self._lock = threading.RLock()
        self._owner = ""
        self._segments: list[Segment] = []  # in order of age
        self._locks: dict[str, FileLock] = {}  # of the owners whose files are ours
        self._number = 0
        self._others = (-_LOOK_SECONDS, 0)  # when it was looked, bytes

    @property
    def waiting(self) -> int:
        """Records of this process, adopted ones included, that are not delivered."""
        with self._lock:
            return sum(segment.waiting for segment in self._segments)

    def add(self, payload: bytes, *, flagged: bool) -> tuple[bool, int]:
        """Append a record; where there is no room, under the cap or on the disk, unflagged ones make it for a flagged.

        Returns:
            Whether it was taken, and how many unflagged ones it drove out.

        Raises:
            OSError: the folder or the file cannot be written; nothing was taken, and nothing driven out.
        """
        data = frame(payload)
        with self._lock:
            self._make_folder()
            driven_out = 0
            room = self._limit - self._used() - len(data) - len(HEADER)
            if room < 0 and (not flagged or room + self._droppable() < 0):
                return False, 0
            while room < 0:
                room += self._drop_newest()
                driven_out += 1
            if not flagged:
                self._append(data, flagged)
                return True, 0
            taken, more = self._making_room(lambda: self._append(data, flagged), len(data), driven_out > 0)
            return taken, driven_out + more

    def lend(self, most: int = 64, most_bytes: int = 8 << 20) -> Lent | None:
        """The oldest records, flagged ones first, those of one file; None when nothing waits."""
        with self._lock:
            waiting = [segment for segment in self._segments if segment.waiting]
            if not waiting:
                return None
            segment = min(waiting, key=lambda one: not one.flagged)
            return Lent(segment, segment.lend(most, most_bytes))

    def done(self, lent: Lent) -> bool:
        """The lent records need no delivery any more; False when the spool was closed: others deliver them again."""
        with self._lock:
            segment = lent.segment
            if segment not in self._segments:
                return False
            segment.finish()
            if not segment.waiting:
                self._remove(segment)
            return True

    def keep(self, lent: Lent) -> None:
        """The lent records could not be delivered and go on waiting."""
        with self._lock:
            lent.segment.lent = 0

    def adopt(self) -> int:
        """Take over what processes left that have ended; returns the number of their records."""
        with self._lock:
            if not self.folder.is_dir():
                return 0
            taken = 0
            paths = [path for path in self.folder.iterdir() if path.suffix != DAMAGED]
            for owner in sorted({path.name.split(".")[0] for path in paths} - self._locks.keys()):
                if self._take(owner):
                    with suppress(OSError):
                        (self.folder / f"{owner}.new").unlink()
                    for path in sorted(self.folder.glob(f"{owner}.*.*")):
                        segment = Segment.left_behind(path, owner)
                        if segment is not None:
                            self._segments.append(segment)
                            taken += segment.waiting
                    self._forget(owner)
            self._segments.sort(key=lambda one: one.path.name)  # begins with the time
            return taken

    def has_others(self) -> bool:
        """Whether there are files of others, living or not; a look that locks and changes nothing."""
        try:
            names = os.listdir(self.folder)
            owners = {name.split(".")[0] for name in names if not name.endswith((".lock", DAMAGED))}
        except OSError:  # there is no folder yet
            return False
        with self._lock:
            return bool(owners - self._locks.keys())

    def close(self) -> None:
        """Let go of the files, so that another process may take them over; idempotent."""
        with self._lock:
            for owner in list(self._locks):
                self._forget(owner)
            for lock in self._locks.values():
                lock.release()
            self.after_fork()

    # --- traffic counts -------------------------------------------------------------------------------------------

    def save_traffic(self, payload: bytes) -> tuple[bool, int]:
        """Keep the counts that the database lacks, in place of those kept before.

        Returns:
            Whether they were taken, and how many unflagged records they drove out.

        Raises:
            OSError: see `add`.
        """
        data = HEADER + frame(payload)
        with self._lock:
            self._make_folder()
            return self._making_room(lambda: write_new(self._traffic_of(self._own()), data), len(data))

    def traffic(self) -> Iterator[tuple[str, bytes | None]]:
        """(owner, counts) of the processes that were taken over; None for counts that are damaged."""
        with self._lock:
            owners = [owner for owner in self._locks if owner != self._owner]
        for owner in owners:
            try:
                data = self._traffic_of(owner).read_bytes()
            except OSError:
                continue
            yield owner, next((payload for _, payload in records(data)), None) if data.startswith(HEADER) else None

    def drop_traffic(self, owner: str | None = None) -> None:
        """The database has the counts of this owner; None is this process."""
        with self._lock:
            owner = owner or self._owner
            with suppress(OSError):
                self._traffic_of(owner).unlink()
            self._forget(owner)

    # --- with the lock held ---------------------------------------------------------------------------------------

    def _traffic_of(self, owner: str) -> Path:
        return self.folder / f"{owner}.traffic"

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            if self._parents:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "geteuid"):
            about = self.folder.stat()
            if about.st_uid != os.geteuid():
                raise PermissionError(f"the spool {self.folder} belongs to somebody else")
            if about.st_mode & 0o077:
                self.folder.chmod(0o700)

    def _own(self) -> str:
        """The name of this process's files, locked."""
        old = self._owner
        if old and not Path(self._locks[old].lock_file).exists():  # others would take this process for ended
            self._owner = ""
            self._forget(old)
        for _ in range(3):  # somebody may look into the lock between its making and its locking
            if self._owner:
                break
            owner = f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._owner = owner if self._take(owner) else ""
        if not self._owner:
            raise OSError(f"the spool {self.folder} cannot be locked")
        return self._owner

    def _take(self, owner: str) -> bool:
        lock = FileLock(self.folder / f"{owner}.lock", mode=0o600, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except (Timeout, OSError):
            return False
        self._locks[owner] = lock
        return True

    def _forget(self, owner: str) -> None:
        """Let an owner go that has no file left for us."""
        if owner not in self._locks or any(segment.owner == owner for segment in self._segments):
            return
        if self._traffic_of(owner).exists():
            return
        lock = self._locks.pop(owner)
        if not any(self.folder.glob(f"{owner}.*.*")):  # files of a later version stay, with their lock
            with suppress(OSError):
                Path(lock.lock_file).unlink()  # while it is held; whoever opened it meanwhile finds no files
        lock.release()
        if owner == self._owner:
            self._owner = ""

    def _used(self) -> int:
        """Bytes in the folder: our own files exactly, those of others as they were a moment ago."""
        looked, others = self._others
        if time.monotonic() - looked >= _LOOK_SECONDS:
            own, others = {segment.path.name for segment in self._segments}, 0
            for entry in os.scandir(self.folder):
                with suppress(OSError):
                    others += 0 if entry.name in own else entry.stat().st_size
            self._others = (time.monotonic(), others)
        return others + sum(segment.size for segment in self._segments)

    def _open_segment(self, flagged: bool, length: int) -> Segment:
        owner = self._own()
        for segment in reversed(self._segments):
            if segment.owner == owner and segment.flagged == flagged:
                if segment.has_room(length):
                    return segment
                break
        self._number += 1
        kind = "flagged" if flagged else "sampled"
        self._segments.append(Segment(self.folder / f"{owner}.{self._number:08d}.{kind}", owner))
        return self._segments[-1]

    def _making_room(self, write: Callable[[], None], size: int, counted: bool = False) -> tuple[bool, int]:
        """Write, on a full disk in the place of the newest unflagged records; whether it was, and of how many.

        Raises:
            OSError: it was not, and nothing was driven out, now or (`counted`) before.
        """
        driven_out = 0
        while True:
            try:
                write()
            except OSError as error:
                if error.errno not in NO_ROOM or not self._droppable():
                    if driven_out or counted:
                        return False, driven_out
                    raise
                freed = 0
                while freed < size + _BLOCK and self._droppable():
                    freed += self._drop_newest()
                    driven_out += 1
            else:
                return True, driven_out

    def _append(self, data: bytes, flagged: bool) -> None:
        while True:
            segment = self._open_segment(flagged, len(data))
            try:
                segment.append(data)
            except OSError as error:
                # A file that may not grow further is full, as others are at their own limit: a new one has room. One
                # that somebody deleted is followed by a new one, too.
                if error.errno not in (errno.EFBIG, errno.ENOENT) or not segment.ends:
                    raise
                self._make_folder()
            else:
                return
            finally:
                if not segment.ends:
                    self._remove(segment)

    def _droppable(self) -> int:
        return sum(segment.droppable for segment in self._segments)

    def _drop_newest(self) -> int:
        """Drop the newest unflagged record; returns its bytes."""
        segment = next(one for one in reversed(self._segments) if one.droppable)
        size = segment.drop_newest()
        if not segment.waiting:
            self._remove(segment)
        return size

    def _remove(self, segment: Segment) -> None:
        self._segments.remove(segment)
        segment.remove()
        self._forget(segment.owner)


def spool_for(url: str, path: Path | None, *, folder: str | None, megabytes: int) -> Spool | None:
    """The spool of a store; None when there shall be none.

    Args:
        url: of the store, without its password and always written in the same way.
        path: the store's SQLite file, beside which the spool lies by default; other stores' lie in the user's state
            folder.
        folder: where spools lie instead, each in a folder of its own.
        megabytes: MiB that it may take; 0 for no spool.
    """
    if not megabytes:
        return None
    if folder is None and path is not None:
        return Spool(Path(f"{path}.spool"), megabytes << 20, parents=False)
    above = user_state_path("fastrm-monitor", appauthor=False) / "spool" if folder is None else Path(folder).absolute()
    return Spool(above / hashlib.sha256(url.encode()).hexdigest()[:16], megabytes << 20)
