"""A circuit breaker: whoever fails several times in a row is left alone for a while, longer each time.

Knows neither stores nor logs. Its clock is monotonic, so a wall clock that is set back changes nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable


class CircuitBreaker:
    """Says whether a call may be tried. Closed, it always may; open, only once its interval has passed.

    Used by one thread at a time; another may read it.

    Args:
        failures: failures in a row that open it.
        first: seconds of the first interval; each failed try doubles it.
        most: longest interval.
        clock: monotonic seconds.
        draw: uniform in 0..1; an interval is shortened by up to half of it, so that many servers do not try at once.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        first: float = 1.0,
        most: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._limit, self._first, self._most = failures, first, most
        self._clock, self._draw = clock, draw
        self._failures = 0  # in a row
        self._until = 0.0  # an open one allows no try before
        self.is_open = False

    def allows(self) -> bool:
        """Whether a call may be tried now."""
        return not self.is_open or self._clock() >= self._until

    def failed(self, *, at_once: bool = False) -> bool:
        """A try failed; True when that opened the breaker, which `at_once` does after one failure."""
        self._failures += 1
        opens = not self.is_open and (at_once or self._failures >= self._limit)
        self.is_open = self.is_open or opens
        if self.is_open:
            doublings = min(max(self._failures - self._limit, 0), 32)
            self._until = self._clock() + min(self._most, self._first * 2.0**doublings) * (1 - self._draw() / 2)
        return opens

    def succeeded(self) -> bool:
        """A try succeeded; True when that closed the breaker."""
        closes, self.is_open, self._failures = self.is_open, False, 0
        return closes
