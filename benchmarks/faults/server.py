"""A server in a process of its own that answers while something fails, and what it notes down meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.latency import Stopwatch
from fastrm_monitor.monitor import Monitor
from tests.servers import answer, assess, serving

FORK = multiprocessing.get_context("fork")
RATE = 500.0  # answers a second
CHECK_EVERY = 10  # answers
HELD_UP = 0.1
"""Seconds in `record` that make an answer an affected one, without those in which another process had the CPU."""


@dataclass
class Notes:
    """What a server that ended in order says of itself.

    Attributes:
        affected: answers whose `record` raised or took longer than `HELD_UP`.
        checks: how often the balance was asked for.
        broken: how often it did not hold.
        dropped: cases by reason.
        failed: failures of monitoring by stage.
        took: microseconds of each `record`.
    """

    affected: int = 0
    checks: int = 0
    broken: int = 0
    dropped: dict[str, float] = field(default_factory=dict)
    failed: dict[str, float] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)

    def check(self, monitor: Monitor) -> None:
        """Whether every answer is somewhere, once."""
        self.checks += 1
        self.broken += not monitor.balance().holds


class Server:
    """One server in a process of its own.

    Args:
        url: of its store.
        folder: for its notes.
        count: answers that it serves.
        spool: where cases wait.
        first: number of its first answer.

    Attributes:
        monitor: once it runs.
        done: answers so far, seen by the other process.
        in_memory: cases that no disk had after the last answer, likewise.
        told_to_end_at: answers that it had served when a signal was sent; those before are to be in the database.
    """

    def __init__(self, url: str, folder: Path, count: int, spool: Path, first: int = 0) -> None:
        self.url, self.folder, self.count, self.spool, self.first = url, folder, count, spool, first
        self.monitor: Monitor
        self.done: Any = FORK.RawValue("i", 0)
        self.in_memory: Any = FORK.RawValue("i", 0)
        self.told_to_end_at = count
        self._process: Any = None

    def run(self, fault: Fault) -> None:
        """Serve all answers, and note the flagged ones, which were held up, and what the counts say."""
        monitor = self.monitor = serving(self.url, spool=str(self.spool))
        notes, watch = Notes(), Stopwatch()
        with open(self.folder / f"flagged{self.first}", "a") as flagged, contextmanager(fault)(self):
            began = time.monotonic()
            for number in range(self.first, self.first + self.count):
                one, given = assess(monitor, number), answer(number)
                watch.start()
                try:
                    monitor.record(given, one)
                except Exception:
                    notes.affected += 1
                took = watch.stop()
                notes.took.append(1e6 * took.wall)
                notes.affected += took.own > HELD_UP
                if one.flagged:
                    flagged.write(f"{self.done.value} {one.case_id}\n")
                    flagged.flush()
                self.in_memory.value = monitor.pending - monitor.spooled
                self.done.value += 1
                if number % CHECK_EVERY == 0:
                    notes.check(monitor)
                time.sleep(max(0.0, began + (number - self.first) / RATE - time.monotonic()))
        monitor.close()
        notes.check(monitor)
        for (name, reason), value in monitor.counters.snapshot().items():
            if name in ("dropped", "failed"):
                getattr(notes, name)[reason] = value
        (self.folder / f"notes{self.first}").write_text(json.dumps(asdict(notes)))

    def start(self, fault: Fault) -> None:
        """Begin in a process of its own."""
        self._process = FORK.Process(target=self.run, args=(fault,))
        self._process.start()

    def wait_for(self, share: float) -> None:
        """Wait until it has served a share of its answers."""
        while self.done.value < share * self.count and self._process.is_alive():
            time.sleep(0.005)

    def end(self, *, at_once: bool) -> None:
        """Send it SIGTERM, or SIGKILL."""
        self.told_to_end_at = self.done.value
        if at_once:
            self._process.kill()
        else:
            self._process.terminate()

    def join(self) -> None:
        """Wait until it has ended."""
        self._process.join()

    def flagged(self) -> set[str]:
        """Ids of the flagged cases that are to be in the database; later ones came to a server that was ending."""
        lines = (self.folder / f"flagged{self.first}").read_text().splitlines()
        return {case_id for done, case_id in map(str.split, lines) if int(done) < self.told_to_end_at}

    def notes(self) -> Notes | None:
        """What it noted down; None when it was ended by a signal."""
        path = self.folder / f"notes{self.first}"
        return Notes(**json.loads(path.read_text())) if path.exists() else None


Fault = Callable[[Server], Iterator[None]]
"""Something that fails inside the server: begun before the first answer, ended after the last."""
