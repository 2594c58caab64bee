"""The tables of the store, as SQLAlchemy classes. Knows nothing of engines, sessions or queues.

`cases` are answers that were flagged or drawn into the random sample; `case_pictures` hold what was shown and the
relevance map of each picture; `reviews` are append-only, the newest one counts; `claims` say who is at a case now;
`purges` what was deleted on request and must not come back; `traffic` counts every answer by server, minute, name and
reason, so that rates have a denominator and nothing is lost in silence; `drift` says how far each window of answers was
from its reference; `policies` are the published decision policies, the newest of a model and proxy is in force.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Float, ForeignKey, Index, LargeBinary, String, Text, TypeDecorator, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC time; SQLite would hand it back without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC, before it is written."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware, after it is read."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_NUMBERS = ("confidence", "entropy", "interest")  # that a queue can be ordered by
_SCORED = text("confidence IS NOT NULL")
_OPEN, _REVIEWED = text("verdict IS NULL"), text("verdict IS NOT NULL")


class Base(DeclarativeBase):
    """Metadata of the current schema."""


class Case(Base):
    """One stored answer with its assessment."""

    __tablename__ = "cases"

    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(String(36), unique=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    request_id: Mapped[str] = mapped_column(String(255))
    user_key: Mapped[str | None] = mapped_column(String(255), index=True)
    server: Mapped[str] = mapped_column(String(255))
    model: Mapped[str] = mapped_column(String(255))
    question: Mapped[str] = mapped_column(Text)
    answer: Mapped[str] = mapped_column(Text)
    confidence: Mapped[float | None] = mapped_column(Float)
    calibrated: Mapped[bool]
    threshold: Mapped[float | None] = mapped_column(Float)
    entropy: Mapped[float | None] = mapped_column(Float)
    features: Mapped[dict[str, float]] = mapped_column(JSON)
    flagged: Mapped[bool]
    reason: Mapped[str | None] = mapped_column(String(64))
    sampled: Mapped[bool]
    sample_rate: Mapped[float] = mapped_column(Float)
    proxy_version: Mapped[str] = mapped_column(String(64))
    library_version: Mapped[str] = mapped_column(String(32))
    scoring_seconds: Mapped[float] = mapped_column(Float)
    trace_id: Mapped[str | None] = mapped_column(String(32))
    span_id: Mapped[str | None] = mapped_column(String(16))
    policy: Mapped[int | None]  # id of the published policy that decided; None for the proxy folder's or the settings'
    interest: Mapped[float | None] = mapped_column(Float)  # 0 to 1, see cases.interest; None in cases of older versions
    verdict: Mapped[str | None] = mapped_column(String(16), default=None)  # of the newest review; None is open
    version: Mapped[int] = mapped_column(default=0)  # counts reviews; guards against two reviewers at once

    pictures: Mapped[list[CasePicture]] = relationship(
        back_populates="case", cascade="all, delete-orphan", order_by="CasePicture.position"
    )
    reviews: Mapped[list[Review]] = relationship(
        back_populates="case", cascade="all, delete-orphan", order_by="Review.id"
    )

    __table_args__ = (
        Index("ix_cases_created", "created_at", "id"),
        # The scoring times and the reference of drift are of the newest of the random sample.
        Index("ix_cases_sampled_created", "sampled", "created_at", "id"),
        Index("ix_cases_models", "model", "proxy_version", "id", sqlite_where=_SCORED, postgresql_where=_SCORED),
        # A queue in the order of age or of a number is one range of an index, whatever it leaves out on the way; a
        # position in it is counted without a look at the rows. Few cases are reviewed at first and few are open in the
        # end, so that either has an index of its own.
        Index("ix_cases_flagged", "flagged", "id", "verdict"),
        Index("ix_cases_sampled", "sampled", "id", "verdict"),
        Index("ix_cases_open", "id", "flagged", "sampled", sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index("ix_cases_reviewed", "id", "flagged", "sampled", sqlite_where=_REVIEWED, postgresql_where=_REVIEWED),
        *(Index(f"ix_cases_{number}", number, "id", "flagged", "sampled", "verdict") for number in _NUMBERS),
        *(
            Index(
                f"ix_cases_reviewed_{number}",
                *(number, "id", "flagged", "sampled"),
                sqlite_where=_REVIEWED,
                postgresql_where=_REVIEWED,
            )
            for number in _NUMBERS
        ),
    )


class CasePicture(Base):
    """A picture of a case and the relevance of its patches."""

    __tablename__ = "case_pictures"

    id: Mapped[int] = mapped_column(primary_key=True)
    case_key: Mapped[int] = mapped_column(ForeignKey("cases.id", ondelete="CASCADE"), index=True)
    position: Mapped[int]
    width: Mapped[int | None]
    height: Mapped[int | None]
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    media_type: Mapped[str | None] = mapped_column(String(32))
    content: Mapped[bytes | None] = mapped_column(LargeBinary)
    rows: Mapped[int]
    columns: Mapped[int]
    relevance: Mapped[bytes] = mapped_column(LargeBinary)  # float16, little endian, (rows, columns)
    region: Mapped[list[float]] = mapped_column(JSON)

    case: Mapped[Case] = relationship(back_populates="pictures")


class Review(Base):
    """One verdict of a reviewer; never changed, only followed by another."""

    __tablename__ = "reviews"

    id: Mapped[int] = mapped_column(primary_key=True)
    case_key: Mapped[int] = mapped_column(ForeignKey("cases.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    reviewer: Mapped[str] = mapped_column(String(255))
    verdict: Mapped[str] = mapped_column(String(16))  # one of VERDICTS
    note: Mapped[str] = mapped_column(Text, default="")
    tags: Mapped[list[Any]] = mapped_column(JSON, default=list)

    case: Mapped[Case] = relationship(back_populates="reviews")


class Claim(Base):
    """Which session of which reviewer is at a case, until when; one at a time."""

    __tablename__ = "claims"

    case_key: Mapped[int] = mapped_column(
        ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    reviewer: Mapped[str] = mapped_column(String(255))
    session: Mapped[str] = mapped_column(String(64))  # of a browser's tab; a reviewer may have several
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)


class Purge(Base):
    """What was deleted on request: it may still wait in a queue or a spool, and must not be written any more."""

    __tablename__ = "purges"

    kind: Mapped[str] = mapped_column(String(8), primary_key=True)  # "case", "user" or "age"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of the case id or the user key; or ""
    purged_at: Mapped[datetime] = mapped_column(UTCDateTime)  # later answers, of that user or at all, are kept


class PolicyRecord(Base):
    """A published decision policy; never changed: to roll back is to publish an older one again."""

    __tablename__ = "policies"

    id: Mapped[int] = mapped_column(primary_key=True)  # the version
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    author: Mapped[str] = mapped_column(String(255))
    note: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(String(255))
    proxy_version: Mapped[str] = mapped_column(String(64))
    threshold: Mapped[float] = mapped_column(Float)
    recalibration: Mapped[dict[str, Any]] = mapped_column(JSON)  # see scoring.recalibration
    chosen: Mapped[dict[str, Any]] = mapped_column(JSON)  # method, target, n, bound, warnings, ...
    again: Mapped[int | None]  # the version that is published again, when this is a roll-back

    __table_args__ = (Index("ix_policies_newest", "model", "proxy_version", "id"),)


class Traffic(Base):
    """How many answers of a server, in a minute, were seen, scored, skipped, flagged, stored, ... and why."""

    __tablename__ = "traffic"

    server: Mapped[str] = mapped_column(String(255), primary_key=True)
    minute: Mapped[datetime] = mapped_column(UTCDateTime, primary_key=True)
    name: Mapped[str] = mapped_column(String(32), primary_key=True)  # one of counters.NAMES
    reason: Mapped[str] = mapped_column(String(64), primary_key=True, default="")
    value: Mapped[float] = mapped_column(Float)

    __table_args__ = (Index("ix_traffic_minute", "minute"),)


class DriftValue(Base):
    """One statistic of one feature of one window of a server's answers, with the number of answers it rests on."""

    __tablename__ = "drift"

    id: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)  # the end of the window
    server: Mapped[str] = mapped_column(String(255))
    model: Mapped[str] = mapped_column(String(255))
    feature: Mapped[str] = mapped_column(String(64))
    statistic: Mapped[str] = mapped_column(String(16))  # one of drift.watch.STATISTICS
    value: Mapped[float] = mapped_column(Float)
    n_reference: Mapped[int]
    n_window: Mapped[int]

    __table_args__ = (
        Index("ix_drift_created", "created_at", "id"),
        Index("ix_drift_feature", "feature", "statistic", "created_at"),
    )


VERDICTS = ("correct", "wrong", "not_grounded", "unsure", "undone")
"""What a reviewer may say; "undone" reopens the case."""
