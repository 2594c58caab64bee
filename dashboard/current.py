"""The settings as they are now. Reading them takes milliseconds, and every key press asks for them many times."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from fastrm_monitor.config import Settings, load_settings


def settings() -> Settings:
    """What `load_settings` says, read again only after the environment or the file `.env` has changed.

    Raises:
        FastRMError: a setting is not usable.
    """
    environment = tuple(sorted(item for item in os.environ.items() if item[0].upper().startswith("FASTRM_")))
    try:
        file = Path(".env").stat()
    except OSError:
        return _read(environment, None)
    return _read(environment, (file.st_ino, file.st_size, file.st_mtime_ns))


@lru_cache(maxsize=1)
def _read(environment: tuple[tuple[str, str], ...], file: tuple[int, int, int] | None) -> Settings:
    return load_settings()
