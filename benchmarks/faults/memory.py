"""How much memory a server takes while it hands over cases, as fast as it can, to a database that is down."""

from __future__ import annotations

import gc
import os
import resource
import time
from pathlib import Path

from benchmarks.report import Report
from fastrm_monitor.monitor import Monitor
from tests.servers import answer, assess, serving

HEADS = ("answers", "RSS, MiB", "in the queue", "in the spool", "spool, MiB", "dropped", "answers a second")
DOWN = "postgresql://nobody@127.0.0.1:9/none"
PARTS = 10
FLAT = 0.05
"""Growth of the peak, from the first to the second half, that passes for flat: heaps are never quite still."""

_MIB = 1 << 20
_LOOK_EVERY = 1000  # answers


def run(report: Report, count: int, folder: Path) -> bool:
    """Hand over `count` answers; whether memory was flat and every answer is accounted for."""
    spool = folder / "spool"
    monitor = serving(DOWN, spool=str(spool))
    report.line(
        f"{count:,} answers, half of them flagged, are judged and handed over without a pause while the database is "
        f"down. The queue holds {monitor.settings.queue_size:,} answers, the spool {monitor.settings.spool_mb} MiB."
    )
    rows, peaks, before = [["0", f"{rss():.1f}", "0", "0", "0.0", "0", "-"]], [], time.perf_counter()
    holds, number = True, 0
    for part in range(PARTS):
        began, peak = time.perf_counter(), 0.0
        end = count * (part + 1) // PARTS
        first = number
        for number in range(first, end):
            monitor.record(answer(number), assess(monitor, number))
            if number % _LOOK_EVERY == 0:
                peak = max(peak, rss())
                holds = holds and monitor.balance().holds
        number = end
        peaks.append(max(peak, rss()))
        pace = (end - first) / (time.perf_counter() - began)
        rows.append(_row(monitor, spool, end, peaks[-1], pace))
    report.table("Memory, the highest of each tenth", HEADS, rows)
    monitor.close()
    balance = monitor.balance()
    holds = holds and balance.holds
    most = max(*peaks, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # between two looks, too
    early, late = max(peaks[: PARTS // 2]), max(peaks[PARTS // 2 :])
    dropped = {reason: n for (name, reason), n in monitor.counters.snapshot().items() if name == "dropped"}
    report.line(
        f"Peak {most:.1f} MiB; {early:.1f} in the first half and {late:.1f} in the second, {late / early - 1:+.1%}. "
        f"Of {balance.scored:,} answers {balance.pending:,} wait on disk, and {balance.dropped:,} were dropped: "
        f"{', '.join(f'{reason} {n:,.0f}' for reason, n in sorted(dropped.items())) or 'none'}. "
        f"The balance {'held at every check' if holds else 'DID NOT HOLD'}. "
        f"{count / (time.perf_counter() - before):,.0f} answers a second."
    )
    return holds and late <= early * (1 + FLAT)


def rss() -> float:
    """MiB of this process's memory that are not swapped out."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MIB


def _row(monitor: Monitor, spool: Path, end: int, peak: float, pace: float) -> list[str]:
    gc.collect()
    on_disk = sum(path.stat().st_size for path in spool.rglob("*") if path.is_file()) / _MIB
    balance = monitor.balance()
    numbers = (balance.pending - monitor.spooled, monitor.spooled)
    return [f"{end:,}", f"{peak:.1f}", *(f"{n:,}" for n in numbers), f"{on_disk:.1f}", f"{balance.dropped:,}",
            f"{pace:,.0f}"]  # fmt: skip
