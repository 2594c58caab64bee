"""What the health page asks the store beside `traffic`: which servers there are, how long scoring takes, and drift.

Like `queries`: functions of a session, frozen values, sums made by the database, and lists that have an end. Knows
nothing of Streamlit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from fastrm_monitor.dashboard import traffic
from fastrm_monitor.records.models import Case, DriftValue, Traffic

Level = Literal["same", "look", "shifted"]

MOST_SERVERS = 50
MOST_LATENCIES = 5000

KS_ALARM = 0.001
PSI_LOOK, PSI_ALARM = 0.1, 0.25
"""Where docs/alerting.md begins: the p value of a feature, and its population stability index."""


@dataclass(frozen=True)
class ServerView:
    """One process that counts, with its last minute that had an answer."""

    server: str
    last: datetime
    seen: int
    scored: int
    flagged: int
    stored: int
    dropped: int
    failed: int


@dataclass(frozen=True)
class DriftView:
    """The newest window of one feature on one server, held against its reference."""

    server: str
    model: str
    feature: str
    at: datetime
    values: dict[str, float]
    n_reference: int
    n_window: int

    @property
    def level(self) -> Level:
        """As the alert rules see it: the confidence by its p value, the other features by their stability index."""
        psi = self.values.get("psi", 0.0)
        if self.feature == "confidence":
            if self.values.get("ks_p", 1.0) < KS_ALARM:
                return "shifted"
        elif psi > PSI_ALARM:
            return "shifted"
        return "look" if psi > PSI_LOOK else "same"


def servers(session: Session, since: datetime | None = None) -> list[ServerView]:
    """Every process that counted since a time, the last one heard first; `MOST_SERVERS` of them at most."""
    last = func.max(Traffic.minute)
    names = ("seen", "scored", "flagged", "stored", "dropped", "failed")
    query = (
        select(Traffic.server, last, *map(traffic.total, names))
        .where(*traffic.later(since))
        .group_by(Traffic.server)
        .order_by(last.desc(), Traffic.server)
        .limit(MOST_SERVERS)
    )
    return [ServerView(server, at, *map(round, sums)) for server, at, *sums in session.execute(query)]


def latencies(session: Session, since: datetime | None = None) -> list[float]:
    """Seconds that scoring took for the newest answers of the random sample, ascending; `MOST_LATENCIES` at most.

    Flagged answers that were not drawn are left out: they are not the traffic.
    """
    query = select(Case.scoring_seconds).where(Case.sampled)
    if since is not None:
        query = query.where(Case.created_at >= since)
    newest = query.order_by(Case.created_at.desc(), Case.id.desc()).limit(MOST_LATENCIES)
    return sorted(session.scalars(newest))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank).

    Raises:
        ValueError: there is no value.
    """
    if not ordered:
        raise ValueError("Nothing has no percentile.")
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def drift(session: Session, since: datetime | None = None) -> list[DriftView]:
    """The newest window of each server since a time, the server last heard first, its confidence before other features.

    Of `MOST_SERVERS` servers at most.
    """
    newest = select(DriftValue.server, DriftValue.model, func.max(DriftValue.created_at).label("at"))
    if since is not None:
        newest = newest.where(DriftValue.created_at >= since)
    by = newest.group_by(DriftValue.server, DriftValue.model).order_by(func.max(DriftValue.created_at).desc())
    wanted = by.limit(MOST_SERVERS).subquery()
    query = select(DriftValue).join(
        wanted,
        tuple_(DriftValue.server, DriftValue.model, DriftValue.created_at)
        == tuple_(wanted.c.server, wanted.c.model, wanted.c.at),
    )
    if since is not None:
        query = query.where(DriftValue.created_at >= since)
    rows: dict[tuple[str, str, str], list[DriftValue]] = {}
    for row in session.scalars(query):
        rows.setdefault((row.server, row.model, row.feature), []).append(row)
    views = [
        DriftView(
            server,
            model,
            feature,
            own[0].created_at,
            {one.statistic: one.value for one in own},
            own[0].n_reference,
            own[0].n_window,
        )
        for (server, model, feature), own in rows.items()
    ]
    return sorted(views, key=lambda one: (-one.at.timestamp(), one.server, one.feature != "confidence", one.feature))
