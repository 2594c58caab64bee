"""Deleting cases: by age, by case, by user; in short transactions, so that nobody who writes has to wait for long.

Pictures, reviews and claims go with their case. What was asked for must not come back from a queue or a spool, perhaps
another server's: `purges` remembers the age, or a digest of case or user, and `Store.add` leaves out what that means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, select, text
from sqlalchemy.orm import Session

from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records.engine import insert_into
from fastrm_monitor.records.models import Case, CasePicture, DriftValue, Purge, Review, Traffic
from fastrm_monitor.records.store import Store
from fastrm_monitor.records.text import clean_text, digest_of

BATCH = 500
"""Cases or drift values of one transaction."""

_TRAFFIC_SPAN = timedelta(hours=6)  # of one transaction
_ROWS = {"traffic": "counts of traffic", "drift": "drift values", **{n: n for n in ("cases", "pictures", "reviews")}}
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Selection:
    """What is to be deleted: one of the first three.

    Attributes:
        before: everything older; drift and traffic too.
        case_id: one case.
        user_key: the cases of one user, up to now.
        keep_labelled: of what is older than `before`, keep the cases that have a verdict.
    """

    before: datetime | None = None
    case_id: str | None = None
    user_key: str | None = None
    keep_labelled: bool = False

    def cases(self) -> list[ColumnElement[bool]]:
        """Which cases, as conditions that all hold."""
        if self.case_id is not None:
            return [Case.case_id == clean_text(self.case_id)]
        if self.user_key is not None:
            return [Case.user_key == clean_text(self.user_key, 255)]
        older = [Case.created_at < self.before]
        return [*older, Case.verdict.is_(None)] if self.keep_labelled else older

    def has(self, case: Case, now: datetime) -> bool:
        """Whether a case that waits, and so has no verdict, is among them."""
        if self.before is not None:
            return case.created_at < self.before
        if self.case_id is not None:
            return case.case_id == clean_text(self.case_id)
        return case.user_key == clean_text(self.user_key or "", 255) and case.created_at <= now


@dataclass(frozen=True)
class Counts:
    """Rows, by table."""

    cases: int = 0
    pictures: int = 0
    reviews: int = 0
    traffic: int = 0
    drift: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, one.name)} {_ROWS[one.name]}" for one in fields(self))

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


def read_age(age: str) -> timedelta:
    """An age such as "30d", "12h" or "2w"; "m" are minutes.

    Raises:
        FastRMError: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", age.strip().lower())
    if found is None:
        raise FastRMError(f"{age!r} is no age: write a number and a unit, e.g. 30d, 12h, 2w or 90m.")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def count(store: Store, selection: Selection) -> Counts:
    """How many rows `purge` would delete.

    Raises:
        StoreError: the database failed.
    """
    keys = select(Case.id).where(*selection.cases())
    wanted: dict[str, tuple[type[Case | CasePicture | Review | Traffic | DriftValue], ColumnElement[bool]]] = {
        "cases": (Case, Case.id.in_(keys)),
        "pictures": (CasePicture, CasePicture.case_key.in_(keys)),
        "reviews": (Review, Review.case_key.in_(keys)),
    }
    if selection.before is not None:
        wanted["traffic"] = (Traffic, Traffic.minute < selection.before)
        wanted["drift"] = (DriftValue, DriftValue.created_at < selection.before)
    with store.session() as session:
        return Counts(
            **{
                name: session.scalar(select(func.count()).select_from(table).where(condition)) or 0
                for name, (table, condition) in wanted.items()
            }
        )


