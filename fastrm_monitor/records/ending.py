"""The end of the process: whoever has something to deliver gets a bounded time to do so. Knows nothing of what.

It comes through `atexit`, through `multiprocessing` (whose children run no `atexit` when they were forked), or as
SIGTERM, which by default kills a process before any of that. A handler for SIGTERM is installed where nobody else has
one, in the main thread, at the first use and not before; a host's own handler is never touched, and it ends the process
in its own way, which comes by here.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Protocol
from weakref import WeakSet

from fastrm_monitor.records.forks import renew_in_child


class Closer(Protocol):
    """Something that is closed at the end."""

    @property
    def flush_seconds(self) -> float:
        """How long closing may take."""

    @property
    def pending(self) -> int:
        """How much waits for delivery or is in it."""

    def flush(self, timeout: float | None = None) -> bool:
        """Deliver within `timeout` seconds and go on."""

    def begin_close(self) -> None:
        """Start ending, without waiting."""

    def close(self, timeout: float | None = None) -> None:
        """End within `timeout` seconds; idempotent, never raises."""


_closers: WeakSet[Closer] = WeakSet()


def close_at_end(closer: Closer) -> None:
    """Have it closed when the process ends, if it is still there."""
    _closers.add(closer)


def close_all(began: float | None = None) -> None:
    """Close everything; the time runs for all from the same moment, the monotonic time `began` or now.

    All deliver at once and are waited for in turn, each until its share of the time is over: one that hangs leaves the
    others theirs.
    """
    began = time.monotonic() if began is None else began
    closers = list(_closers)
    for closer in closers:
        closer.begin_close()
    busy = [closer for closer in closers if closer.pending]
    for number, closer in enumerate(busy, 1):
        until = began + closer.flush_seconds * number / len(busy)
        closer.close(max(0.0, until - time.monotonic()))
    for closer in closers:
        if closer not in busy:
            closer.close(max(0.0, began + closer.flush_seconds - time.monotonic()))


class _Watch:
    """What this process has arranged for its end."""

    def __init__(self) -> None:
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        self._arranged = False
        self._thread: threading.Thread | None = None
        self._closed = False

    def arrange(self) -> None:
        """For a child of `multiprocessing`: close everything before it ends."""
        if not self._arranged:
            self._arranged = True
            processes = sys.modules.get("multiprocessing.process")
            if processes is not None and processes.parent_process() is not None:
                from multiprocessing.util import Finalize

                Finalize(None, close_all, exitpriority=1)

    def arrange_sigterm(self) -> bool:
        """Close everything on SIGTERM, if nobody handles it; False when this thread cannot arrange that."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)
        return True

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Close in another thread, since this one may hold any lock, then end as if there had been no handler."""
        if self._closed:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._thread is None:
            self._thread = threading.Thread(target=self._close, args=(number,), name="fastrm-sigterm", daemon=True)
            self._thread.start()

    def _close(self, number: int) -> None:
        if os.getpid() == 1:  # of a container, which SIGTERM does not end unless it is handled: so it goes on
            for closer in list(_closers):
                closer.flush(closer.flush_seconds)
            self._thread = None
            return
        try:
            began = time.monotonic()
            for closer in list(_closers):  # first without closing: this process goes on answering meanwhile
                closer.flush(max(0.0, began + closer.flush_seconds / 2 - time.monotonic()))
            close_all(began)
        finally:
            self._closed = True
            os.kill(os.getpid(), number)


_watch = _Watch()
arrange, arrange_sigterm = _watch.arrange, _watch.arrange_sigterm

atexit.register(close_all)
