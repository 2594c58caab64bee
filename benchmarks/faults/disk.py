"""A small disk that really fills up: a tmpfs, where this process may mount one."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SmallDisk:
    """A mounted tmpfs.

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def used(self) -> int:
        """Bytes."""
        about = os.statvfs(self.folder)
        return (about.f_blocks - about.f_bfree) * about.f_frsize

    def resize(self, size: int) -> None:
        """Have it hold `size` bytes, not fewer than are used."""
        _run("mount", "-o", f"remount,size={size // 1024}k", str(self.folder))


@contextmanager
def small_disk(folder: Path, size: int, owner: str | None = None) -> Iterator[SmallDisk | None]:
    """A disk of `size` bytes; None where none can be mounted.

    Args:
        folder: where it is mounted; made.
        size: bytes.
        owner: name of the user whose it is.
    """
    folder.mkdir(mode=0o755)
    options = f"size={size // 1024}k" + (f",uid={pwd.getpwnam(owner).pw_uid},mode=700" if owner else "")
    try:
        _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    try:
        yield SmallDisk(folder)
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
