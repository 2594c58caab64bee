"""What is lost when databases, disks and processes fail: `make faults` prints the table (QUICK=1 with fewer answers).

Each row is a server of its own process that judges answers, half of them flagged, and hands them to the real writer
while something fails. Then another server with the same store and spool writes what the first one left. Counted are the
answers that were changed or held up (a call of `record` that raised, or took over 50 ms of this thread's own time), the
flagged cases that are not in the database in the end, and those that are there twice.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy import event

from fastrm_monitor import guard
from fastrm_monitor.monitor import Monitor
from tests.servers import Postgres, answer, assess, cases, serving

FORK = multiprocessing.get_context("fork")
RATE = 500.0  # answers a second
HELD_UP = 0.05

Fault = Callable[["Server"], Iterator[None]]


class Server:
    """One server in a process of its own.

    Attributes:
        url: of its store.
        folder: for its spool and its notes.
        count: answers that it serves.
        monitor: once it runs.
        done: answers so far, seen by the other process.
        told_to_end_at: answers that it had served when a signal was sent; those before are to be in the database.
    """

    def __init__(self, url: str, folder: Path, count: int, first: int = 0) -> None:
        self.url, self.folder, self.count, self.first = url, folder, count, first
        self.monitor: Monitor
        self.done: Any = FORK.RawValue("i", 0)
        self.told_to_end_at = count
        self.process: Any = None

    def run(self, fault: Fault) -> None:
        """Serve all answers, and note the flagged ones, what was held up, and what the counts say."""
        monitor = self.monitor = serving(self.url, spool=str(self.folder / "spool"))
        held_up, wrong, took = 0, 0, []
        with open(self.folder / f"flagged{self.first}", "a") as notes:
            with contextmanager(fault)(self):
                began = time.monotonic()
                for number in range(self.first, self.first + self.count):
                    one, given = assess(monitor, number), answer(number)
                    before, cpu = time.perf_counter(), time.thread_time()
                    try:
                        monitor.record(given, one)
                    except Exception:
                        held_up += 1
                    took.append(time.perf_counter() - before)
                    held_up += took[-1] > HELD_UP and time.thread_time() - cpu > HELD_UP
                    if one.flagged:
                        notes.write(f"{self.done.value} {one.case_id}\n")
                        notes.flush()
                    self.done.value += 1
                    wrong += number % 50 == 0 and not monitor.balance().holds
                    time.sleep(max(0.0, began + (number - self.first) / RATE - time.monotonic()))
            monitor.close()
        wrong += not monitor.balance().holds
        dropped = {reason: n for (name, reason), n in monitor.counters.snapshot().items() if name == "dropped"}
        found = {"held_up": held_up, "wrong": wrong, "dropped": dropped, "took": took, "left": monitor.spooled}
        (self.folder / f"found{self.first}").write_text(json.dumps(found))

    def start(self, fault: Fault) -> None:
        """Begin in a process of its own."""
        self.process = FORK.Process(target=self.run, args=(fault,))
        self.process.start()

    def wait_for(self, share: float) -> None:
        """Wait until it has served a share of its answers."""
        while self.done.value < share * self.count and self.process.is_alive():
            time.sleep(0.005)


# --- faults inside the server: begun before the first answer, ended after the last ------------------------------------


def nothing(server: Server) -> Iterator[None]:
    """Nothing fails."""
    yield


def slow_commits(server: Server) -> Iterator[None]:
    """Each commit takes 0.7 s more."""
    event.listen(server.monitor._store._engine, "commit", lambda connection: time.sleep(0.7))
    yield


def full_disk(server: Server) -> Iterator[None]:
    """No file of database or spool may grow beyond 400 kB: the system refuses the write, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def clock_set_back(server: Server) -> Iterator[None]:
    """The wall clock jumps back a day in the middle."""
    real = time.time
    timer = threading.Timer(server.count / RATE / 2, lambda: setattr(time, "time", lambda: real() - 86_400))
    server.monitor.counters._clock = lambda: time.time()
    timer.start()
    yield
    timer.join()
    time.time = real


def locked(server: Server) -> Iterator[None]:
    """Somebody else holds SQLite's write lock, most of the time."""
    path = server.url.removeprefix("sqlite:///")
    stop = threading.Event()

    def hold() -> None:
        other = sqlite3.connect(path, isolation_level=None, timeout=30)
        while not stop.is_set():
            other.execute("BEGIN IMMEDIATE")
            stop.wait(2)
            other.execute("ROLLBACK")
            stop.wait(0.1)
        other.close()

    thread = threading.Thread(target=hold)
    thread.start()
    yield
    stop.set()
    thread.join()


def read_only(server: Server) -> Iterator[None]:
    """The database may only be read."""

    def refuse(connection: Any) -> None:
        connection.exec_driver_sql("PRAGMA query_only = ON")

    event.listen(server.monitor._store._engine, "begin", refuse)
    yield


def forked(server: Server) -> Iterator[None]:
    """A child is forked in the middle, and ends at once."""

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    timer = threading.Timer(server.count / RATE / 2, fork)
    timer.start()
    yield
    timer.join()


def resets(server: Server) -> Iterator[None]:
    """PostgreSQL's connections are cut every 0.2 s."""
    import psycopg

    stop = threading.Event()

    def cut() -> None:
        with psycopg.connect(server.url, autocommit=True) as other:
            while not stop.wait(0.2):
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )

    thread = threading.Thread(target=cut)
    thread.start()
    yield
    stop.set()
    thread.join()


