"""Every question that the pages ask the store, as functions of a session that return plain frozen values.

Lists come page by page and without pictures; sums over traffic are made by the database. Works alike on SQLite and
PostgreSQL and knows nothing of Streamlit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Boolean, ColumnElement, Select, and_, func, literal, select, true, tuple_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import InstrumentedAttribute, Session, selectinload
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from fastrm_monitor.records.claims import unclaimed
from fastrm_monitor.records.models import Case, CasePicture, Review
from fastrm_monitor.types import Region

State = Literal["open", "reviewed", "all"]
Kind = Literal["flagged", "sampled", "all"]
Order = Literal["confidence", "interest", "entropy", "newest", "oldest"]

MOST = 10_000
"""Cases that a queue counts one by one; a number beyond means "more"."""

_LIST_TEXT = 160  # characters of question and answer that a list needs


@dataclass(frozen=True)
class Queue:
    """Which cases a reviewer goes through, and in which order.

    Attributes:
        state: "open" cases have no verdict.
        kind: "flagged", drawn into the random sample ("sampled"), or "all".
        order: "confidence" lowest first, "interest" (see `records.cases.interest`) or "entropy" highest first, "newest"
            or "oldest" first. Cases without the number come last, in the order of their age, or newest first where the
            order is a descending one.
    """

    state: State = "open"
    kind: Kind = "flagged"
    order: Order = "confidence"


@dataclass(frozen=True)
class CaseRow:
    """A case in a list; `question` and `answer` are cut to what a list shows."""

    case_id: str
    created_at: datetime
    question: str
    answer: str
    confidence: float | None
    calibrated: bool
    entropy: float | None
    flagged: bool
    reason: str | None
    verdict: str | None


@dataclass(frozen=True)
class Place:
    """Where a case stands in a queue; the neighbours are case ids or None.

    Attributes:
        position: counts from 1; above `MOST` it is somewhere beyond.
        total: cases in the queue; above `MOST` there are more.
        previous: the nearest case before that no other session is at.
        next: the nearest one after.
    """

    position: int
    total: int
    previous: str | None
    next: str | None


@dataclass(frozen=True)
class PictureView:
    """A picture of a case with its packed relevance map (see `records.images.unpack_map`)."""

    width: int | None
    height: int | None
    content: bytes | None
    rows: int
    columns: int
    relevance: bytes
    region: Region


@dataclass(frozen=True)
class ReviewView:
    """One verdict of the history."""

    created_at: datetime
    reviewer: str
    verdict: str
    note: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class CaseView:
    """Everything about one case; `pictures` in prompt order, `reviews` oldest first."""

    case_id: str
    created_at: datetime
    request_id: str
    server: str
    model: str
    question: str
    answer: str
    confidence: float | None
    calibrated: bool
    threshold: float | None
    entropy: float | None
    features: dict[str, float]
    flagged: bool
    reason: str | None
    sampled: bool
    sample_rate: float
    proxy_version: str
    library_version: str
    scoring_seconds: float
    trace_id: str | None
    span_id: str | None
    verdict: str | None
    version: int
    pictures: tuple[PictureView, ...]
    reviews: tuple[ReviewView, ...]


# --- the queue -----------------------------------------------------------------------------------------------------


def count(session: Session, queue: Queue) -> int:
    """How many cases the queue has."""
    return session.scalar(select(func.count()).select_from(Case).where(*_filters(queue))) or 0


def _bounded(session: Session, queue: Queue, *more: ColumnElement[bool]) -> int:
    """How many cases the queue has, counted to one above `MOST`: a key press must not read a million rows."""
    some = select(Case.id).where(*_filters(queue), *more).limit(MOST + 1).subquery()
    return session.scalar(select(func.count()).select_from(some)) or 0


def rows(session: Session, queue: Queue, limit: int, offset: int = 0) -> list[CaseRow]:
    """The cases `offset` to `offset + limit` of the queue."""
    return [CaseRow(*row) for row in _take(session, listed(), queue, limit, offset)]


def listed() -> Select[Any]:
    """What a list shows of cases: each row makes a `CaseRow`."""
    return select(
        Case.case_id,
        Case.created_at,
        func.substr(Case.question, 1, _LIST_TEXT),
        func.substr(Case.answer, 1, _LIST_TEXT),
        Case.confidence,
        Case.calibrated,
        Case.entropy,
        Case.flagged,
        Case.reason,
        Case.verdict,
    )


def first(session: Session, queue: Queue, seat: str | None = None) -> str | None:
    """The id of the queue's first case, of those that no session other than `seat` is at; None when there is none."""
    query = select(Case.case_id)
    found = _take(session, query if seat is None else query.where(unclaimed(seat)), queue, 1)
    return found[0][0] if found else None


