"""Whether a store may be asked, how often, and what is said of it: retries with jitter, behind them a circuit breaker.

Knows nothing of what is written. Its waits are interrupted when the process ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec

import tenacity

from fastrm_monitor.errors import StoreError
from fastrm_monitor.guard import logger
from fastrm_monitor.records.breaker import CircuitBreaker
from fastrm_monitor.records.counters import Counters
from fastrm_monitor.records.engine import RejectedError, StoreAwayError, StoreSilentError
from fastrm_monitor.records.forks import renew_in_child

P = ParamSpec("P")

_ATTEMPTS = 3


def is_away(error: Exception) -> bool:
    """Whether the store is at fault, and not what was to be written."""
    return isinstance(error, StoreError) and not isinstance(error, RejectedError)


def _may_work_soon(error: BaseException) -> bool:
    return isinstance(error, StoreAwayError) and not isinstance(error, StoreSilentError)


class StoreHealth:
    """The state of one store, as its writer sees it.

    Args:
        counters: failures are counted as "store", an opening of the breaker as "store_circuit".
        otherwise: what becomes of cases meanwhile, for the log: "cases ...".
        breaker: made when None.
    """

    def __init__(self, counters: Counters, otherwise: str, breaker: CircuitBreaker | None = None) -> None:
        self._counters, self._otherwise = counters, otherwise
        self._breaker = breaker or CircuitBreaker()
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """A child is not ending because its parent is."""
        self._ending = threading.Event()
        self._given_up = False
        self._retry = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_work_soon),
            stop=tenacity.stop_after_attempt(_ATTEMPTS) | tenacity.stop_when_event_set(self._ending),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=0.5),
            sleep=tenacity.sleep_using_event(self._ending),
            reraise=True,
        )

    @property
    def circuit_open(self) -> bool:
        """Whether the store is left alone for a while."""
        return self._breaker.is_open

    @property
    def ending(self) -> bool:
        """Whether the process or the monitor ends."""
        return self._ending.is_set()

    def may_try(self) -> bool:
        """Whether the store may be asked now."""
        return not self._given_up and self._breaker.allows()

    def attempt(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call, and when the store is away call again, thrice in all; once at the end, or to see whether it is back.

        Raises:
            Exception: what the last call raised.
        """
        if self.ending or self._breaker.is_open:
            call(*args, **kwargs)
        else:
            self._retry(call, *args, **kwargs)

    def failed(self, error: Exception) -> None:
        """An attempt failed; at the end one is enough, and so it is when there was no answer."""
        self._counters.add("failed", "store")
        if self._breaker.failed(at_once=self.ending or isinstance(error, StoreSilentError)):
            self._counters.add("failed", "store_circuit")
            logger.warning("fastrm-monitor: cases %s, and the store is tried again later: %s", self._otherwise, error)

    def works(self, waiting: int) -> None:
        """An attempt succeeded; so many cases wait elsewhere."""
        if self._breaker.succeeded():
            logger.warning("fastrm-monitor: the store is back; %d cases wait to be written", waiting)

    def hurry(self) -> None:
        """The end is near: no waits between attempts from now on."""
        self._ending.set()

    def give_up(self) -> None:
        """The store does not answer and time is up: it is not asked any more, whatever it says later."""
        self._given_up = True
