"""Counts of every answer by name and reason, and the same counts by minute for the store's `traffic` table.

The monitor adds; its background thread writes the minutes into the store. Knows neither monitor nor store.
What the monitor promises of them, whenever it is asked: seen = scored + skipped, and
scored + adopted = stored + sampled_out + dropped + pending.

What is written of a minute is its count so far, not what was added: the store keeps the larger value, so that writing
the same rows again, out of a spool for example, changes nothing.
"""

from __future__ import annotations

import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import RLock

from fastrm_monitor.records.forks import renew_in_child

NAMES = (
    "seen",  # answers that reached the monitor
    "scored",
    "skipped",  # by reason, e.g. "no_image"
    "flagged",  # by reason, e.g. "low_confidence"
    "stored",
    "sampled_out",  # neither flagged nor drawn into the sample
    "dropped",  # by reason: "queue_full", "store_error", "shutdown", ...
    "failed",  # by stage: "capture", "score", "telemetry", "store", "picture", ...
    "purged",  # stored cases that retention deleted
    "engine",  # starts of an engine that is watched; the reason says which
    "confidence_sum",  # of the scored answers, so that the mean over all traffic is known
)

TrafficRow = tuple[datetime, str, str, float]
"""(minute in UTC, name, reason, value)."""

HOUR_MARK = timedelta(seconds=30)
"""The row of an hour stands so long after its beginning, where no row of a minute ever stands."""

_Counts = dict[tuple[str, str], float]

_MOST_MINUTES = 1440
"""Minutes kept apart while nobody takes them; older ones are added up into the next, so that no count is lost."""


@dataclass(frozen=True)
class Balance:
    """Where every answer of this process is, at one moment.

    Attributes:
        seen: answers that reached the monitor.
        scored: those of them with an assessment.
        skipped: the others, whatever the reason.
        adopted: cases that another process scored and left in its spool, and that this one took over.
        stored: in the database.
        sampled_out: scored and, by the policy, not to be stored.
        dropped: lost, whatever the reason.
        pending: scored and on their way: in the caller's hands, queued, in delivery, or in the spool.
    """

    seen: int
    scored: int
    skipped: int
    adopted: int
    stored: int
    sampled_out: int
    dropped: int
    pending: int

    @property
    def holds(self) -> bool:
        """Whether every answer is somewhere, once."""
        ended = self.stored + self.sampled_out + self.dropped
        whole = self.seen == self.scored + self.skipped and self.scored + self.adopted == ended + self.pending
        return whole and self.pending >= 0


@dataclass
class _Run:
    """Counts by minute (since the epoch); `sent` is what the store has of them, minutes up to `sealed` are gone."""

    minutes: dict[int, _Counts] = field(default_factory=dict)
    sent: dict[int, _Counts] = field(default_factory=dict)
    sealed: int = -1


class Counters:
    """Counts that many threads may add to; a forked child begins at zero, since its parent writes the counts so far.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Begin at zero."""
        self._lock = RLock()  # re-entrant: a signal handler or a finalizer may count too
        self._totals: _Counts = {}
        self._pending = self._adopted = 0
        self._runs: dict[str, _Run] = {}
        self._begin_run()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is counted inside is seen by others all at once."""
        with self._lock:
            yield

    def add(self, name: str, reason: str = "", value: float = 1.0) -> None:
        """Add `value` to one of `NAMES`; what is not finite is left out, because it would spoil the sum for good.

        Raises:
            ValueError: `name` is none of `NAMES`.
        """
        if name not in NAMES:
            raise ValueError(f"There is no counter {name!r}; the counters are {', '.join(NAMES)}.")
        if not math.isfinite(value):
            return
        with self._lock:
            key = (name, reason)
            self._totals[key] = self._totals.get(key, 0.0) + float(value)
            minute = int(self._clock() // 60)
            if minute <= self._run.sealed:  # the clock was set back, and the store has that minute already
                self._begin_run()
            counts = self._run.minutes.setdefault(minute, {})
            counts[key] = counts.get(key, 0.0) + float(value)
            self._bound()

    def begin(self) -> None:
        """A scored answer is on its way; `end` says what became of it."""
        with self._lock:
            self._pending += 1

    def adopt(self, count: int) -> None:
        """Cases that another process scored are on their way."""
        with self._lock:
            self._adopted += count
            self._pending += count

    def end(self, name: str, reason: str = "", count: int = 1) -> None:
        """So many answers on their way are "stored", "sampled_out" or "dropped" now."""
        if count:
            with self._lock:
                self.add(name, reason, count)
                self._pending -= count

    def snapshot(self) -> dict[tuple[str, str], float]:
        """Totals of this process by (name, reason)."""
        with self._lock:
            return dict(self._totals)

    def balance(self) -> Balance:
        """Where every answer is, at one moment."""
        with self._lock:
            sums = dict.fromkeys(NAMES, 0.0)
            for (name, _), value in self._totals.items():
                sums[name] += value
            ended = {name: round(sums[name]) for name in ("stored", "sampled_out", "dropped")}
            begun = {name: round(sums[name]) for name in ("seen", "scored", "skipped")}
            return Balance(**begun, **ended, adopted=self._adopted, pending=self._pending)

    def unsent(self) -> list[tuple[str, list[TrafficRow]]]:
        """What the store does not have yet: (server, rows), by UTC minute, oldest first, each with its count so far.

        The server's name is of this process and no other, before or after; a clock that is set back makes a new one.
        """
        with self._lock:
            found = []
            for server, run in self._runs.items():
                rows = [
                    (datetime.fromtimestamp(minute * 60, UTC), name, reason, value)
                    for minute, counts in sorted(run.minutes.items())
                    for (name, reason), value in counts.items()
                    if run.sent.get(minute, {}).get((name, reason)) != value
                ]
                if rows:
                    found.append((server, rows))
            return found

    def sent(self, server: str, rows: Sequence[TrafficRow]) -> None:
        """The store has these rows of `unsent`."""
        with self._lock:
            run = self._runs.get(server)
            if run is None:  # of before a fork
                return
            for start, name, reason, value in rows:
                run.sent.setdefault(int(start.timestamp() // 60), {})[name, reason] = value
            now = int(self._clock() // 60)
            for minute in [m for m in run.minutes if run is not self._run or m < now]:
                if run.minutes[minute] == run.sent.get(minute):
                    del run.minutes[minute], run.sent[minute]
                    run.sealed = max(run.sealed, minute)
            if run is not self._run and not run.minutes:
                del self._runs[server]

    # --- with the lock held ---------------------------------------------------------------------------------------

    def _begin_run(self) -> None:
        self._run = _Run()
        self._runs[f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"] = self._run

    def _bound(self) -> None:
        if len(self._run.minutes) > _MOST_MINUTES:
            whole = sorted(minute for minute in self._run.minutes if minute not in self._run.sent)
            if len(whole) > 1:
                heir = self._run.minutes[whole[1]]
                for key, value in self._run.minutes.pop(whole[0]).items():
                    heir[key] = heir.get(key, 0.0) + value
