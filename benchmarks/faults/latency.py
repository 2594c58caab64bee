"""How long a call takes the thread that makes it, on a machine that other processes use, too."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

_SCHEDSTAT = Path("/proc/thread-self/schedstat")  # Linux: ns on a CPU, ns waiting for one, time slices


class Took(NamedTuple):
    """Seconds of one call.

    Attributes:
        wall: from its beginning to its end.
        own: without the time in which the thread was ready and another thread or process had the CPU.
        cpu: in which the thread computed.
    """

    wall: float
    own: float
    cpu: float


class Stopwatch:
    """Measures calls of the thread that made it, one after the other."""

    def __init__(self) -> None:
        self._schedstat = os.open(_SCHEDSTAT, os.O_RDONLY) if _SCHEDSTAT.exists() else -1

    def start(self) -> None:
        """The call begins."""
        self._waited = self._waits()
        self._cpu = time.thread_time()
        self._began = time.perf_counter()

    def stop(self) -> Took:
        """The call has ended."""
        wall = time.perf_counter() - self._began
        cpu = time.thread_time() - self._cpu
        return Took(wall, max(cpu, wall - (self._waits() - self._waited)), cpu)

    def close(self) -> None:
        """Let go of the system's numbers."""
        if self._schedstat >= 0:
            os.close(self._schedstat)

    def _waits(self) -> float:
        """Seconds that this thread has waited for a CPU so far; 0 where the system does not say."""
        return int(os.pread(self._schedstat, 64, 0).split()[1]) / 1e9 if self._schedstat >= 0 else 0.0
