"""Print what is lost when databases, disks, receivers and processes fail: `make faults` (QUICK=1: fewer answers).

    python -m benchmarks.faults --output docs/results/faults.md            # the table of faults
    python -m benchmarks.faults --handover --output FILE                   # what handing over costs, store up and down
    python -m benchmarks.faults --memory 1000000 --output FILE             # memory while the store is down

Each row of the table is a server of its own process that judges answers, half of them flagged, and hands them to the
real writer while something fails. Then another server with the same store and spool writes what the first one left.
Affected are answers whose `record` raised, or took over 0.1 s that no other process had the CPU for. Flagged cases that
are not in the database in the end are lost. The balance is that of `Monitor.balance`, asked every 10 answers; the
counts are those of the `traffic` table against what was served and against the cases. Ends with 1 when an answer was
affected, a case lost or twice, or the balance broken.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults import handover, inside, memory
from benchmarks.faults.disk import small_disk
from benchmarks.faults.outside import Failure, failing_receiver, freed, killed_database, signalled
from benchmarks.faults.row import HEADS, Row, measure
from benchmarks.faults.server import RATE
from benchmarks.report import Report
from fastrm_monitor import guard
from fastrm_monitor.records.store import Store
from tests.servers import Postgres

_CASE_BYTES = 700  # of one in the spool, about
_FAILURES: tuple[Failure, ...] = ("500", "429", "hangs")


def rows_of(kind: str, postgres: Postgres) -> Iterator[Row]:
    """The faults that a kind of store meets; those of `disk_rows` come on top."""
    yield Row("none")
    yield Row("slow commits", inside.slow_commits)
    yield Row("read-only", inside.read_only)
    yield Row("clock set back", inside.clock_set_back)
    yield Row("fork in the middle", inside.forked)
    if kind == "SQLite":
        yield Row("locked", inside.locked)
        yield Row("no file beyond 400 kB", inside.files_end)
    else:
        yield Row("resets", inside.resets)
        yield Row("killed, restarted", during=killed_database(postgres))
    for failure in _FAILURES:
        says = "hangs" if failure == "hangs" else f"says {failure}"
        yield Row(f"OTLP receiver {says}", around=lambda failure=failure: failing_receiver(failure))  # type: ignore[misc]
    yield Row("SIGTERM to the server", during=signalled(at_once=False), ended=True)
    yield Row("SIGKILL to the server", during=signalled(at_once=True), ended=True, killed=True)
    yield Row("two writers", servers=2)


def disk_rows(kind: str, postgres: Postgres, folder: Path, count: int) -> Iterator[tuple[Row, str]]:
    """Rows with real small disks and the URLs of their stores; where none can be mounted, with the database's error.

    The database's disk has room for about a fifth of the cases and gets more at 70 %; then the spool's disk, while the
    database is read-only, has room for the flagged ones.
    """
    name = f"{kind.lower()}disk"
    owner = postgres.user if kind == "PostgreSQL" else None
    with small_disk(folder / name, 64 << 20, owner) as disk:
        if disk is None:
            url = f"sqlite:///{folder}/{name}.db" if kind == "SQLite" else postgres.database(name)
            yield Row("disk full (its error, simulated)", inside.disk_error), url
            return
        url = f"sqlite:///{disk.folder}/store.db" if kind == "SQLite" else postgres.database(name, disk.folder)
        Store(url).close()
        disk.resize(disk.used + count * _CASE_BYTES // 5)
        yield Row("database's disk full, then freed", during=freed(disk, 64 << 20)), url
    with small_disk(folder / f"{name}spool", count * _CASE_BYTES * 3 // 4) as disk:
        if disk is not None:
            url = f"sqlite:///{folder}/{name}.db" if kind == "SQLite" else postgres.database(f"{name}spool")
            yield Row("read-only, and the spool's disk full", inside.read_only, spool=disk.folder / "spool"), url


def main() -> int:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,000 answers a row in place of 10,000")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--handover", action="store_true", help="what `record` costs while the store is up, slow, down")
    parser.add_argument("--memory", type=int, nargs="?", const=1_000_000, help="hand over so many with the store down")
    parser.add_argument("--output", type=Path, help="markdown file that gets the same")
    arguments = parser.parse_args()
    guard.logger.setLevel("CRITICAL")
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this is root
        if arguments.memory is not None:
            report = Report(140, "# Memory while the database is down")
            fine = memory.run(report, arguments.memory, folder)
        else:
            with _postgres(folder) as postgres:
                if arguments.handover:
                    report = Report(140, "# What handing over an answer costs the caller")
                    fine = handover.run(report, folder, postgres, quick=arguments.quick)
                else:
                    report = Report(220, "# What is lost when something fails")
                    fine = _table(report, arguments.only, 1000 if arguments.quick else 10_000, folder, postgres)
    report.end(arguments.output)
    return 0 if fine else 1


def _rows_and_urls(kind: str, postgres: Postgres, folder: Path, count: int) -> Iterator[tuple[Row, str]]:
    for number, row in enumerate(rows_of(kind, postgres)):
        yield row, f"sqlite:///{folder}/{number}.db" if kind == "SQLite" else postgres.database(f"row{number}")
    yield from disk_rows(kind, postgres, folder, count)


@contextmanager
def _postgres(folder: Path) -> Iterator[Postgres]:
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    server = Postgres(folder / "postgres")
    try:
        yield server
    finally:
        server.close()


def _table(report: Report, only: str, count: int, folder: Path, postgres: Postgres) -> bool:
    report.line(f"Printed by `make faults` on {platform.machine()}, {os.cpu_count()} CPUs.")
    found = []
    for kind in ("SQLite", "PostgreSQL"):
        for row, url in _rows_and_urls(kind, postgres, folder, count):
            if only in f"{kind}: {row.name}":
                found.append(measure(row, url, count))
                found[-1].cells[0] = f"{kind}: {row.name}"
                print(" | ".join(found[-1].cells), file=sys.stderr)  # noqa: T201
    title = f"{count:,} answers a row, {RATE:.0f} a second, half of them flagged"
    report.table(title, HEADS, [one.cells for one in found])
    return not any(one.lost or one.affected or one.twice or one.broken for one in found)


if __name__ == "__main__":
    sys.exit(main())
