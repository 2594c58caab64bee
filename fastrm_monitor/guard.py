"""One shell for every entry from an engine: whatever goes wrong inside, the answer is served.

An exception is counted by stage, logged at most once a minute for each stage, and swallowed. Under
`fastrm_monitor.testing.strict()` it is raised again, so that tests see it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

logger = logging.getLogger("fastrm_monitor")

STRICT = False
"""Raise again instead of swallowing; set by `fastrm_monitor.testing.strict`."""

_QUIET_SECONDS = 60.0
_last_logged: dict[str, float] = {}


class Guard:
    """`with guard("score"): ...` where `guard = Guard(count)`; `count(stage)` is told of every failure."""

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count

    def __call__(self, stage: str) -> _Guarded:
        """A context for one stage: capture, score, record, telemetry, store, ..."""
        return _Guarded(stage, self._count)


class _Guarded:
    def __init__(self, stage: str, count: Callable[[str], None]) -> None:
        self._stage, self._count = stage, count
        self.failed = False

    def __enter__(self) -> _Guarded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False  # KeyboardInterrupt and SystemExit are the user's
        self.failed = True
        self._count(self._stage)
        log_once(f"fastrm-monitor: {self._stage} failed, answers are served without it: %s", self._stage, error)
        return not STRICT


def log_once(message: str, key: str, error: BaseException) -> None:
    """Log a warning with the error's traceback, at most once a minute for each key."""
    # Without a lock, which a forked child could inherit locked: two threads may log the same line, that is all.
    now = time.monotonic()
    if now - _last_logged.get(key, -_QUIET_SECONDS) >= _QUIET_SECONDS:
        _last_logged[key] = now
        logger.warning(message, f"{type(error).__name__}: {error}", exc_info=error)
