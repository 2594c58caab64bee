"""What overview and health page ask of the counts: sums over all answers, not only over those that are stored as cases.

Like `queries`: functions of a session, frozen values, sums made by the database. Knows nothing of Streamlit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import ColumnElement, case, func, literal_column, select
from sqlalchemy.orm import Session

from fastrm_monitor.records.models import Traffic

Step = Literal["minute", "hour", "day"]

_LENGTH = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
_SQLITE = {"minute": "%Y-%m-%d %H:%M", "hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d 00:00"}
_POSTGRESQL = {"minute": "YYYY-MM-DD HH24:MI", "hour": "YYYY-MM-DD HH24:00", "day": "YYYY-MM-DD 00:00"}

LOSSES = ("skipped", "dropped", "failed")
"""The names of `traffic` that say that something was not done; each has reasons."""


@dataclass(frozen=True)
class Loss:
    """How many answers were skipped or dropped, or how often a stage failed, for one reason."""

    name: str
    reason: str
    value: int


@dataclass(frozen=True)
class Totals:
    """Sums over a span of time.

    Attributes:
        seen: answers that reached the monitor.
        scored: those with a confidence.
        flagged: those that a reviewer should see.
        stored: scored answers in the store.
        sampled_out: scored answers that were, by the policy, not to be stored.
        dropped: scored answers that should have been stored and were lost.
        confidence_sum: of the scored answers.
        losses: skipped, dropped and failed by reason, largest first.
    """

    seen: int
    scored: int
    flagged: int
    stored: int
    sampled_out: int
    dropped: int
    confidence_sum: float
    losses: tuple[Loss, ...]

    @property
    def skipped(self) -> int:
        """Answers without an assessment, whatever the reason."""
        return sum(loss.value for loss in self.losses if loss.name == "skipped")

    @property
    def pending(self) -> int:
        """Scored answers of which nobody has said yet what became of them; never below 0.

        At the edge of a span an answer may be stored in it and scored before it.
        """
        return max(self.scored - self.stored - self.sampled_out - self.dropped, 0)

    @property
    def flag_rate(self) -> float | None:
        """Share of the scored answers that were flagged; None without any."""
        return self.flagged / self.scored if self.scored else None

    @property
    def mean_confidence(self) -> float | None:
        """Mean over the scored answers; None without any."""
        return self.confidence_sum / self.scored if self.scored else None


@dataclass(frozen=True)
class Bucket:
    """Sums over one step of time that begins at `start` (UTC)."""

    start: datetime
    seen: int
    scored: int
    flagged: int
    confidence_sum: float


def totals(session: Session, since: datetime | None = None) -> Totals:
    """Sums since a time; None is from the beginning."""
    keys = (Traffic.name, Traffic.reason)
    query = select(*keys, func.sum(Traffic.value)).where(*later(since)).group_by(*keys)
    sums = {(name, reason): float(value) for name, reason, value in session.execute(query)}

    def of(wanted: str) -> float:
        return sum(value for (name, _), value in sums.items() if name == wanted)

    losses = [Loss(name, reason, round(value)) for (name, reason), value in sums.items() if name in LOSSES and value]
    return Totals(
        seen=round(of("seen")),
        scored=round(of("scored")),
        flagged=round(of("flagged")),
        stored=round(of("stored")),
        sampled_out=round(of("sampled_out")),
        dropped=round(of("dropped")),
        confidence_sum=of("confidence_sum"),
        losses=tuple(sorted(losses, key=lambda loss: (LOSSES.index(loss.name), -loss.value, loss.reason))),
    )


def span(session: Session, since: datetime | None = None) -> tuple[datetime, datetime] | None:
    """The first and the last minute with traffic; None without any."""
    low, high = session.execute(select(func.min(Traffic.minute), func.max(Traffic.minute)).where(*later(since))).one()
    return None if low is None else (low, high)


def step_for(length: timedelta) -> Step:
    """The step that shows a span of time in a readable number of points."""
    if length <= timedelta(hours=3):
        return "minute"
    return "hour" if length <= timedelta(days=8) else "day"


def total(name: str) -> ColumnElement[float]:
    """The sum of the counts of this name."""
    return func.sum(case((Traffic.name == name, Traffic.value), else_=0.0))


def later(since: datetime | None) -> list[ColumnElement[bool]]:
    """Which counts are of that time or later; all for None."""
    return [] if since is None else [Traffic.minute >= since]


def series(session: Session, step: Step, since: datetime | None = None) -> list[Bucket]:
    """Sums by step of time, oldest first; steps without traffic between the first and the last are there with zeros."""
    start = _start(session, step)
    query = (
        select(start, total("seen"), total("scored"), total("flagged"), total("confidence_sum"))
        .where(*later(since), Traffic.name.in_(("seen", "scored", "flagged", "confidence_sum")))
        .group_by(start)
        .order_by(start)
    )
    found = [
        Bucket(datetime.fromisoformat(f"{begin}+00:00"), round(seen), round(scored), round(flagged), float(confidence))
        for begin, seen, scored, flagged, confidence in session.execute(query)
    ]
    filled: list[Bucket] = []
    for bucket in found:
        while filled and filled[-1].start + _LENGTH[step] < bucket.start:
            filled.append(Bucket(filled[-1].start + _LENGTH[step], 0, 0, 0, 0.0))
        filled.append(bucket)
    return filled


def wilson(hits: int, tries: int, z: float = 1.959964) -> tuple[float, float] | None:
    """The Wilson interval (95 % unless told otherwise) of a rate; None without tries."""
    if tries <= 0:
        return None
    rate = min(hits / tries, 1.0)  # a page is not to fail over counts that a fault has torn apart
    scale = 1 + z * z / tries
    middle = (rate + z * z / (2 * tries)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / tries + z * z / (4 * tries * tries))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _start(session: Session, step: Step) -> ColumnElement[str]:
    """The beginning of a row's step in UTC, as text that reads the same from every database."""
    # Formats are written out, not bound: PostgreSQL takes two bound ones for two different expressions to group by.
    if session.get_bind().dialect.name == "postgresql":
        utc: ColumnElement[datetime] = func.timezone(literal_column("'UTC'"), Traffic.minute)
        return func.to_char(utc, literal_column(f"'{_POSTGRESQL[step]}'"))
    return func.strftime(literal_column(f"'{_SQLITE[step]}'"), Traffic.minute)
