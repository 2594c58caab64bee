"""Claims: who is at a case now, so that two reviewers do not label the same one unawares.

A claim is a courtesy with an end, not a lock: whoever has none may label the case all the same, and the case's version
(see `Store.review`) tells who was first. Times are those of the machines that claim, whose clocks should agree to a few
seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, exists, literal, or_, select
from sqlalchemy.orm import Session

from fastrm_monitor.records.engine import insert_into
from fastrm_monitor.records.models import Case, Claim, UTCDateTime
from fastrm_monitor.records.store import Store
from fastrm_monitor.records.text import clean_text

SECONDS = 300
"""How long a claim holds after the last sign of its reviewer."""

_PATIENCE = 0.3  # seconds; a reviewer would rather go on without a claim than wait for it


def claim(store: Store, case_id: str, reviewer: str, session: str, now: datetime | None = None) -> str | None:
    """Claim a case, or renew the claim, and let go of what this session claimed before.

    Args:
        store: where the case is.
        case_id: of the case; one that is not there is nobody's.
        reviewer: who is at it.
        session: the browser's tab; at most 64 characters.
        now: when; the present when None.

    Returns:
        None when this session has the case, else the reviewer of the session that has it.

    Raises:
        StoreError: the database failed, or did not take it within a moment.
    """
    now = now or datetime.now(UTC)
    with store.session(write=True, patience=_PATIENCE) as open_session:
        connection = open_session.connection()
        insert = insert_into(connection.dialect, Claim)
        key = select(Case.id).where(Case.case_id == clean_text(case_id)).scalar_subquery()
        connection.execute(delete(Claim).where(Claim.session == session, Claim.case_key != key))
        values = select(
            Case.id,
            literal(clean_text(reviewer, 255)),
            literal(session),
            literal(now + timedelta(seconds=SECONDS), UTCDateTime()),
        ).where(Case.case_id == clean_text(case_id))
        insert = insert.from_select(["case_key", "reviewer", "session", "expires_at"], values)
        taken = insert.on_conflict_do_update(
            index_elements=[Claim.case_key],
            set_={name: insert.excluded[name] for name in ("reviewer", "session", "expires_at")},
            where=or_(Claim.session == session, Claim.expires_at <= now),
        )
        if connection.scalar(taken.returning(Claim.case_key)) is not None:
            return None
        return holders(open_session, [case_id], session, now).get(case_id)


def release(store: Store, session: str) -> None:
    """Let go of what a session claimed.

    Raises:
        StoreError: the database failed; the claim ends by itself.
    """
    with store.session(write=True, patience=_PATIENCE) as open_session:
        open_session.execute(delete(Claim).where(Claim.session == session))


def holders(
    open_session: Session, case_ids: list[str], session: str | None, now: datetime | None = None
) -> dict[str, str]:
    """The reviewers who are at these cases in other sessions than `session`, by case id."""
    found = open_session.execute(
        select(Case.case_id, Claim.reviewer)
        .join(Claim, Claim.case_key == Case.id)
        .where(Case.case_id.in_(case_ids), _of_others(session, now))
    )
    return {case_id: str(reviewer) for case_id, reviewer in found}


def unclaimed(session: str, now: datetime | None = None) -> ColumnElement[bool]:
    """Which cases no other session than `session` is at."""
    return ~exists().where(Claim.case_key == Case.id, _of_others(session, now))


def _of_others(session: str | None, now: datetime | None) -> ColumnElement[bool]:
    live = Claim.expires_at > (now or datetime.now(UTC))
    return live if session is None else and_(live, Claim.session != session)
