"""Cases as files that other tools read: JSON lines, Parquet or a folder for Hugging Face `datasets`, with pictures.

One row a case, with the newest verdict. The store is read in small parts, so that its size does not matter. What a row
has is described in docs/dashboard.md; `lab.datasets.exported` reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import selectinload

from fastrm_monitor.errors import DataError, MissingExtraError
from fastrm_monitor.records.images import unpack_map
from fastrm_monitor.records.models import Case, CasePicture
from fastrm_monitor.records.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["jsonl", "parquet", "datasets"]
FORMATS: tuple[str, ...] = get_args(Format)
FILES: dict[str, str] = {"jsonl": "cases.jsonl", "parquet": "cases.parquet", "datasets": "metadata.jsonl"}
"""The file with the rows, by format; the name `metadata.jsonl` is what `datasets` looks for beside pictures."""

IMAGES = "images"
"""Name of the folder of pictures."""

RIGHT = {"correct": True, "wrong": False}
"""What a verdict says of the answer; the others leave it open."""

Row = dict[str, Any]

_PART = 64  # cases in memory at once; each may have a picture of a megabyte
_SUFFIX = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


def count(store: Store, *, labelled: bool = True, since: datetime | None = None) -> int:
    """How many cases an export has.

    Raises:
        StoreError: the database failed.
    """
    with store.session() as session:
        return session.scalar(select(func.count()).select_from(Case).where(*_wanted(labelled, since))) or 0


def picture_bytes(store: Store, *, labelled: bool = True, since: datetime | None = None) -> int:
    """About how many bytes of pictures an export has.

    Raises:
        StoreError: the database failed.
    """
    with store.session() as session:
        joined = select(func.sum(func.length(CasePicture.content))).join(CasePicture.case)
        return session.scalar(joined.where(*_wanted(labelled, since))) or 0


def rows(
    store: Store, keep: Callable[[str, bytes], None], *, labelled: bool = True, since: datetime | None = None
) -> Iterator[Row]:
    """The rows of an export, oldest first.

    Args:
        store: where the cases are.
        keep: told the path and the bytes of each picture before the row that names it; of one that several cases have,
            each time.
        labelled: cases with a verdict only.
        since: cases answered at that time or later.

    Raises:
        StoreError: the database failed.
    """
    last = 0
    while True:
        with store.session() as session:
            found = session.scalars(
                select(Case)
                .where(Case.id > last, *_wanted(labelled, since))
                .order_by(Case.id)
                .limit(_PART)
                .options(selectinload(Case.pictures), selectinload(Case.reviews))
            ).all()
        for case in found:
            yield _row(case, keep)
        if len(found) < _PART:
            return
        last = found[-1].id


def write(
    store: Store,
    output: Path,
    form: str = "jsonl",
    *,
    labelled: bool = True,
    since: datetime | None = None,
    wrote: Callable[[], None] = lambda: None,
) -> int:
    """Write an export into a new folder.

    Args:
        store: where the cases are.
        output: the folder; made when it is not there, and empty otherwise.
        form: one of `FORMATS`. In the form of `datasets` every row is a picture, so cases without one are left out.
        labelled: see `rows`.
        since: see `rows`.
        wrote: called after each case.

    Returns:
        How many cases were written.

    Raises:
        DataError: there is no such form, no case, or the folder is not empty or cannot be written.
        MissingExtraError: Parquet without pyarrow.
        StoreError: the database failed.
    """
    if form not in FORMATS:
        raise DataError(f"There is no format {form!r}: choose {', '.join(FORMATS)}.")
    written = 0
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise DataError(f"{output} is not an empty folder: choose another, so that no older export is mixed in.")
        (output / IMAGES).mkdir(parents=True, exist_ok=True)
        path = output / FILES[form]
        part = path.with_name(f"{path.name}.part")
        with _open(part, form) as add:
            for row in rows(store, _keeper(output), labelled=labelled, since=since):
                shown = _pictured(row) if form == "datasets" else row
                if shown is None:
                    continue
                add(shown)
                written += 1
                wrote()
        if written:
            part.replace(path)
            return written
        part.unlink()
        (output / IMAGES).rmdir()
    except OSError as error:
        raise DataError(f"{output} cannot be written: {error.strerror or error}.") from None
    what = ("case with a verdict" if labelled else "case") + (" and a stored picture" if form == "datasets" else "")
    raise DataError(f"The store {store.safe_url} has no {what}{'' if since is None else ' in that time'} to export.")


def zipped(store: Store, *, labelled: bool = True, since: datetime | None = None) -> bytes:
    """An export as JSON lines with its pictures, as one ZIP file in memory; `picture_bytes` says how large it gets.

    Raises:
        StoreError: the database failed.
    """
    buffer = BytesIO()
    known: set[str] = set()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:

        def keep(file: str, content: bytes) -> None:
            if file not in known:
                known.add(file)
                archive.writestr(file, content, ZIP_STORED)  # pictures are compressed already

        lines = [line(row) for row in rows(store, keep, labelled=labelled, since=since)]
        archive.writestr(FILES["jsonl"], "".join(f"{one}\n" for one in lines))
    return buffer.getvalue()


def line(row: Row) -> str:
    """A row as a line of JSON, without a line break."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _wanted(labelled: bool, since: datetime | None) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = []
    if labelled:
        wanted.append(Case.verdict.is_not(None))
    if since is not None:
        wanted.append(Case.created_at >= since)
    return wanted


