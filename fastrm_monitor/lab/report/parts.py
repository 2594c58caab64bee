"""Finished parts of an evaluation on disk, so that a run that was broken off goes on where it stopped.

A part is one section of one data set. It is put in place whole, with a key of all that it depends on, and counts only
for a run with the same key.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastrm_monitor.errors import FastRMError


class Parts:
    """The parts of one output folder.

    Args:
        folder: made when it does not exist.
        facts: what every part of this run depends on, JSON values.

    Raises:
        FastRMError: the folder cannot be made.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder, self._facts = folder, dict(facts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastRMError(f"{folder} cannot be made ({error.strerror}): choose another --output.") from None

    def get(self, data: str, section: str, make: Callable[[], Any], **options: Any) -> Any:
        """The part as an earlier run left it, else made now and kept.

        Args:
            data: name of the data set.
            section: name of the section.
            make: gives the part, JSON values.
            **options: what this part depends on beside the run's facts, JSON values.

        Raises:
            FastRMError: it cannot be written.
        """
        # Through JSON and back, as the file's key was: tuples become lists.
        key = json.loads(json.dumps({**self._facts, "data": data, "section": section, **options}, sort_keys=True))
        path = self._path(data, section)
        kept = _read(path)
        if kept is not None and kept["key"] == key:
            return kept["value"]
        value = json.loads(json.dumps(make(), allow_nan=False))
        self._write(path, {"key": key, "value": value})
        return value

    def _path(self, data: str, section: str) -> Path:
        # Names of data may hold anything; the checksum keeps those apart that look alike once it is taken out.
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", data).strip(".-")[:60]
        return self._folder / f"{plain}-{zlib.crc32(data.encode()):08x}-{section}.json"

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            part.write_text(json.dumps(content), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise FastRMError(f"{path} cannot be written ({error.strerror}): choose another --output.") from None


def _read(path: Path) -> dict[str, Any] | None:
    """A part's key and value; None when there is none, or it cannot be used."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and {"key", "value"} <= set(found) else None
