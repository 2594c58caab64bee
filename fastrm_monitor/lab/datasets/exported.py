"""Rows of JSON lines, and of what `fastrm-monitor export` wrote in any of its formats; one row at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastrm_monitor.errors import DataError, MissingExtraError
from fastrm_monitor.lab.datasets.json_stream import json_lines
from fastrm_monitor.records.export import FILES

_PART = 256  # rows of a Parquet file in memory at once


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row) of every row, alike from every format; docs/dashboard.md describes those of an export.

    Args:
        path: a file of JSON lines, a Parquet file, or a folder that `export` wrote.

    Raises:
        DataError: there is no such file, or it is damaged.
        MissingExtraError: a Parquet file without pyarrow.
    """
    if path.is_dir():
        path = _file_in(path)
    if path.suffix == ".parquet":
        yield from _parquet(path)
    else:
        for number, row in json_lines(path):
            yield number, _named(row) if path.name == FILES["datasets"] else row


def _file_in(folder: Path) -> Path:
    for name in FILES.values():
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} is not an export: it has none of {', '.join(FILES.values())}.")


def _named(row: dict[str, Any]) -> dict[str, Any]:
    """In the form of `datasets` the picture is called `file_name`."""
    return {**row, "image": row.get("file_name")} if row.get("asked") else {**row, "image": None}


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtraError("Parquet", "export") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PART):
                for row in batch.to_pylist(maps_as_pydicts="strict"):
                    number += 1
                    yield number, row
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    # Columns of one name twice are a KeyError, maps with a key twice a ValueError.
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:160].rstrip(". ")
        raise DataError(f"{path} cannot be read as Parquet: {reason}.") from None
