"""One row of the table: a fault, the servers that it meets, the server that comes after them, and what is left."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.faults.inside import nothing
from benchmarks.faults.outside import During, stop_sending
from benchmarks.faults.server import Fault, Server
from fastrm_monitor.records.store import Store
from tests.servers import answer, assess, cases, serving

HEADS = ("fault", "answers", "affected", "flagged", "flagged lost", "twice", "dropped by reason", "balance",
         "counts", "left to the next", "`record`, µs p50 / p99.9")  # fmt: skip

_PATIENCE = 120.0
_LAST = 10**6  # number of the one answer of the server that comes after


@dataclass(frozen=True)
class Row:
    """What is to be measured.

    Attributes:
        name: of the database and the fault.
        fault: inside the server.
        during: around it, in the measuring process.
        around: entered before the servers begin, left when the next one has ended.
        servers: how many share the answers.
        spool: where cases wait; in the row's own folder when None.
        ended: the server is ended by a signal, and the counts of its last answers may be lost with it.
        killed: that is SIGKILL, which costs what was in its memory.
    """

    name: str
    fault: Fault = nothing
    during: During | None = None
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    servers: int = 1
    spool: Path | None = None
    ended: bool = False
    killed: bool = False


@dataclass
class Found:
    """What a row found; `cells` are those of the table."""

    lost: int
    affected: int
    twice: int
    broken: int
    cells: list[str] = field(default_factory=list)


def measure(row: Row, url: str, count: int) -> Found:
    """Serve `count` answers to a new store under the row's fault, then count what is there."""
    with tempfile.TemporaryDirectory() as name, row.around():
        folder, each = Path(name), count // row.servers
        spool = row.spool or folder / "spool"
        running = [Server(url, folder, each, spool, first=number * each) for number in range(row.servers)]
        for server in running:
            server.start(row.fault)
        if row.during is not None:
            row.during(running[0])
        for server in running:
            server.join()
        stop_sending()
        left = _next_server(url, spool)
        return _count(row, url, running, left)


def _next_server(url: str, spool: Path) -> str:
    """Another server writes what the ones before left; how much that was."""
    monitor = serving(url, spool=str(spool))
    monitor.record(answer(_LAST), assess(monitor, _LAST))
    until = time.monotonic() + _PATIENCE
    outbox = monitor._outbox
    while not (monitor.flush(1) and outbox is not None and outbox.settled) and time.monotonic() < until:
        time.sleep(0.05)
    balance = monitor.balance()
    monitor.close()
    return f"{balance.adopted:,}" + (f" ({balance.pending:,} still wait)" if balance.pending else "")


def _count(row: Row, url: str, running: list[Server], left: str) -> Found:
    served = sum(server.done.value for server in running)
    stored = cases(url)
    ids, requests = {case_id for case_id, _ in stored}, Counter(request for _, request in stored)
    flagged = set().union(*(server.flagged() for server in running))
    lost, twice = len(flagged - ids), sum(requests.values()) - len(requests)
    notes = [found for server in running if (found := server.notes()) is not None]
    took = np.array([one for note in notes for one in note.took])
    dropped: Counter[str] = Counter()
    for note in notes:
        dropped.update(note.dropped)
    checks, broken = sum(note.checks for note in notes), sum(note.broken for note in notes)
    affected = sum(note.affected for note in notes)
    in_memory = running[0].in_memory.value
    cells = [
        row.name,
        f"{served:,}",
        str(affected) if notes else "-",
        f"{len(flagged):,}",
        f"{lost} ({in_memory} answers in memory)" if row.killed else str(lost),
        str(twice),
        ", ".join(f"{reason} {number:,.0f}" for reason, number in sorted(dropped.items())) or "0",
        (f"holds, {checks:,} checks" if not broken else f"BROKEN, {broken} of {checks:,}") if notes else "-",
        "-" if row.killed else _counts(url, served + 1, len(stored), exactly=not row.ended),
        left,
        f"{np.percentile(took, 50):.0f} / {np.percentile(took, 99.9):.0f}" if len(took) else "-",
    ]
    return Found(max(0, lost - in_memory) if row.killed else lost, affected, twice, broken, cells)


def _counts(url: str, served: int, stored: int, *, exactly: bool) -> str:
    """Whether the traffic counts in the store agree with the cases there, and `exactly` with what was served."""
    with Store(url) as store:
        totals: Counter[str] = Counter()
        for (name, _), value in store.totals().items():
            totals[name] += round(value)
    ended = totals["stored"] + totals["sampled_out"] + totals["dropped"]
    seen = totals["seen"]
    if seen == totals["scored"] == ended and totals["stored"] == stored and (seen == served or not exactly):
        return "agree" if seen >= served else f"agree, without the last {served - seen}"
    shown = ("seen", "scored", "stored", "dropped")
    return f"DISAGREE, {served} served, {stored} cases; " + ", ".join(f"{name} {totals[name]}" for name in shown)
