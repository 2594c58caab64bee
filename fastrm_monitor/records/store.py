"""The store of cases, reviews and traffic counts: SQLite for one machine, PostgreSQL for many.

The monitor's background thread writes, the dashboard and the command line read. Knows no queue and no engine of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fastrm_monitor.errors import StoreError
from fastrm_monitor.records import schema
from fastrm_monitor.records.counters import TrafficRow
from fastrm_monitor.records.engine import for_writing, one_sentence, open_engine, read_url, safe_url, usable
from fastrm_monitor.records.forks import TRANSACTIONS, renew_in_child
from fastrm_monitor.records.models import VERDICTS, Case, Review, Traffic
from fastrm_monitor.records.text import clean_text


class ReviewConflict(StoreError):  # noqa: N818  # what the reviewer meets is a conflict
    """Another reviewer was first."""


class Store:
    """A database of cases; may be used by several threads and, each with its own `Store`, by several processes.

    An empty database gets the current schema. A child process may use the store of its parent.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/DATABASE`.

    Raises:
        StoreError: the database cannot be opened, or has another schema than this version's.
        MissingExtraError: PostgreSQL without psycopg.
    """

    def __init__(self, url: str) -> None:
        self._url = read_url(url)
        with usable(self._url):
            self._engine = open_engine(self._url)
        self._writing = for_writing(self._engine)
        self._closed = False
        try:
            with usable(self._url), one_sentence(self._url, "opened"):
                schema.prepare(self._engine, self._url)
        except BaseException:
            self._engine.dispose()
            raise
        renew_in_child(self)

    @property
    def safe_url(self) -> str:
        """The URL without its password."""
        return safe_url(self._url)

    @contextmanager
    def session(self, *, write: bool = False) -> Iterator[Session]:
        """A SQLAlchemy session: to read, or with `write` one transaction that is committed at the end.

        What it returned stays readable after it is closed.

        Raises:
            StoreError: the database failed, or the store is closed.
        """
        with one_sentence(self._url, "written" if write else "read"), self._open(write) as session:
            yield session

    @contextmanager
    def _open(self, write: bool) -> Iterator[Session]:
        if self._closed:
            raise StoreError(f"The store {self.safe_url} is closed; open it again.")
        with (
            TRANSACTIONS.inside(),
            Session(self._writing if write else self._engine, expire_on_commit=False) as session,
        ):
            yield session
            if write:
                session.commit()

    def add(self, cases: Sequence[Case]) -> None:
        """Write cases with their pictures, all or none; one whose `case_id` is there already is left as it is.

        Raises:
            StoreError: the database failed; nothing was written.
        """
        if not cases:
            return
        with one_sentence(self._url, "written"):
            try:
                self._insert(cases)
            except IntegrityError:  # another process wrote one of them since we looked; now it is seen
                self._insert(cases)

    def _insert(self, cases: Sequence[Case]) -> None:
        with self._open(write=True) as session:
            there = set(session.scalars(select(Case.case_id).where(Case.case_id.in_([case.case_id for case in cases]))))
            for case in cases:
                if case.case_id not in there:
                    there.add(case.case_id)
                    session.add(case)

    def add_traffic(self, server: str, rows: Sequence[TrafficRow]) -> None:
        """Add counts to those that are there, all or none.

        Args:
            server: name of the process that counted.
            rows: (minute in UTC, name, reason, value), as `Counters.drain` returns them.

        Raises:
            StoreError: the database failed; nothing was written.
        """
        sums: dict[tuple[datetime, str, str], float] = {}  # one row a key: PostgreSQL changes none twice in a statement
        for minute, name, reason, value in rows:
            key = minute.replace(second=0, microsecond=0), clean_text(name, 32), clean_text(reason, 64)
            sums[key] = sums.get(key, 0.0) + value
        if not sums:
            return
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(Traffic)
        upsert = insert.on_conflict_do_update(
            index_elements=[Traffic.server, Traffic.minute, Traffic.name, Traffic.reason],
            set_={"value": Traffic.value + insert.excluded.value},
        )
        values: list[dict[str, Any]] = [
            {"server": clean_text(server, 255), "minute": minute, "name": name, "reason": reason, "value": value}
            for (minute, name, reason), value in sorted(sums.items())
        ]
        with self.session(write=True) as session:
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
