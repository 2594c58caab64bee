"""Where cases and counts go: into the store, or into the spool while the store is away, and from there into the store.

Called on the writer's thread, and at the end of the process on the thread that closes it. Every case ends as "stored"
or "dropped" in the counters, or waits in the spool. Knows neither queue nor telemetry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fastrm_monitor.guard import log_once
from fastrm_monitor.records.breaker import CircuitBreaker
from fastrm_monitor.records.counters import Counters
from fastrm_monitor.records.forks import renew_in_child
from fastrm_monitor.records.frames import decode_case, decode_traffic, encode_case, encode_traffic
from fastrm_monitor.records.health import StoreHealth, is_away
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.spool import NO_ROOM, Spool
from fastrm_monitor.records.store import Store

_PATIENCE = 0.25  # seconds for the locks of others: shorter than a fork waits
_LAST_PATIENCE = 0.6  # at the end of the process, where there is one try
_SLOW_SECONDS = 0.5
_ADOPT_SECONDS = 30.0
_REPLAY_SECONDS = 0.5  # of one go, so that new cases need not wait for long
_TRAFFIC_SECONDS = 5.0


class Outbox:
    """Delivers cases and counts to one store.

    A failed write is tried again twice, with jitter; then its cases go to the spool. After several failures in a row
    the store is left alone for a while (see `CircuitBreaker`), and everything goes to the spool at once.

    Args:
        store: where cases go.
        spool: where they wait; None for nowhere, then they are dropped.
        counters: every case was counted with `begin`.
        dropped: told of a reason and a number of cases that are lost; counts them.
        crowded: whether more is waiting for delivery than a slow store should hold up.
        breaker: made when None.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool | None,
        counters: Counters,
        *,
        dropped: Callable[[str, int], None],
        crowded: Callable[[], bool] = lambda: False,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._store, self._spool, self._counters = store, spool, counters
        self._dropped, self._crowded = dropped, crowded
        otherwise = "are dropped, there is no spool" if spool is None else f"wait in {spool.folder}"
        self._health = StoreHealth(counters, otherwise, breaker)
        store.told_silent = self._health.failed  # what else the thread asks of it: one wait is enough
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Begin with empty hands."""
        self._lock = threading.Lock()
        self._hand: dict[int, Case] = {}  # being delivered; who takes a case out decides what becomes of it
        self._putting = threading.Lock()  # held while a case goes to the spool
        self._traffic_lock = threading.Lock()
        self._traffic_saved = self._adopted = -float("inf")
        self._counts_left = False  # counts that others left, and that the store lacks
        self._slow = False

    @property
    def circuit_open(self) -> bool:
        """Whether the store is left alone for a while."""
        return self._health.circuit_open

    @property
    def settled(self) -> bool:
        """Whether it was looked for what others left, and the store has all of that and of our own."""
        return self._adopted >= 0 and not self._counts_left and not self.spooled

    @property
    def others_left(self) -> bool:
        """Whether the spool has what another process left, or is still writing."""
        return self._spool is not None and self._spool.has_others()

    @property
    def spooled(self) -> int:
        """Cases that wait in the spool."""
        return 0 if self._spool is None else self._spool.waiting

    # --- cases ------------------------------------------------------------------------------------------------------

    def deliver(self, cases: Sequence[Case]) -> None:
        """Store the cases, or spool them; never raises."""
        self.take(cases)
        self.deliver_taken(cases)

    def take(self, cases: Iterable[Case]) -> None:
        """From here on `rescue` knows of the cases; `deliver_taken` is to follow."""
        with self._lock:
            self._hand |= {id(case): case for case in cases}

    def deliver_taken(self, cases: Sequence[Case]) -> None:
        """See `deliver`."""
        found = _Outcome(left=list(cases))
        hurried = self._slow and (self._health.ending or self._crowded())  # then to the spool, which is faster
        if not hurried and self._health.may_try():
            found = self._write(cases)
        self._counters.end("stored", count=len(self._claim(found.stored)))
        self._drop("store_error", len(self._claim(found.refused)))
        self._put_by(found.left)

    def _write(self, cases: Sequence[Case]) -> _Outcome:
        began = time.monotonic()
        try:
            self._health.attempt(self._store.add, cases, _LAST_PATIENCE if self._health.ending else _PATIENCE)
        except Exception as error:
            if is_away(error):
                self._health.failed(error)
                return _Outcome(left=list(cases))
            return self._write_each(cases, error)
        self._slow = time.monotonic() - began > _SLOW_SECONDS
        self._health.works(self.spooled)
        return _Outcome(stored=list(cases))

    def _write_each(self, cases: Sequence[Case], why: Exception) -> _Outcome:
        """One of the cases is refused: the others must not be lost with it."""
        found = _Outcome(left=list(cases))
        while found.left:
            case = found.left[0]
            try:
                if len(cases) == 1:
                    raise why
                self._store.add([case], _PATIENCE)
                found.stored.append(case)
            except Exception as error:
                if is_away(error):
                    self._health.failed(error)
                    return found
                self._counters.add("failed", "store")
                log_once("fastrm-monitor: a case could not be stored: %s", "store", error)
                found.refused.append(case)
            found.left.pop(0)
        self._health.works(self.spooled)
        return found

    def _put_by(self, cases: Iterable[Case]) -> None:
        """Spool the cases that are still in hand, flagged ones first; what is not spooled yet, `rescue` may take."""
        for case in sorted(cases, key=lambda one: not one.flagged):
            with self._putting:
                if self._claim([case]):
                    self._spool_one(case)

    def _spool_one(self, case: Case) -> None:
        if self._spool is None:
            self._drop("store_error")
            return
        try:
            taken, driven_out = self._spool.add(encode_case(case), flagged=case.flagged)
        except Exception as error:  # a full disk, a folder that is gone
            self._counters.add("failed", "spool")
            log_once("fastrm-monitor: the store is away and the spool cannot be written: %s", "spool", error)
            self._drop("spool_full" if getattr(error, "errno", None) in NO_ROOM else "store_error")
        else:
            self._drop("spool_full", driven_out + (not taken))

    def _claim(self, cases: Iterable[Case]) -> list[Case]:
        with self._lock:
            return [case for case in cases if self._hand.pop(id(case), None) is not None]

    def _drop(self, reason: str, count: int = 1) -> None:
        if count:
            self._dropped(reason, count)

    # --- in between ---------------------------------------------------------------------------------------------------

    def idle(self) -> None:
        """Write counts, and what waits in the spool, as long as nothing newer has to wait for it."""
        if self._slow and self._crowded():
            return  # each of these would take as long as a batch
        self.write_traffic()
        if self._spool is None or self._health.ending:
            return
        now = time.monotonic()
        if now - self._adopted >= _ADOPT_SECONDS:
            try:
                self._counters.adopt(self._spool.adopt())
                self._counts_left = True
            finally:
                self._adopted = now
        if self._counts_left:
            self._replay_traffic()
        while time.monotonic() - now < _REPLAY_SECONDS and not self._crowded() and self._replay():
            pass

    def _replay(self) -> bool:
        """Write some of what waits; whether there was something and the store took it."""
        if self._spool is None or self._health.ending or not self._health.may_try():
            return False
        lent = self._spool.lend()
        if lent is None:
            return False
        cases = []
        for payload in lent.payloads:
            with suppress(ValueError):
                cases.append(decode_case(payload or b""))
        found = self._write(cases) if cases else _Outcome()
        if found.left:
            self._spool.keep(lent)  # those that were stored are stored again, which changes nothing
            return False
        if not self._spool.done(lent):
            return False  # whoever has them now counts them
        self._counters.end("stored", count=len(found.stored))
        self._drop("store_error", len(found.refused))
        self._drop("spool_damaged", len(lent.payloads) - len(cases))
        return True

    # --- traffic counts -----------------------------------------------------------------------------------------------

    def write_traffic(self) -> None:
        """Write what the store does not have yet; while it is away keep that in the spool, now and then."""
        with self._traffic_lock:  # whoever flushes waits for the counts that the background thread is writing
            unsent = self._counters.unsent()
            if not unsent:
                return
            if self._health.may_try():
                try:
                    for server, rows in unsent:
                        self._store.add_traffic(server, rows, _PATIENCE)
                        self._counters.sent(server, rows)
                    self._forget_traffic()
                    return
                except Exception as error:
                    self._traffic_failed(error)
            if self._health.ending or time.monotonic() - self._traffic_saved >= _TRAFFIC_SECONDS:
                self.save_traffic()

    def save_traffic(self) -> None:
        """Keep in the spool what the store does not have yet."""
        unsent = self._counters.unsent()
        if self._spool is None or not unsent:
            return
        self._traffic_saved = time.monotonic()
        try:
            _, driven_out = self._spool.save_traffic(encode_traffic(unsent))
            self._drop("spool_full", driven_out)
        except OSError as error:
            self._counters.add("failed", "spool")
            log_once("fastrm-monitor: the store is away and the spool cannot be written: %s", "spool", error)

    def _traffic_failed(self, error: Exception) -> None:
        if is_away(error):
            self._health.failed(error)
        else:
            log_once("fastrm-monitor: traffic counts could not be stored yet: %s", "traffic", error)

    def _forget_traffic(self) -> None:
        if self._spool is not None and self._traffic_saved > -float("inf"):
            self._traffic_saved = -float("inf")
            self._spool.drop_traffic()

    def _replay_traffic(self) -> None:
        """Write the counts that others left; if some of them are in the store already, that changes nothing."""
        if self._spool is None:
            return
        for owner, payload in self._spool.traffic():
            if not self._health.may_try():
                return
            try:
                for server, rows in decode_traffic(payload or b""):
                    self._store.add_traffic(server, rows, _PATIENCE)
            except ValueError as error:
                log_once("fastrm-monitor: spooled traffic counts are damaged: %s", "spooled traffic", error)
            except Exception as error:
                self._traffic_failed(error)
                if is_away(error):
                    return
            self._spool.drop_traffic(owner)
        self._counts_left = False

    # --- ends ---------------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """The process or the monitor ends: no more waiting; after one failure everything goes to the spool."""
        self._health.hurry()

    def rescue(self) -> None:
        """The store does not answer, and time is up: spool what is being delivered, and everything from now on."""
        self._health.give_up()
        with self._lock:
            hand = list(self._hand.values())
        self._put_by(hand)
        with self._putting:  # another thread may have had the last one
            pass

    def close(self) -> None:
        """Write or keep the last counts, and let go of the spool."""
        self._health.hurry()
        self.write_traffic()
        if self._spool is not None:
            self._spool.close()


@dataclass
class _Outcome:
    """What became of cases: `left` are those that the store was away for."""

    stored: list[Case] = field(default_factory=list)
    refused: list[Case] = field(default_factory=list)
    left: list[Case] = field(default_factory=list)
