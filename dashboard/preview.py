"""What a threshold would have flagged in the last days, beside what the one of today would have.

Reads the store in one statement; what follows is arithmetic on the random sample, each answer with its weight.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from fastrm_monitor.dashboard import queries
from fastrm_monitor.dashboard.queries import CaseRow
from fastrm_monitor.dashboard.reliability import Share, weighted
from fastrm_monitor.records.models import Case
from fastrm_monitor.scoring.recalibration import Recalibration, score_of

DAYS = 7
MOST = 50_000
"""Stored answers that are looked at; of more, the newest."""


@dataclass(frozen=True, eq=False)
class Served:
    """S stored answers of the last days, the newest first, whose scores are of one source.

    Attributes:
        ids: case ids.
        day: days since the epoch, UTC, int (S,).
        score: before any recalibration, float (S,).
        flagged: by the servers at that time, bool (S,).
        sampled: drawn into the random sample, bool (S,).
        weight: answers that a drawn one stands for, float (S,).
        days: from the oldest of them until now, at least 1.
        cut: whether there were more than `MOST`.
    """

    ids: tuple[str, ...]
    day: np.ndarray
    score: np.ndarray
    flagged: np.ndarray
    sampled: np.ndarray
    weight: np.ndarray
    days: float
    cut: bool


@dataclass(frozen=True)
class Rule:
    """Flags scores whose recalibrated confidence is below a threshold."""

    recalibration: Recalibration
    threshold: float

    def flags(self, score: np.ndarray) -> np.ndarray:
        """Bool (S,), as a server with this policy decides."""
        ordered = np.sort(score)
        place = bisect_left(ordered.tolist(), self.threshold, key=self.recalibration)  # strictly increasing
        below: np.ndarray = score < ordered[place] if place < len(ordered) else np.ones(len(score), bool)
        return below


@dataclass(frozen=True)
class Day:
    """Shares of the traffic of one day, UTC."""

    start: datetime
    new: Share
    today: Share


@dataclass(frozen=True)
class Preview:
    """A threshold beside that of today.

    Attributes:
        answers: of the traffic, estimated from the random sample.
        new: share that the threshold flags.
        today: share that the one of today flags.
        days: the same by day, oldest first; days without a drawn answer are left out.
        added: case ids of stored answers that only the new one flags, highest score first.
        removed: of those that only today's flags, lowest score first.
    """

    answers: float
    new: Share
    today: Share
    days: tuple[Day, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


def served(session: Session, model: str, proxy_version: str, source: str, now: datetime | None = None) -> Served:
    """The stored answers of the last `DAYS` days of a model and proxy, whose scores are of that source."""
    now = now or datetime.now(UTC)
    since = now - timedelta(days=DAYS)
    columns = (Case.case_id, Case.created_at, Case.confidence, Case.calibrated, Case.features)
    wanted = (
        select(*columns, Case.flagged, Case.sampled, Case.sample_rate)
        .where(Case.created_at >= since, Case.model == model, Case.proxy_version == proxy_version)
        .where(Case.confidence.is_not(None))
        .order_by(Case.created_at.desc(), Case.id.desc())
        .limit(MOST + 1)
    )
    rows = session.execute(wanted).all()
    own = []
    for row in rows[:MOST]:
        score, found = score_of(row.features, row.confidence, row.calibrated)
        if found == source:
            own.append((row, score))
    return Served(
        ids=tuple(row.case_id for row, _ in own),
        day=np.array([row.created_at.timestamp() // 86400 for row, _ in own], int),
        score=np.array([score for _, score in own], float),
        flagged=np.array([row.flagged for row, _ in own], bool),
        sampled=np.array([row.sampled for row, _ in own], bool),
        weight=np.array([1 / max(row.sample_rate, 1e-9) for row, _ in own], float),
        days=max((now - own[-1][0].created_at) / timedelta(days=1), 1.0) if own else 1.0,
        cut=len(rows) > MOST,
    )


def compare(found: Served, rule: Rule, today: Rule | None) -> Preview:
    """What a rule would have flagged of the answers, beside another one, or, without it, what the servers flagged."""
    new = rule.flags(found.score)
    now = found.flagged if today is None else today.flags(found.score)
    weight = found.weight[found.sampled]

    def share(flags: np.ndarray, part: np.ndarray | None = None) -> Share:
        chosen = found.sampled if part is None else found.sampled & part
        return weighted(flags[chosen], found.weight[chosen])

    days = []
    for day in np.unique(found.day[found.sampled]):
        part = found.day == day
        days.append(Day(datetime.fromtimestamp(int(day) * 86400, UTC), share(new, part), share(now, part)))
    order = np.argsort(found.score, kind="stable")
    return Preview(
        answers=float(weight.sum()),
        new=share(new),
        today=share(now),
        days=tuple(days),
        added=tuple(found.ids[n] for n in order[::-1] if new[n] and not now[n]),
        removed=tuple(found.ids[n] for n in order if now[n] and not new[n]),
    )


def rows(session: Session, ids: Sequence[str]) -> list[CaseRow]:
    """These cases as lists show them, in this order; those purged meanwhile are left out."""
    found = session.execute(queries.listed().where(Case.case_id.in_(ids)))
    by_id = {row.case_id: row for row in (CaseRow(*one) for one in found)}
    return [by_id[one] for one in ids if one in by_id]