def _row(case: Case, keep: Callable[[str, bytes], None]) -> Row:
    newest = case.reviews[-1] if case.verdict is not None and case.reviews else None
    pictures = [_picture(one, keep) for one in case.pictures]
    # The lab asks about one picture with text in both places; other cases are of use to calibration alone.
    asked = len(pictures) == 1 and bool(case.question.strip()) and bool(case.answer.strip())
    return {
        "id": case.case_id,
        "image": pictures[0]["file"] if asked else None,
        "question": case.question,
        "answer": case.answer,
        "right": RIGHT.get(case.verdict or ""),
        "group": "flagged" if case.flagged else "not flagged",
        "verdict": case.verdict,
        "tags": [] if newest is None else [str(tag) for tag in newest.tags],
        "note": "" if newest is None else newest.note,
        "reviewer": None if newest is None else newest.reviewer,
        "reviewed_at": None if newest is None else _time(newest.created_at),
        "created_at": _time(case.created_at),
        "confidence": case.confidence,
        "calibrated": case.calibrated,
        "threshold": case.threshold,
        "entropy": case.entropy,
        "features": case.features,
        "flagged": case.flagged,
        "reason": case.reason,
        "sampled": case.sampled,
        "sample_rate": case.sample_rate,
        "model": case.model,
        "server": case.server,
        "proxy_version": case.proxy_version,
        "policy": case.policy,
        "library_version": case.library_version,
        "request_id": case.request_id,
        "trace_id": case.trace_id,
        "sha256": case.pictures[0].sha256 if case.pictures else None,
        "pictures": pictures,
    }


def _picture(stored: CasePicture, keep: Callable[[str, bytes], None]) -> Row:
    file = None
    if stored.content is not None:
        # By what is stored: of one picture there may be a thumbnail and the whole.
        name = f"{stored.sha256 or stored.case_key}-{len(stored.content)}"
        file = f"{IMAGES}/{name}.{_SUFFIX.get(stored.media_type or '', 'png')}"
        keep(file, stored.content)
    values = unpack_map(stored.relevance, stored.rows, stored.columns)
    return {
        "file": file,
        "sha256": stored.sha256,
        "width": stored.width,
        "height": stored.height,
        "region": [float(edge) for edge in stored.region],
        "map": [[round(float(value), 4) for value in line] for line in values],  # float16 has three digits
    }


def _time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()


def _keeper(output: Path) -> Callable[[str, bytes], None]:
    def keep(file: str, content: bytes) -> None:
        path = output / file
        if not path.exists():
            path.write_bytes(content)

    return keep


def _pictured(row: Row) -> Row | None:
    """A row as `datasets` wants it: `image` is what it makes of the file named first, so no column may be called so."""
    files = [picture["file"] for picture in row["pictures"] if picture["file"] is not None]
    if not files:
        return None
    rest = {name: value for name, value in row.items() if name != "image"}
    return {"file_name": files[0], "asked": row["image"] is not None, **rest}


@contextmanager
def _open(path: Path, form: str) -> Iterator[Callable[[Row], None]]:
    """A function that adds a row to a file."""
    if form == "parquet":
        with _parquet(path) as add:
            yield add
        return
    with path.open("w", encoding="utf-8") as file:
        yield lambda row: print(line(row), file=file)


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[Row], None]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtraError("Parquet", "export") from None
    schema = _schema()
    waiting: list[Row] = []
    with parquet.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting.clear()

        def add(row: Row) -> None:
            waiting.append({**row, "features": list(row["features"].items())})
            if len(waiting) == 8 * _PART:
                flush()

        yield add
        flush()


def _schema() -> pa.Schema:
    import pyarrow as pa

    text, real, flag, time = pa.string(), pa.float64(), pa.bool_(), pa.string()
    picture = pa.struct(
        {
            "file": text,
            "sha256": text,
            "width": pa.int32(),
            "height": pa.int32(),
            "region": pa.list_(real),
            "map": pa.list_(pa.list_(pa.float32())),
        }
    )
    return pa.schema(
        {
            "id": text,
            "image": text,
            "question": text,
            "answer": text,
            "right": flag,
            "group": text,
            "verdict": text,
            "tags": pa.list_(text),
            "note": text,
            "reviewer": text,
            "reviewed_at": time,
            "created_at": time,
            "confidence": real,
            "calibrated": flag,
            "threshold": real,
            "entropy": real,
            "features": pa.map_(text, real),
            "flagged": flag,
            "reason": text,
            "sampled": flag,
            "sample_rate": real,
            "model": text,
            "server": text,
            "proxy_version": text,
            "policy": pa.int64(),
            "library_version": text,
            "request_id": text,
            "trace_id": text,
            "sha256": text,
            "pictures": pa.list_(picture),
        }
    )