# --- faults around the server -----------------------------------------------------------------------------------------


def killed_database(postgres: Postgres) -> Callable[[Server], None]:
    """PostgreSQL is killed with SIGKILL at 40 % and restarted at 70 %."""

    def during(server: Server) -> None:
        server.wait_for(0.4)
        postgres.kill()
        server.wait_for(0.7)
        postgres.restart()

    return during


def sent(number: signal.Signals) -> Callable[[Server], None]:
    """The server is sent a signal at 60 %."""

    def during(server: Server) -> None:
        server.wait_for(0.6)
        server.told_to_end_at = server.done.value
        server.process.terminate() if number == signal.SIGTERM else server.process.kill()

    return during


def measure(
    name: str, url: str, count: int, fault: Fault, during: Callable[[Server], None] | None, servers: int = 1
) -> list[str]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        each = count // servers
        running = [Server(url, Path(folder), each, first=number * each) for number in range(servers)]
        for server in running:
            server.start(fault)
        if during is not None:
            during(running[0])
        for server in running:
            server.process.join()
        served = sum(server.done.value for server in running)
        last = Server(url, Path(folder), 1, first=10**6)
        monitor = serving(url, spool=str(Path(folder) / "spool"))
        last.monitor = monitor
        monitor.record(answer(10**6), assess(monitor, 10**6))
        patience = time.monotonic() + 120
        while (monitor._outbox._adopted < 0 or monitor.pending) and time.monotonic() < patience:
            time.sleep(0.05)
        adopted, pending = monitor.balance().adopted, monitor.pending
        monitor.close()
        flagged = set()
        for path in Path(folder).glob("flagged*"):
            for line in path.read_text().splitlines():
                served_before, case_id = line.split()
                if int(served_before) < running[0].told_to_end_at:  # later ones came to a server that was ending
                    flagged.add(case_id)
        stored = cases(url)
        requests = [request for _, request in stored]
        lost = flagged - {case_id for case_id, _ in stored}
        notes = [json.loads(path.read_text()) for path in Path(folder).glob("found*")]
        took = np.array([one for note in notes for one in note["took"]]) * 1e6
        dropped: dict[str, float] = {}
        for note in notes:
            for reason, number in note["dropped"].items():
                dropped[reason] = dropped.get(reason, 0) + number
        return [
            name,
            f"{served:,}",
            str(sum(note["held_up"] for note in notes)) if notes else "-",
            str(len(lost)),
            str(len(requests) - len(set(requests))),
            ", ".join(f"{reason} {number:.0f}" for reason, number in sorted(dropped.items())) or "0",
            f"{adopted:,}" + (f" ({pending:,} still wait)" if pending else ""),
            ("yes" if not sum(note["wrong"] for note in notes) else "NO") if notes else "-",
            f"{np.percentile(took, 50):.0f} / {np.percentile(took, 99.9):.0f}" if len(took) else "-",
        ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 answers a row in place of 10,000")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    arguments = parser.parse_args()
    count = 1000 if arguments.quick else 10_000
    guard.logger.setLevel("CRITICAL")
    table = Table(title=f"{count:,} answers a row, {RATE:.0f} a second, half of them flagged")
    for column in ("fault", "answers", "affected", "flagged lost", "twice", "dropped", "left to the next", "balance",
                   "record, µs p50 / p99.9"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("fault", "dropped") else "right")
    inside: list[tuple[str, Fault]] = [
        ("none", nothing), ("slow commits", slow_commits), ("full disk", full_disk), ("clock set back", clock_set_back),
        ("fork in the middle", forked),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: S103  # PostgreSQL runs as another user where this is root
        os.environ["XDG_RUNTIME_DIR"] = folder
        postgres = Postgres(Path(folder) / "postgres")
        around: list[tuple[str, Callable[[Server], None]]] = [
            ("SIGTERM to the server", sent(signal.SIGTERM)), ("SIGKILL to the server", sent(signal.SIGKILL)),
        ]  # fmt: skip
        rows: list[tuple[str, str, Fault, Callable[[Server], None] | None, int]] = []
        for kind in ("SQLite", "PostgreSQL"):
            own = [("locked", locked), ("read-only", read_only)] if kind == "SQLite" else [("resets", resets)]
            rows += [(f"{kind}: {name}", kind, fault, None, 1) for name, fault in [*inside, *own]]
            if kind == "PostgreSQL":
                rows.append((f"{kind}: killed, restarted", kind, nothing, killed_database(postgres), 1))
            rows += [(f"{kind}: {name}", kind, nothing, during, 1) for name, during in around]
            rows.append((f"{kind}: two writers", kind, nothing, None, 2))
        chosen = [row for row in rows if arguments.only in row[0]]
        try:
            for number, (name, kind, fault, during, servers) in enumerate(chosen):
                url = f"sqlite:///{folder}/{number}.db" if kind == "SQLite" else postgres.database(f"row{number}")
                table.add_row(*measure(name, url, count, fault, during, servers))
                print(f"{name} done", file=sys.stderr)  # noqa: T201
        finally:
            Console(width=160).print(table)
            postgres.close()


if __name__ == "__main__":
    main()
