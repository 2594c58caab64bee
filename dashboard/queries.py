"""Every question that the pages ask the store, as functions of a session that return plain frozen values.

Lists come page by page and without pictures; sums over traffic are made by the database. Works alike on SQLite and
PostgreSQL and knows nothing of Streamlit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, and_, false, func, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session, selectinload

from fastrm_monitor.records.models import Case, CasePicture, Review
from fastrm_monitor.types import Region

State = Literal["open", "reviewed", "all"]
Kind = Literal["flagged", "sampled", "all"]
Order = Literal["confidence", "newest", "oldest", "entropy"]

_LIST_TEXT = 160  # characters of question and answer that a list needs


@dataclass(frozen=True)
class Queue:
    """Which cases a reviewer goes through, and in which order.

    Attributes:
        state: "open" cases have no verdict.
        kind: "flagged", drawn into the random sample ("sampled"), or "all".
        order: "confidence" lowest first, "entropy" highest first, "newest" or "oldest" first. Cases without the
            number come last.
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
    """Where a case stands in a queue; `position` counts from 1, the neighbours are case ids or None."""

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


def rows(session: Session, queue: Queue, limit: int, offset: int = 0) -> list[CaseRow]:
    """The cases `offset` to `offset + limit` of the queue."""
    query = select(
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
    found = session.execute(_ordered(query.where(*_filters(queue)), queue.order).limit(limit).offset(offset))
    return [CaseRow(*row) for row in found]


def first(session: Session, queue: Queue) -> str | None:
    """The id of the queue's first case; None when it is empty."""
    found: str | None = session.scalar(_ordered(select(Case.case_id).where(*_filters(queue)), queue.order).limit(1))
    return found


def step(session: Session, queue: Queue, case_id: str, *, forward: bool) -> str | None:
    """The id of the case next to `case_id`; None at the end, or when there is no such case.

    The case itself need not be in the queue any more: after a verdict its old place still has neighbours.
    """
    at = _cursor(session, queue, case_id)
    return None if at is None else _neighbour(session, queue, at, forward=forward)


def place(session: Session, queue: Queue, case_id: str) -> Place | None:
    """Where `case_id` stands in the queue; None when there is no such case."""
    at = _cursor(session, queue, case_id)
    if at is None:
        return None
    before = select(func.count()).select_from(Case).where(*_filters(queue), _beyond(queue.order, at, forward=False))
    return Place(
        position=(session.scalar(before) or 0) + 1,
        total=count(session, queue),
        previous=_neighbour(session, queue, at, forward=False),
        next=_neighbour(session, queue, at, forward=True),
    )


_Cursor = tuple[float | None, int]  # (value of the order's column, id)
_COLUMNS: dict[str, tuple[InstrumentedAttribute[Any] | None, bool]] = {  # order -> (column or just the id, descending)
    "confidence": (Case.confidence, False),
    "entropy": (Case.entropy, True),
    "oldest": (None, False),
    "newest": (None, True),
}


def _filters(queue: Queue) -> list[ColumnElement[bool]]:
    states = {"open": Case.verdict.is_(None), "reviewed": Case.verdict.is_not(None), "all": true()}
    kinds = {"flagged": Case.flagged.is_(True), "sampled": Case.sampled.is_(True), "all": true()}
    return [kinds[queue.kind], states[queue.state]]


def _ordered(query: Select[Any], order: Order, *, backward: bool = False) -> Select[Any]:
    column, descending = _COLUMNS[order]
    if column is None:
        return query.order_by(Case.id.desc() if descending != backward else Case.id)
    value = column.desc() if descending != backward else column.asc()
    value = value.nulls_first() if backward else value.nulls_last()
    return query.order_by(value, Case.id.desc() if backward else Case.id)


def _cursor(session: Session, queue: Queue, case_id: str) -> _Cursor | None:
    column, _ = _COLUMNS[queue.order]
    found = session.execute(
        select(Case.id if column is None else column, Case.id).where(Case.case_id == case_id)
    ).one_or_none()
    return None if found is None else (found[0], found[1])


def _beyond(order: Order, at: _Cursor, *, forward: bool) -> ColumnElement[bool]:
    """Which cases come after the cursor, or before it; those without a value are last in every order."""
    column, descending = _COLUMNS[order]
    value, key = at
    if column is None:
        return Case.id > key if forward != descending else Case.id < key
    tie = Case.id > key if forward else Case.id < key
    missing = column.is_(None)
    if value is None:
        return and_(missing, tie) if forward else or_(column.is_not(None), and_(missing, tie))
    further = column > value if forward != descending else column < value
    return or_(further, and_(column == value, tie), missing if forward else false())


def _neighbour(session: Session, queue: Queue, at: _Cursor, *, forward: bool) -> str | None:
    query = select(Case.case_id).where(*_filters(queue), _beyond(queue.order, at, forward=forward))
    found: str | None = session.scalar(_ordered(query, queue.order, backward=not forward).limit(1))
    return found


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
