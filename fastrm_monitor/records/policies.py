"""Published policies: written by whoever calibrates, picked up by running servers.

Append-only: the newest policy of a model and proxy is in force, and to roll back is to publish an older one again. A
server looks for it now and then on its background thread; whatever goes wrong there leaves the policy as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from fastrm_monitor.errors import DataError, FastRMError, StoreError
from fastrm_monitor.guard import logger
from fastrm_monitor.records.models import PolicyRecord
from fastrm_monitor.records.store import Store
from fastrm_monitor.records.text import clean_text
from fastrm_monitor.scoring.recalibration import Recalibration, kept_as, score_of

_ADVISORY_LOCK = 0x666173747270  # of PostgreSQL, taken while a policy is published


class OvertakenError(FastRMError):
    """Somebody else published meanwhile; nothing was written."""


@dataclass(frozen=True)
class Published:
    """A policy that can be in force.

    Attributes:
        version: number in the store.
        threshold: answers whose recalibrated confidence is below are flagged.
        recalibration: from the proxy folder's confidence to P(right).
    """

    version: int
    threshold: float
    recalibration: Recalibration

    def apply(
        self, features: Mapping[str, float], confidence: float, calibrated: bool
    ) -> tuple[dict[str, float], float] | None:
        """Features, the score before among them, and the new confidence; None for other scores than its own."""
        score, source = score_of(features, confidence, calibrated)
        if source != self.recalibration.source:
            return None
        return {**features, kept_as(source): score}, self.recalibration(score)


def publish(
    store: Store,
    *,
    model: str,
    proxy_version: str,
    threshold: float,
    recalibration: Recalibration,
    chosen: Mapping[str, Any],
    author: str,
    note: str = "",
    again: int | None = None,
    expected: int | None = None,
) -> int:
    """Write a policy, which servers of that model and proxy pick up, and return its version.

    Args:
        store: that the servers write to.
        model: name of the model, as in the cases.
        proxy_version: likewise.
        threshold: in 0..1, on the recalibrated confidence.
        recalibration: that goes before it.
        chosen: how, for those who read it later: method, target, n, bound; JSON.
        author: who publishes.
        note: why.
        again: the version that this one repeats.
        expected: newest version of the model and proxy that the publisher knows of, 0 where there is none; None writes
            after whatever there is.

    Raises:
        DataError: the threshold is out of range.
        OvertakenError: another version than the expected one is the newest; nothing was written.
        StoreError: the database failed; nothing was written.
    """
    if not 0 <= threshold <= 1:
        raise DataError(f"A threshold lies between 0 and 1, not at {threshold}.")
    record = PolicyRecord(
        created_at=datetime.now(UTC),
        author=clean_text(author, 255),
        note=clean_text(note),
        model=clean_text(model, 255),
        proxy_version=clean_text(proxy_version, 64),
        threshold=threshold,
        recalibration=recalibration.as_json(),
        chosen=dict(chosen),
        again=again,
    )
    with store.session(write=True) as session:
        if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer only
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        if expected is not None:
            _refuse_overtaken(session, record, expected)
        session.add(record)
        session.flush()
        return record.id


def _refuse_overtaken(session: Session, record: PolicyRecord, expected: int) -> None:
    own = select(PolicyRecord).where(
        PolicyRecord.model == record.model, PolicyRecord.proxy_version == record.proxy_version
    )
    newest = session.scalar(own.order_by(PolicyRecord.id.desc()).limit(1))
    if (newest.id if newest else 0) != expected:
        what = f"{newest.author} published version {newest.id}" if newest else f"Version {expected} was deleted"
        raise OvertakenError(f"{what} meanwhile. Nothing was written: look again.")


def roll_back(store: Store, version: int, *, author: str, note: str = "", expected: int | None = None) -> int:
    """Publish an older policy again and return the new version; `expected` is that of `publish`.

    Raises:
        DataError: there is no such version.
        OvertakenError: another version than the expected one is the newest; nothing was written.
        StoreError: the database failed; nothing was written.
    """
    with store.session() as session:
        old = session.get(PolicyRecord, version)
    if old is None:
        raise DataError(f"There is no policy {version} in the store {store.safe_url}.")
    return publish(
        store,
        model=old.model,
        proxy_version=old.proxy_version,
        threshold=old.threshold,
        recalibration=Recalibration.from_json(old.recalibration),
        chosen=old.chosen,
        author=author,
        note=note,
        again=version,
        expected=expected,
    )


def history(store: Store, model: str, proxy_version: str, limit: int = 50) -> list[PolicyRecord]:
    """The policies of a model and proxy, the newest, which is in force, first.

    Raises:
        StoreError: the database failed.
    """
    wanted = select(PolicyRecord).where(PolicyRecord.model == model, PolicyRecord.proxy_version == proxy_version)
    with store.session() as session:
        return list(session.scalars(wanted.order_by(PolicyRecord.id.desc()).limit(limit)))


class PolicyWatch:
    """The policy in force in one server. `current` is read by any thread; `turn` is for the background thread.

    Args:
        store: where policies are published.
        proxy_version: of the server's proxy; policies for others are ignored.
        seconds: between two looks; 0 never looks.
        threshold: set by the user, wins over what is published; None when not set.
        failed: told of each policy that is ignored, once.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        store: Store,
        *,
        proxy_version: str,
        seconds: float,
        threshold: float | None,
        failed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.current: Published | None = None  # replaced as a whole: whoever reads it once has one policy
        self._store, self._proxy_version, self._seconds = store, proxy_version, seconds
        self._threshold, self._failed, self._clock = threshold, failed, clock
        self._next = -float("inf")
        self._seen = 0  # version that was looked at last
        self._foreign = 0  # of another proxy, likewise
        self._overruled = False

    def turn(self, model: str) -> None:
        """Look for a newer policy of the model if it is time to; a store that fails changes nothing."""
        now = self._clock()
        if not self._seconds or now < self._next:
            return
        self._next = now + self._seconds
        own = select(PolicyRecord).where(PolicyRecord.model == clean_text(model, 255))
        try:
            with self._store.session() as session:
                newest = session.scalar(own.order_by(PolicyRecord.id.desc()).limit(1))
                if newest is not None and newest.proxy_version != self._proxy_version:
                    self._say_foreign(newest)
                    fitting = own.where(PolicyRecord.proxy_version == self._proxy_version)
                    newest = session.scalar(fitting.order_by(PolicyRecord.id.desc()).limit(1))
        except StoreError:  # the outbox says so, and tries again
            return
        if newest is not None and newest.id > self._seen:
            self._seen = newest.id
            self._take(newest)

    def _take(self, record: PolicyRecord) -> None:
        try:
            made = Published(record.id, record.threshold, Recalibration.from_json(record.recalibration))
        except DataError as error:
            self._failed()
            logger.warning("fastrm-monitor: policy %d is ignored, the one before stays. %s", record.id, error)
            return
        if self._threshold is not None:
            made = replace(made, threshold=self._threshold)
            if not self._overruled:
                self._overruled = True
                logger.warning(
                    "fastrm-monitor: FASTRM_THRESHOLD=%s is set, so thresholds that are published are not used",
                    self._threshold,
                )
        self.current = made
        logger.info("fastrm-monitor: policy %d is in force, threshold %.4f", made.version, made.threshold)

    def _say_foreign(self, record: PolicyRecord) -> None:
        if record.id > self._foreign:
            self._foreign = record.id
            self._failed()
            logger.warning(
                "fastrm-monitor: policy %d is for proxy %s and this server has %s: it is ignored",
                record.id,
                record.proxy_version,
                self._proxy_version,
            )
