"""Which pictures a proxy was made of, kept in its folder: figures on these say nothing about new pictures.

A picture is known by its file's size and content, so that it is met again in another folder, under another name and in
another form's questions. Drawn scenes have no files and need none: each use has its own seed.
"""

from __future__ import annotations

from hashlib import blake2b, file_digest
from os import DirEntry
from pathlib import Path

import numpy as np

from fastrm_monitor.errors import FastRMError
from fastrm_monitor.lab.datasets.base import Dataset
from fastrm_monitor.lab.datasets.file_set import FileSet
from fastrm_monitor.scoring.checkpoint import ProxyFolder

FILE = "training_pictures.bin"
"""In a proxy folder: 16 bytes for each picture, size and digest of its file, little-endian."""
_RECORD = np.dtype([("size", "<u8"), ("digest", "<u8")])


def remember(folder: Path, dataset: Dataset) -> None:
    """Write into a proxy folder which pictures it was made of; nothing for a data set without files.

    Raises:
        FastRMError: it cannot be written.
    """
    path = folder / FILE
    try:
        if isinstance(dataset, FileSet):
            rows = [(file.stat().st_size, digest) for file in dataset.files() if (digest := _digest(file)) is not None]
            path.write_bytes(np.array(rows, _RECORD).tobytes())
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise FastRMError(f"{path} cannot be written: {error.strerror}.") from None


def pictures_in_training(folder: ProxyFolder, dataset: Dataset) -> int:
    """How many pictures of a data set the proxy is known to have been made of.

    Of a folder that has no record of its pictures only the data set's name is known: all of them, or none.
    """
    known = _read(folder.path / FILE)
    if known is None or not isinstance(dataset, FileSet):
        same = folder.config.training.get("data") == dataset.name
        return len({sample.picture_id for sample in dataset}) if same else 0
    digests: dict[int, set[int]] = {}
    for size, digest in known.tolist():
        digests.setdefault(size, set()).add(digest)
    # Only what has the size of a known one is read.
    return sum(_digest(file) in digests[size] for file in dataset.files() if (size := file.stat().st_size) in digests)


def _read(path: Path) -> np.ndarray | None:
    try:
        return np.frombuffer(path.read_bytes(), _RECORD)
    except (OSError, ValueError):  # none, or part of one
        return None


def _digest(file: DirEntry[str]) -> int | None:
    try:
        with Path(file.path).open("rb") as opened:
            return int.from_bytes(file_digest(opened, lambda: blake2b(digest_size=8)).digest(), "little")
    except OSError:
        return None
