"""The store of cases, reviews and traffic counts: SQLite for one machine, PostgreSQL for many.

The monitor's background thread writes, the dashboard and the command line read. Knows no queue and no engine of models.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from sqlalchemy import Connection, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from fastrm_monitor.errors import StoreError
from fastrm_monitor.records import schema
from fastrm_monitor.records.counters import HOUR_MARK, TrafficRow
from fastrm_monitor.records.engine import (
    StoreAwayError,
    StoreSilentError,
    check_writable,
    file_of,
    for_writing,
    insert_into,
    one_sentence,
    open_engine,
    read_url,
    safe_url,
    usable,
)
from fastrm_monitor.records.forks import TRANSACTIONS, renew_in_child
from fastrm_monitor.records.models import VERDICTS, Case, CasePicture, Purge, Review, Traffic
from fastrm_monitor.records.text import clean_text, digest_of

_NEVER_COMPACTED = timedelta(days=1)
"""Younger counts are in no hour's sum, see `retention.MINUTES_KEPT`; a day is left for clocks that are wrong."""


class ReviewConflict(StoreError):  # noqa: N818  # what the reviewer meets is a conflict
    """Another reviewer was first."""


class Store:
    """A database of cases; may be used by several threads and, each with its own `Store`, by several processes.

    An empty database gets the current schema, also when an SQLite file is deleted and made anew later. A child process
    may use the store of its parent.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        may_be_away: for a server, which writes: a database that cannot be reached now is connected to when it is used,
            one that can only be read is refused.

    Attributes:
        path: the SQLite file; None for other databases.
        told_silent: told when a session met a database that does not answer: for who would ask it next, and would wait
            as long again.

    Raises:
        StoreError: the database cannot be opened, or has another schema than this version's.
        MissingExtraError: PostgreSQL without psycopg.
    """

    def __init__(self, url: str, *, may_be_away: bool = False) -> None:
        self._url = read_url(url)
        path = file_of(self._url)
        self.path = None if path is None else path.absolute()
        with usable(self._url):
            if may_be_away:
                check_writable(self._url)
            self._engine = open_engine(self._url, impatient=may_be_away)
        self.told_silent: Callable[[StoreError], object] = lambda error: None
        self._closed = False
        self._file: tuple[int, int] | None = None  # device and inode of the prepared SQLite file
        self._prepared = False
        self._preparing = threading.RLock()
        try:
            self._prepare()
        except BaseException as error:
            if not (may_be_away and isinstance(error, StoreAwayError)):
                self._engine.dispose()
                raise
        renew_in_child(self)

    @property
    def url(self) -> str:
        """The URL with its driver and without its password; the same for every way to write it."""
        return safe_url(self._url if self.path is None else self._url.set(database=str(self.path)))

    @property
    def safe_url(self) -> str:
        """The URL without its password."""
        return safe_url(self._url)

    @property
    def reached(self) -> bool:
        """Whether the database was reached and has the current schema."""
        return self._prepared

    @contextmanager
    def session(self, *, write: bool = False, patience: float | None = None) -> Iterator[Session]:
        """A SQLAlchemy session: to read, or with `write` one transaction that is committed at the end.

        What it returned stays readable after it is closed.

        Args:
            write: whether something is to be changed.
            patience: seconds that a writer waits for the locks of others; None is the database's default.

        Raises:
            StoreError: the database failed, or the store is closed.
        """
        try:
            with one_sentence(self._url, "written" if write else "read"), self._open(write, patience) as session:
                yield session
        except StoreSilentError as error:
            self.told_silent(error)
            raise

    def maintain(self, statement: str) -> None:
        """Run a statement such as VACUUM, which no transaction may hold.

        Raises:
            StoreError: the database failed.
        """
        with one_sentence(self._url, "maintained"), TRANSACTIONS.inside():
            connection = self._engine.raw_connection()
            try:
                driver: Any = connection.driver_connection
                if self._engine.dialect.name == "postgresql":
                    driver.autocommit = True
                driver.execute(statement)
            except self._engine.dialect.loaded_dbapi.Error as error:
                raise DBAPIError(statement, None, error) from error
            finally:
                connection.invalidate()

    @contextmanager
    def _open(self, write: bool, patience: float | None = None) -> Iterator[Session]:
        if self._closed:
            raise StoreError(f"The store {self.safe_url} is closed; open it again.")
        if not self._prepared or self._file != self._identity():
            self._prepare()
        engine = for_writing(self._engine, patience) if write else self._engine
        with TRANSACTIONS.inside(), Session(engine, expire_on_commit=False) as session:
            try:
                yield session
                if write:
                    session.commit()
            except DBAPIError as error:
                if any(words in str(error) for words in ("no such table", "does not exist")):
                    self._prepared = False  # somebody emptied the database
                raise
        if write and self._file != self._identity():
            raise StoreAwayError(f"The store {self.safe_url} was deleted while it was written.")

    def _prepare(self) -> None:
        with self._preparing, usable(self._url), one_sentence(self._url, "opened"):
            schema.prepare(self._engine, self._url)
            self._file, self._prepared = self._identity(), True

    def _identity(self) -> tuple[int, int] | None:
        """Which file an SQLite store is at this moment: one that is deleted and made anew is another."""
        if self.path is None:
            return None
        try:
            about = os.stat(self.path)
        except OSError:
            return (0, 0)
        return about.st_dev, about.st_ino

    def add(self, cases: Sequence[Case], patience: float | None = None) -> int:
        """Write cases with their pictures, all or none; one whose `case_id` is there already is left as it is.

        What was purged on request (see `purge`) is left out, wherever it waited.

        Args:
            cases: not changed, and not attached to a session.
            patience: seconds to wait for the locks of others; None is the database's default.

        Returns:
            How many were not there.

        Raises:
            RejectedError: the database does not take one of them; nothing was written.
            StoreError: the database failed; nothing was written, or, when it failed at the very end, everything.
        """
        rows: dict[str, dict[str, Any]] = {}
        for case in cases:
            rows.setdefault(case.case_id, _row(case))
        if not rows:
            return 0
        with one_sentence(self._url, "written"), self._open(True, patience) as session:
            connection = session.connection()
            for case_id in self._purged(connection, cases):
                rows.pop(case_id, None)
            if not rows:
                return 0
            insert = insert_into(self._engine.dialect, Case).on_conflict_do_nothing(index_elements=[Case.case_id])
            new = connection.execute(insert.returning(Case.id, Case.case_id), list(rows.values())).all()
            keys = {case_id: key for key, case_id in new}
            pictures = []
            for case in cases:
                key = keys.pop(case.case_id, None)
                if key is not None:
                    pictures += [{**_row(picture), "case_key": key} for picture in case.pictures]
            if pictures:
                connection.execute(insert_into(self._engine.dialect, CasePicture), pictures)
            return len(new)

    def _purged(self, connection: Connection, cases: Sequence[Case]) -> list[str]:
        """The ids of those cases that must not be written any more."""
        if self._engine.dialect.name == "postgresql":  # SQLite has one writer only
            connection.execute(text("LOCK TABLE purges IN ROW SHARE MODE"))  # a purge waits for us, or we see it
        digests = {digest_of(name) for case in cases for name in (case.case_id, case.user_key) if name is not None}
        found = connection.execute(
            select(Purge.kind, Purge.digest, Purge.purged_at).where(Purge.digest.in_(["", *sorted(digests)]))
        ).all()
        if not found:
            return []
        ids = {digest for kind, digest, _ in found if kind == "case"}
        users = {digest: purged_at for kind, digest, purged_at in found if kind == "user"}
        before = next((purged_at for kind, _, purged_at in found if kind == "age"), None)
        return [
            case.case_id
            for case in cases
            if digest_of(case.case_id) in ids
            or (before is not None and case.created_at < before)
            or (
                case.user_key is not None
                and (until := users.get(digest_of(case.user_key))) is not None
                and case.created_at <= until
            )
        ]

    def add_traffic(self, server: str, rows: Sequence[TrafficRow], patience: float | None = None) -> None:
        """Write counts, all or none; where a larger one is there already, it stays, so that writing again is harmless.

        So it is after `retention.compact` has added up an hour: minutes of it before the server's newest one are in the
        sum, since a server writes its minutes in order, and are left out.

        Args:
            server: name of the process that counted, and of no other before or after it.
            rows: (minute in UTC, name, reason, count so far), as `Counters.unsent` returns them.
            patience: seconds to wait for the locks of others; None is the database's default.

        Raises:
            StoreError: the database failed; nothing was written.
        """
        sums: dict[tuple[datetime, str, str], float] = {}  # one row a key: PostgreSQL changes none twice in a statement
        for minute, name, reason, value in rows:
            key = minute.replace(second=0, microsecond=0), clean_text(name, 32), clean_text(reason, 64)
            sums[key] = sums.get(key, 0.0) + value
        if not sums:
            return
        insert = insert_into(self._engine.dialect, Traffic)
        upsert = insert.on_conflict_do_update(
            index_elements=[Traffic.server, Traffic.minute, Traffic.name, Traffic.reason],
            set_={"value": insert.excluded.value},
            where=Traffic.value < insert.excluded.value,
        )
        values: list[dict[str, Any]] = [
            {"server": clean_text(server, 255), "minute": minute, "name": name, "reason": reason, "value": value}
            for (minute, name, reason), value in sorted(sums.items())
        ]
        with one_sentence(self._url, "written"), self._open(True, patience) as session:
            if min(minute for minute, _, _ in sums) < datetime.now(UTC) - _NEVER_COMPACTED:
                values = _not_in_hours(session, clean_text(server, 255), values)
            if values:
                session.connection().execute(upsert, values)

    def totals(self) -> dict[tuple[str, str], float]:
        """Traffic of all servers and times, by (name, reason).

        Raises:
            StoreError: the database failed.
        """
        with self.session() as session:
            rows = session.execute(
                select(Traffic.name, Traffic.reason, func.sum(Traffic.value)).group_by(Traffic.name, Traffic.reason)
            )
            return {(name, reason): float(value) for name, reason, value in rows}

    def review(
        self,
        case_id: str,
        verdict: str,
        reviewer: str,
        note: str = "",
        tags: Sequence[str] = (),
        expected_version: int | None = None,
    ) -> int:
        """Append a review, which decides the case's verdict, and return the case's new version.

        Args:
            case_id: of the case.
            verdict: one of `models.VERDICTS`; "undone" reopens the case.
            reviewer: who says so.
            note: free text.
            tags: free words.
            expected_version: the case's version that the reviewer saw; None overrules whatever is there.

        Raises:
            ReviewConflict: the case has another version by now.
            StoreError: there is no such verdict or case, or the database failed.
        """
        if verdict not in VERDICTS:
            raise StoreError(f"There is no verdict {verdict!r}; choose one of {', '.join(VERDICTS)}.")
        with self.session(write=True) as session:
            found = session.execute(
                select(Case.id, Case.version).where(Case.case_id == clean_text(case_id))
            ).one_or_none()
            if found is None:
                raise StoreError(f"There is no case {case_id!r} in the store {self.safe_url}; it may have been purged.")
            seen = found.version if expected_version is None else expected_version
            changed = session.execute(
                update(Case)
                .where(Case.id == found.id, Case.version == seen)
                .values(verdict=None if verdict == "undone" else verdict, version=seen + 1)
                .returning(Case.id)
            ).all()
            if not changed:
                raise ReviewConflict(f"Another reviewer was first at case {case_id}: load it again before you decide.")
            session.add(
                Review(
                    case_key=found.id,
                    created_at=datetime.now(UTC),
                    reviewer=clean_text(reviewer, 255),
                    verdict=verdict,
                    note=clean_text(note),
                    tags=[clean_text(tag) for tag in tags],
                )
            )
        return seen + 1

    def after_fork(self) -> None:
        """In a child process: leave the parent's connections to the parent."""
        self._preparing = threading.RLock()
        self._engine.dispose(close=False)

    def close(self) -> None:
        """Let go of the database; idempotent."""
        self._closed = True
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _not_in_hours(session: Session, server: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those counts of a server that no hour has in its sum yet."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer only
        session.execute(text("LOCK TABLE traffic IN SHARE ROW EXCLUSIVE MODE"))  # nobody compacts until we have written
    marks = {_hour(row["minute"]) + HOUR_MARK for row in rows}
    own = Traffic.server == server
    compacted = set(session.scalars(select(Traffic.minute).where(own, Traffic.minute.in_(sorted(marks))).distinct()))
    newest = session.scalar(select(func.max(Traffic.minute)).where(own))
    return [
        row
        for row in rows
        if newest is None or row["minute"] >= newest or _hour(row["minute"]) + HOUR_MARK not in compacted
    ]


def _hour(minute: datetime) -> datetime:
    return minute.replace(minute=0, second=0, microsecond=0)


def _row(record: Case | CasePicture) -> dict[str, Any]:
    """The columns of a record, without the keys that the database gives; every record has the same ones."""
    row = {}
    for column in type(record).__table__.columns:
        if column.name not in ("id", "case_key"):
            value = getattr(record, column.name)
            default = getattr(column.default, "arg", None)
            row[column.name] = default if value is None else value
    return row
