"""What the writer's thread does now and then so that a store does not grow for ever: old cases go, old counts shrink.

Any number of servers may do so at once: what one has deleted, the others do not find. Cases are deleted only where
`FASTRM_RETENTION_DAYS` says so. Minutes of traffic that are older than two days become hours, which are all that the
dashboard shows of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import aliased

from fastrm_monitor.guard import log_once, logger
from fastrm_monitor.records.counters import HOUR_MARK
from fastrm_monitor.records.engine import insert_into
from fastrm_monitor.records.forks import renew_in_child
from fastrm_monitor.records.models import Traffic
from fastrm_monitor.records.purge import Counts, Selection, purge
from fastrm_monitor.records.store import Store

MINUTES_KEPT = timedelta(days=2)
"""Older minutes of traffic are added up by hour."""

_FIRST_SECONDS = 60.0  # a process that lives shorter has other worries
_EVERY_SECONDS = 3600.0
_AGAIN_SECONDS = 600.0  # after a failure
_SLICE_SECONDS = 0.2  # of one go: new cases wait for it
_PATIENCE = 0.25


class Retention:
    """Deletes and compacts in small portions on the thread that calls it; never raises.

    Args:
        store: where.
        days: cases, drift and traffic older than this are deleted; 0 keeps them.
        keep_labelled: whether cases with a verdict stay.
        counted: told of every portion: "purged" with the number of cases, or "failed" with 1.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        days: float,
        keep_labelled: bool,
        counted: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._days, self._keep_labelled = store, days, keep_labelled
        self._counted, self._clock = counted, clock
        self._stopped = False
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """A child begins anew."""
        self._work: Iterator[Counts] | None = None
        self._due = self._clock() + _FIRST_SECONDS

    def stop(self) -> None:
        """The process or the monitor ends: nothing more is deleted."""
        self._stopped = True

    def turn(self) -> None:
        """Go on for a moment, if it is time; about once an hour there is something to do."""
        began = self._clock()
        if self._stopped or (self._work is None and began < self._due):
            return
        try:
            self._work = self._work or self._begin()
            for done in self._work:
                if done.cases:
                    self._counted("purged", done.cases)
                if self._stopped or self._clock() - began > _SLICE_SECONDS:
                    return
            self._work, self._due = None, self._clock() + _EVERY_SECONDS
        except Exception as error:
            self._work, self._due = None, self._clock() + _AGAIN_SECONDS
            self._counted("failed", 1)
            log_once("fastrm-monitor: old cases could not be deleted, it is tried again later: %s", "retention", error)

    def _begin(self) -> Iterator[Counts]:
        now = datetime.now(UTC)
        shrinking = compact(self._store, now - MINUTES_KEPT, patience=_PATIENCE)
        if not self._days:
            return shrinking
        logger.debug("fastrm-monitor: deleting what is older than %g days", self._days)
        old = Selection(before=now - timedelta(days=self._days), keep_labelled=self._keep_labelled)
        return chain(purge(self._store, old, patience=_PATIENCE, remember=False), shrinking)


def compact(store: Store, before: datetime, *, patience: float | None = None) -> Iterator[Counts]:
    """Add up the minutes of traffic by hour, one hour in each transaction; sums by server and reason do not change.

    Counts of a minute that arrive later are added with the next call. The newest minute of each server stays as it is:
    a server writes its minutes in order, so that whoever finds its spool days later can tell by it which counts are in
    the hours already (see `Store.add_traffic`).

    Args:
        store: where.
        before: minutes of hours that ended by then.
        patience: seconds that each transaction waits for the locks of others; None is the database's default.

    Raises:
        StoreError: the database failed.
    """
    before = before.replace(minute=0, second=0, microsecond=0)
    with store.session() as session:
        older = select(Traffic.minute).where(Traffic.minute < before, _superseded()).distinct()
        minutes = list(session.scalars(older))
    hours = {minute - timedelta(minutes=minute.minute) for minute in minutes if not minute.second}
    for hour in sorted(hours):
        _compact_hour(store, hour, patience)
        yield Counts()


def _superseded() -> ColumnElement[bool]:
    """Counts of a server that has written newer ones."""
    other = aliased(Traffic)
    newest = select(func.max(other.minute)).where(other.server == Traffic.server).correlate(Traffic).scalar_subquery()
    return Traffic.minute < newest


def _compact_hour(store: Store, hour: datetime, patience: float | None) -> None:
    with store.session(write=True, patience=patience) as session:
        minutes = (
            Traffic.minute >= hour,
            Traffic.minute < hour + timedelta(hours=1),
            Traffic.minute != hour + HOUR_MARK,
            _superseded(),
        )
        gone = session.execute(
            delete(Traffic).where(*minutes).returning(Traffic.server, Traffic.name, Traffic.reason, Traffic.value)
        )
        sums: dict[tuple[str, str, str], float] = {}
        for server, name, reason, value in gone:
            sums[server, name, reason] = sums.get((server, name, reason), 0.0) + value
        if not sums:  # another server was faster
            return
        insert = insert_into(session.get_bind().dialect, Traffic)
        upsert = insert.on_conflict_do_update(
            index_elements=[Traffic.server, Traffic.minute, Traffic.name, Traffic.reason],
            set_={"value": Traffic.value + insert.excluded.value},
        )
        rows = [
            {"server": server, "minute": hour + HOUR_MARK, "name": name, "reason": reason, "value": value}
            for (server, name, reason), value in sorted(sums.items())
        ]
        session.connection().execute(upsert, rows)
