"""What else was asked about the pictures of a case. Functions of a session, as in `queries`; pictures are not read."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from fastrm_monitor.dashboard.queries import CaseRow, listed
from fastrm_monitor.records.models import Case, CasePicture

_PICTURES = 8  # of a case, whose other questions are looked for


def same_picture(session: Session, case_id: str, limit: int) -> tuple[list[CaseRow], bool]:
    """Other cases about the same pictures, newest first.

    The same is what has the same pixels: the hash is of the original, also where a thumbnail or nothing is stored.

    Args:
        session: of the store.
        case_id: of the case at hand.
        limit: most cases that are wanted.

    Returns:
        The cases, and whether there are more.
    """
    own = select(Case.id).where(Case.case_id == case_id).scalar_subquery()
    hashes = session.scalars(
        select(CasePicture.sha256)
        .where(CasePicture.case_key == own, CasePicture.sha256.is_not(None))
        .order_by(CasePicture.position)
        .limit(_PICTURES)
    )
    keys: set[int] = set()
    for one in set(hashes):
        # One hash at a time, in the order of its index, so that a picture of many cases costs no more than one of few.
        newest = (
            select(CasePicture.case_key)
            .where(CasePicture.sha256 == one, CasePicture.case_key != own)
            .order_by(CasePicture.id.desc())
            .limit((limit + 1) * _PICTURES)
        )
        keys.update(session.scalars(newest))
    chosen = sorted(keys, reverse=True)[: limit + 1]
    query = listed().where(Case.id.in_(chosen)).order_by(Case.id.desc())
    found = [CaseRow(*row) for row in session.execute(query)]
    return found[:limit], len(found) > limit
