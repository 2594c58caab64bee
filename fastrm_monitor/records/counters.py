"""Counts of every answer by name and reason, and the same counts by minute for the store's `traffic` table.

The monitor adds; its background thread drains the minutes into the store. Knows neither monitor nor store.
What the monitor promises of them: seen = scored + skipped, and scored = stored + sampled_out + dropped + pending.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
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
    "engine",  # starts of an engine that is watched; the reason says which
    "confidence_sum",  # of the scored answers, so that the mean over all traffic is known
)

TrafficRow = tuple[datetime, str, str, float]
"""(minute in UTC, name, reason, value)."""

_MOST_MINUTES = 1440
"""Minutes kept apart while nobody drains; older ones are added up into the next, so that no count is lost."""


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
        self._totals: dict[tuple[str, str], float] = {}
        self._minutes: dict[int, dict[tuple[str, str], float]] = {}

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
            self._add_to_minute(int(self._clock() // 60), key, float(value))

    def snapshot(self) -> dict[tuple[str, str], float]:
        """Totals of this process by (name, reason)."""
        with self._lock:
            return dict(self._totals)

    def drain(self) -> list[TrafficRow]:
        """What was added since the last drain, by UTC minute, oldest first."""
        with self._lock:
            minutes, self._minutes = self._minutes, {}
        return [
            (datetime.fromtimestamp(minute * 60, UTC), name, reason, value)
            for minute, counts in sorted(minutes.items())
            for (name, reason), value in counts.items()
        ]

    def restore(self, rows: Iterable[TrafficRow]) -> None:
        """Put back drained rows that could not be written, for the next drain."""
        with self._lock:
            for minute, name, reason, value in rows:
                self._add_to_minute(int(minute.timestamp() // 60), (name, reason), value)

    def _add_to_minute(self, minute: int, key: tuple[str, str], value: float) -> None:
        counts = self._minutes.setdefault(minute, {})
        counts[key] = counts.get(key, 0.0) + value
        if len(self._minutes) > _MOST_MINUTES:
            oldest = self._minutes.pop(min(self._minutes))
            heir = self._minutes[min(self._minutes)]
            for old, much in oldest.items():
                heir[old] = heir.get(old, 0.0) + much