def purge(
    store: Store, selection: Selection, *, patience: float | None = None, remember: bool = True
) -> Iterator[Counts]:
    """Delete, and say after each transaction what it deleted; whoever stops asking stops the deleting.

    Args:
        store: where.
        selection: what.
        patience: seconds that each transaction waits for the locks of others; None is the database's default.
        remember: whether what still waits in queues and spools is left out when it is written; not for who purges again
            soon anyway.

    Raises:
        StoreError: the database failed; what was said to be deleted is.
    """
    if remember:
        _remember(store, selection, patience)
    while True:
        deleted = _delete_cases(store, selection, patience)
        yield deleted
        if deleted.cases < BATCH:
            break
    if selection.before is not None:
        yield from _delete_traffic(store, selection.before, patience)
        yield from _delete_drift(store, selection.before, patience)


def forget(store: Store, *, vacuum: bool = False) -> None:
    """After a purge: have an SQLite file's write-ahead log forget what it still says of deleted rows.

    Args:
        store: where.
        vacuum: also give the space of deleted rows back, which rewrites an SQLite file and needs as much room again.

    Raises:
        StoreError: the database failed, for example because the disk is full.
    """
    if vacuum:
        store.maintain("VACUUM")
    if store.path is not None:
        store.maintain("PRAGMA wal_checkpoint(TRUNCATE)")


def _remember(store: Store, selection: Selection, patience: float | None) -> None:
    row: dict[str, object] = {"kind": "age", "digest": "", "purged_at": selection.before}
    if selection.before is None:
        of_case = selection.case_id is not None
        value = clean_text(selection.case_id or "") if of_case else clean_text(selection.user_key or "", 255)
        row = {"kind": "case" if of_case else "user", "digest": digest_of(value), "purged_at": datetime.now(UTC)}
    with store.session(write=True, patience=patience) as session:
        dialect = session.get_bind().dialect
        if dialect.name == "postgresql":  # who is writing cases has read `purges` already: wait until they are there
            session.execute(text("LOCK TABLE purges IN EXCLUSIVE MODE"))
        insert = insert_into(dialect, Purge)
        session.execute(
            insert.on_conflict_do_update(
                index_elements=[Purge.kind, Purge.digest],
                set_={"purged_at": insert.excluded.purged_at},
                where=Purge.purged_at < insert.excluded.purged_at,
            ),
            row,
        )


def _delete_cases(store: Store, selection: Selection, patience: float | None) -> Counts:
    order = (Case.created_at, Case.id) if selection.before is not None else (Case.id,)
    with store.session(write=True, patience=patience) as session:
        keys = list(session.scalars(select(Case.id).where(*selection.cases()).order_by(*order).limit(BATCH)))
        if not keys:
            return Counts()
        found = Counts(
            pictures=_count_of(session, CasePicture, keys),
            reviews=_count_of(session, Review, keys),
        )
        gone = session.execute(delete(Case).where(Case.id.in_(keys)).returning(Case.id)).all()
    return found + Counts(cases=len(gone))


def _count_of(session: Session, table: type[CasePicture | Review], keys: list[int]) -> int:
    return session.scalar(select(func.count()).select_from(table).where(table.case_key.in_(keys))) or 0


def _delete_traffic(store: Store, before: datetime, patience: float | None) -> Iterator[Counts]:
    while True:
        with store.session(write=True, patience=patience) as session:
            oldest = session.scalar(select(func.min(Traffic.minute)).where(Traffic.minute < before))
            if oldest is None:
                return
            some = delete(Traffic).where(Traffic.minute < min(oldest + _TRAFFIC_SPAN, before))
            gone = session.execute(some.returning(Traffic.minute)).all()
        yield Counts(traffic=len(gone))


def _delete_drift(store: Store, before: datetime, patience: float | None) -> Iterator[Counts]:
    while True:
        with store.session(write=True, patience=patience) as session:
            older = select(DriftValue.id).where(DriftValue.created_at < before)
            keys = list(session.scalars(older.order_by(DriftValue.created_at, DriftValue.id).limit(BATCH)))
            gone = session.execute(delete(DriftValue).where(DriftValue.id.in_(keys)).returning(DriftValue.id)).all()
        yield Counts(drift=len(gone))
        if len(keys) < BATCH:
            return