def step(session: Session, queue: Queue, case_id: str, *, forward: bool, seat: str | None = None) -> str | None:
    """The id of the case next to `case_id`; None at the end, or when there is no such case.

    The case itself need not be in the queue any more: after a verdict its old place still has neighbours.

    Args:
        session: of the store.
        queue: which cases, in which order.
        case_id: where from.
        forward: to the next one, or else back.
        seat: pass over cases that other sessions than this one are at; None passes over none.
    """
    at = _cursor(session, queue, case_id)
    return None if at is None else _neighbour(session, queue, at, seat, forward=forward)


def place(session: Session, queue: Queue, case_id: str, seat: str | None = None) -> Place | None:
    """Where `case_id` stands in the queue; None when there is no such case. For `seat` see `step`."""
    at = _cursor(session, queue, case_id)
    if at is None:
        return None
    before = sum(_bounded(session, queue, part) for part in _beyond(queue.order, at, forward=False))
    return Place(
        position=before + 1,
        total=_bounded(session, queue),
        previous=_neighbour(session, queue, at, seat, forward=False),
        next=_neighbour(session, queue, at, seat, forward=True),
    )


_Cursor = tuple[float | None, int]  # (value of the order's column, id)
_COLUMNS: dict[str, tuple[InstrumentedAttribute[Any] | None, bool]] = {  # order -> (column or just the id, descending)
    "confidence": (Case.confidence, False),
    "interest": (Case.interest, True),
    "entropy": (Case.entropy, True),
    "oldest": (None, False),
    "newest": (None, True),
}


class _Passing(FunctionElement[bool]):
    """A column that SQLite does not choose an index by.

    An SQLite store has no statistics, and without them SQLite takes the index of any equality, sorts what it finds and
    so reads every flagged case for the first page. Its own remedy is a plus sign.
    """

    name = "passing"
    type = Boolean()
    inherit_cache = True


@compiles(_Passing)
def _as_it_is(element: _Passing, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.clauses, **options)


@compiles(_Passing, "sqlite")
def _with_a_plus(element: _Passing, compiler: SQLCompiler, **options: Any) -> str:
    return f"+{compiler.process(element.clauses, **options)}"


def _filters(queue: Queue) -> list[ColumnElement[bool]]:
    """Which cases are in the queue, said so that the index of its order is the one that is used (see `models.Case`)."""
    states = {"open": Case.verdict.is_(None), "reviewed": Case.verdict.is_not(None), "all": true()}
    if queue.kind == "all":
        return [states[queue.state]]
    column = Case.flagged if queue.kind == "flagged" else Case.sampled
    by_kind = queue.state == "all" and _COLUMNS[queue.order][0] is None
    return [(column if by_kind else _Passing(column)).is_(True), states[queue.state]]


def _take(session: Session, query: Select[Any], queue: Queue, limit: int, offset: int = 0) -> list[Any]:
    """Rows of the queue in its order: those with the order's number, then those without.

    Each is a statement of its own, because no index of SQLite and PostgreSQL alike has missing numbers last.
    """
    column, _ = _COLUMNS[queue.order]
    query = query.where(*_filters(queue))
    if column is None:
        return list(session.execute(_ordered(query, queue.order).limit(limit).offset(offset)))
    valued = query.where(column.is_not(None))
    found = list(session.execute(_ordered(valued, queue.order).limit(limit).offset(offset)))
    if len(found) < limit:
        passed = 0
        if offset:
            passed = session.scalar(select(func.count()).select_from(valued.subquery())) or 0
        missing = _ordered(query.where(column.is_(None)), queue.order)
        found += session.execute(missing.limit(limit - len(found)).offset(max(offset - passed, 0)))
    return found


