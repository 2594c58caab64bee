"""`fastrm-monitor db check`: whether a store is whole, what it holds, and what waits beside it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, func, inspect, select, text

from fastrm_monitor.config import Settings
from fastrm_monitor.errors import StoreError
from fastrm_monitor.records import schema
from fastrm_monitor.records.engine import check_exists, file_of, one_sentence, open_engine, read_url, safe_url
from fastrm_monitor.records.frames import decode_case, delivered, records
from fastrm_monitor.records.models import Base, Case, CasePicture, Claim, Review
from fastrm_monitor.records.segments import DAMAGED, of_later_version
from fastrm_monitor.records.spool import spool_for
from fastrm_monitor.records.store import Store

_MOST_FAULTS = 5  # that are shown of one kind


@dataclass(frozen=True)
class Finding:
    """One line of the report: `right` is False for what must be mended, and the text says how."""

    text: str
    right: bool = True


@dataclass(frozen=True)
class Waiting:
    """What a spool holds: `cases` at most, since a file goes only when all of its cases are written.

    Of its files, `unreadable` bytes are no cases: damaged ones, or the half of one that a process died over.
    """

    folder: Path
    cases: int
    damaged: int
    unreadable: int
    oldest: datetime | None


def check(url: str, settings: Settings) -> Iterator[Finding]:
    """Look at a store; where one finding says that it cannot be used, nothing follows.

    Args:
        url: of the store.
        settings: say where its spool is.
    """
    try:
        check_exists(url)
        yield Finding(f"store: {safe_url(read_url(url))}")
        revision = schema.current(url)
        if revision is None:
            yield Finding("schema: none yet; make it with `fastrm-monitor db upgrade`, or serve with the store", False)
            return
        with Store(url) as store:  # refuses another schema than this version's, and says what to do
            yield Finding(f"schema: {revision}, which is this version's")
            yield from _structure(url)
            yield from _contents(store)
            waiting = spooled(store, settings)
    except StoreError as error:
        yield Finding(str(error), False)
        return
    if waiting is None:
        return
    oldest = "" if waiting.oldest is None else f", the oldest of {_minute(waiting.oldest)}"
    yield Finding(f"spool: {waiting.cases} cases wait in {waiting.folder}{oldest}")
    if waiting.cases:
        yield Finding("  they are written by a running server, or by the next one with this store and spool")
    if waiting.damaged:
        yield Finding(f"  {waiting.damaged} of them are damaged, and are counted as lost when they are read")
    if waiting.unreadable:
        yield Finding(f"  {waiting.unreadable} bytes of its files cannot be read")


def spooled(store: Store, settings: Settings) -> Waiting | None:
    """What waits on this machine for a store; None where nothing ever did. Reads, and takes nothing over."""
    spool = spool_for(store.url, store.path, folder=settings.spool, megabytes=settings.spool_mb)
    if spool is None or not spool.folder.is_dir():
        return None
    cases, damaged, unreadable, times = 0, 0, 0, []
    for path in (path for kind in ("flagged", "sampled") for path in spool.folder.glob(f"*.{kind}")):
        try:
            data = path.read_bytes()
        except OSError:  # written meanwhile, or not ours to read
            continue
        if of_later_version(data):
            continue
        at = delivered(data)
        for end, payload in records(data):
            cases += 1
            unreadable += end - at if payload is None else 0
            at = end
            try:
                times.append(decode_case(payload or b"").created_at)
            except ValueError:
                damaged += 1
        unreadable += max(len(data) - at, 0)
    for path in spool.folder.glob(f"*{DAMAGED}"):
        with suppress(OSError):
            unreadable += path.stat().st_size
    return Waiting(spool.folder, cases, damaged, unreadable, min(times, default=None))


def _structure(url: str) -> Iterator[Finding]:
    parsed = read_url(url)
    engine = open_engine(parsed)
    try:
        with one_sentence(parsed, "read"), engine.connect() as connection:
            lacking = _lacking(connection)
            if lacking:
                yield Finding(f"indices: {', '.join(lacking)} lacking: restore them, or the dashboard is slow", False)
            faults = list(_faults(connection))
            for fault in faults:
                yield Finding(fault, False)
            if not faults:
                yield Finding("integrity: every picture, review and claim has its case")
            yield Finding(f"size: {_size(connection, file_of(parsed))}")
    finally:
        engine.dispose()


def _lacking(connection: Connection) -> list[str]:
    inspector = inspect(connection)
    return sorted(
        str(index.name)
        for table in Base.metadata.sorted_tables
        for index in table.indexes
        if index.name not in {one["name"] for one in inspector.get_indexes(table.name)}
    )


def _faults(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        said = [row[0] for row in connection.execute(text(f"PRAGMA integrity_check({_MOST_FAULTS})"))]
        if said != ["ok"]:
            yield f"integrity: SQLite says {'; '.join(said)}: restore the file from a backup"
            return
    for table in (CasePicture, Review, Claim):
        stray = select(func.count()).select_from(table).outerjoin(Case, Case.id == table.case_key)
        count = connection.scalar(stray.where(Case.id.is_(None)))
        if count:
            yield f"integrity: {count} rows of {table.__tablename__} have no case: restore the database from a backup"


def _size(connection: Connection, path: Path | None) -> str:
    if connection.dialect.name == "postgresql":
        tables = [func.pg_total_relation_size(name) for name in Base.metadata.tables]
        return _megabytes(sum(connection.execute(select(*tables)).one()))
    page, pages, free = (
        connection.scalar(text(f"PRAGMA {name}")) or 0 for name in ("page_size", "page_count", "freelist_count")
    )
    log = Path(f"{path}-wal")
    beside = log.stat().st_size if path is not None and log.exists() else 0
    return f"{_megabytes(page * pages + beside)}, of which {_megabytes(page * free)} are free for new rows"


def _contents(store: Store) -> Iterator[Finding]:
    with store.session() as session:
        counts = {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in Base.metadata.tables.items()
        }
        low, high = session.execute(select(func.min(Case.created_at), func.max(Case.created_at))).one()
    yield Finding("rows: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    if low is not None:
        yield Finding(f"cases: from {_minute(low)} to {_minute(high)}")


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _minute(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
