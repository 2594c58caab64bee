"""The tables of the store, as SQLAlchemy classes. Knows nothing of engines, sessions or queues.

`cases` are answers that were flagged or drawn into the random sample; `case_pictures` hold what was shown and the
relevance map of each picture; `reviews` are append-only, the newest one counts; `traffic` counts every answer by
server, minute, name and reason, so that rates have a denominator and nothing is lost in silence; `drift` says how far
each window of answers was from its reference.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Float, ForeignKey, Index, LargeBinary, String, Text, TypeDecorator
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
        Index("ix_cases_queue_confidence", "flagged", "verdict", "confidence", "id"),
        Index("ix_cases_queue_age", "flagged", "verdict", "id"),
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


class Traffic(Base):
    """How many answers of a server, in a minute, were seen, scored, skipped, flagged, stored, ... and why."""

    __tablename__ = "traffic"

    server: Mapped[str] = mapped_column(String(255), primary_key=True)
    minute: Mapped[datetime] = mapped_column(UTCDateTime, primary_key=True)
    name: Mapped[str] = mapped_column(String(32), primary_key=True)  # one of counters.NAMES
    reason: Mapped[str] = mapped_column(String(64), primary_key=True, default="")
    value: Mapped[float] = mapped_column(Float)


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