def _ordered(query: Select[Any], order: Order, *, backward: bool = False) -> Select[Any]:
    column, descending = _COLUMNS[order]
    keys = [Case.id] if column is None else [column, Case.id]
    return query.order_by(*(key.desc() if descending != backward else key.asc() for key in keys))


def _cursor(session: Session, queue: Queue, case_id: str) -> _Cursor | None:
    column, _ = _COLUMNS[queue.order]
    found = session.execute(
        select(Case.id if column is None else column, Case.id).where(Case.case_id == case_id)
    ).one_or_none()
    return None if found is None else (found[0], found[1])


def _beyond(order: Order, at: _Cursor, *, forward: bool) -> list[ColumnElement[bool]]:
    """Which cases come after the cursor, or before it, the nearest part first; those without a value are last."""
    column, descending = _COLUMNS[order]
    value, key = at
    up = forward != descending
    if column is None:
        return [Case.id > key if up else Case.id < key]
    if value is None:
        tie = and_(column.is_(None), Case.id > key if up else Case.id < key)
        return [tie] if forward else [tie, column.is_not(None)]
    row, here = tuple_(column, Case.id), tuple_(literal(value), literal(key))  # one range of an index on both
    further = row > here if up else row < here
    return [further, column.is_(None)] if forward else [further]


def _neighbour(session: Session, queue: Queue, at: _Cursor, seat: str | None, *, forward: bool) -> str | None:
    for part in _beyond(queue.order, at, forward=forward):
        query = select(Case.case_id).where(*_filters(queue), part)
        query = query if seat is None else query.where(unclaimed(seat))
        found: str | None = session.scalar(_ordered(query, queue.order, backward=not forward).limit(1))
        if found is not None:
            return found
    return None


# --- models --------------------------------------------------------------------------------------------------------


def models(session: Session) -> list[tuple[str, str]]:
    """The models with scored cases and their proxies' versions, that with the newest case first.

    Goes from one to the next in their index, since there are few of them and a million cases.
    """
    found: list[tuple[int, str, str]] = []
    pair = tuple_(Case.model, Case.proxy_version)
    scored = select(Case.model, Case.proxy_version).where(Case.confidence.is_not(None))
    following = scored.order_by(Case.model, Case.proxy_version).limit(1)
    here = session.execute(following).one_or_none()
    while here is not None:
        model, proxy = here
        own = (Case.confidence.is_not(None), Case.model == model, Case.proxy_version == proxy)
        newest = session.scalar(select(Case.id).where(*own).order_by(Case.id.desc()).limit(1))
        found.append((newest or 0, model, proxy))
        here = session.execute(following.where(pair > tuple_(literal(model), literal(proxy)))).one_or_none()
    return [(model, proxy) for _, model, proxy in sorted(found, reverse=True)]


# --- one case ------------------------------------------------------------------------------------------------------


def case(session: Session, case_id: str) -> CaseView | None:
    """One case with pictures and reviews; None when there is no such case."""
    found = session.scalar(
        select(Case)
        .where(Case.case_id == case_id)
        .options(selectinload(Case.pictures), selectinload(Case.reviews))
        .execution_options(populate_existing=True)
    )
    if found is None:
        return None
    plain = {
        name: getattr(found, name) for name in CaseView.__dataclass_fields__ if name not in ("pictures", "reviews")
    }
    return CaseView(
        **plain,
        pictures=tuple(_picture(picture) for picture in found.pictures),
        reviews=tuple(_review(review) for review in found.reviews),
    )


def _picture(stored: CasePicture) -> PictureView:
    left, top, right, bottom = stored.region
    return PictureView(
        stored.width,
        stored.height,
        stored.content,
        stored.rows,
        stored.columns,
        stored.relevance,
        (left, top, right, bottom),
    )


def _review(stored: Review) -> ReviewView:
    tags = tuple(str(tag) for tag in stored.tags)
    return ReviewView(stored.created_at, stored.reviewer, stored.verdict, stored.note, tags)
