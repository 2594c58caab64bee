"""What `record` costs its caller while the database is up, slow and down: in one run, in turn, as ratios."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.faults.inside import delay_commits, make_read_only
from benchmarks.faults.latency import Stopwatch, Took
from benchmarks.faults.memory import DOWN
from benchmarks.faults.server import RATE
from benchmarks.report import Report
from fastrm_monitor.monitor import Monitor
from tests.servers import Postgres, answer, assess, serving

STATES = ("up", "slow", "down")
HEADS = ("state", "time of", "p50, µs", "p99, µs", "p99.9, µs", "p50 / up", "p99 / up", "p99.9 / up")
GOAL = 1.10
"""Largest p50 and p99.9 of "slow" and "down", as a share of those of "up"."""

_SHARES = (50.0, 99.0, 99.9)
_DRAWS = 1000  # of the bootstrap
_FOR_GATHERING = 0.3  # seconds: a batch is on its way before the first answer is measured
_FOR_FLUSHING = 5.0
_PARTS = ("wall", "own", "cpu")
_SHOWN = {
    "wall": "the clock on the wall",
    "own": "without waits for a CPU",
    "cpu": "CPU of the thread",
}


@dataclass
class _Kind:
    """One kind of database with a server for each of its states.

    Attributes:
        name: of the database.
        servers: by state.
        turns: by state and part of `Took`, each turn's answers in microseconds.
    """

    name: str
    servers: dict[str, Monitor]
    turns: dict[tuple[str, str], list[np.ndarray]] = field(default_factory=dict)

    def serve(self, state: str, other: Monitor, count: int, first: int) -> None:
        """One turn."""
        for part, took in zip(_PARTS, zip(*_turn(self.servers[state], other, count, first), strict=True), strict=True):
            self.turns.setdefault((state, part), []).append(1e6 * np.array(took))


def run(report: Report, folder: Path, postgres: Postgres, *, quick: bool) -> bool:
    """Print the table; False when "slow" or "down" is beyond the goal, its whole interval, without waits for a CPU."""
    turns, count = (10, 150) if quick else (50, 300)
    kinds = [_sqlite(folder), _postgresql(folder, postgres)]
    gc.collect()
    gc.freeze()  # a collection looks at what the turns made, not at every module that is loaded
    rng, number, other = np.random.default_rng(0), 0, serving(None, sample_rate=0.0)
    for _ in range(turns):
        for kind in kinds:
            for state in rng.permutation(STATES):
                kind.serve(str(state), other, count, number)
                number += count
    gc.unfreeze()
    other.close()
    report.line(
        f"`record` alone, {RATE:.0f} answers a second, {turns} turns of {count:,} answers for each state, in random "
        "order, so that whatever else the machine does meets all of them; nothing is flushed while it is measured. "
        "Slow is a database whose commits take 0.7 s more, down is one that cannot be written. Right before each the "
        "same thread hands an answer to a server without a store, in every state: what is compared is the work of a "
        "`record`, not how cold the processor's caches are after a pause. Percentiles are of all answers of a state; "
        "ratios have their 95 % interval (bootstrap over turns). The goal is for the time without waits for a CPU, "
        "which other processes cause. Python's garbage collector is on; what was there before the first turn is exempt "
        "from it."
    )
    fine = True
    for kind in kinds:
        fine = _show(report, kind) and fine
        for monitor in kind.servers.values():
            monitor.close()
    return fine


def _sqlite(folder: Path) -> _Kind:
    servers = {
        state: serving(f"sqlite:///{folder}/{state}.db", spool=str(folder / f"sqlite-{state}")) for state in STATES
    }
    delay_commits(servers["slow"])
    make_read_only(servers["down"])
    return _Kind("SQLite", servers)


def _postgresql(folder: Path, postgres: Postgres) -> _Kind:
    urls = {state: postgres.database(f"handover_{state}") for state in ("up", "slow")} | {"down": DOWN}
    servers = {state: serving(urls[state], spool=str(folder / f"postgresql-{state}")) for state in STATES}
    delay_commits(servers["slow"])
    return _Kind("PostgreSQL", servers)


def _turn(monitor: Monitor, other: Monitor, count: int, first: int) -> list[Took]:
    """Hand over `count` answers at `RATE`, each after one to the other server."""
    monitor.record(answer(first), assess(monitor, first))
    time.sleep(_FOR_GATHERING)
    watch, found = Stopwatch(), []
    began = time.monotonic()
    for number in range(first + 1, first + count + 1):
        one, given = assess(monitor, number), answer(number)
        other.record(given, assess(other, number))
        watch.start()
        monitor.record(given, one)
        found.append(watch.stop())
        time.sleep(max(0.0, began + (number - first) / RATE - time.monotonic()))
    watch.close()
    monitor.flush(_FOR_FLUSHING)  # what is on its way is not to be the next state's noise
    return found


def _show(report: Report, kind: _Kind) -> bool:
    rows, within, told = [], True, False
    for part in _PARTS:
        took = {state: np.array(kind.turns[state, part]) for state in STATES}  # each (turns, answers)
        turns = len(took["up"])
        draws = np.random.default_rng(0).integers(turns, size=(_DRAWS, turns))
        of_up, drawn_up = np.percentile(took["up"], _SHARES), _drawn(took["up"], draws)
        for state in STATES:
            found = np.percentile(took[state], _SHARES)  # (shares,)
            shown = ["-"] * len(_SHARES)
            if state != "up":
                ratios = found / of_up
                low, high = np.percentile(_drawn(took[state], draws) / drawn_up, (2.5, 97.5), axis=0)  # each (shares,)
                shown = [f"{one:.2f} [{a:.2f}, {b:.2f}]" for one, a, b in zip(ratios, low, high, strict=True)]
                if part == "own":
                    within = within and bool(max(high[0], high[-1]) <= GOAL)
                    told = told or bool(max(low[0], low[-1]) > GOAL)
            rows.append([state, _SHOWN[part], *(f"{one:.1f}" for one in found), *shown])
    report.table(kind.name, HEADS, rows)
    verdict = (
        "slower by more than 10 %" if told else "within 10 %" if within else "not told apart from 10 % by this run"
    )
    report.line(f"{kind.name}, slow and down against up, p50 and p99.9 without waits for a CPU: {verdict}.")
    return not told


def _drawn(took: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Percentiles (draws, shares) of turns that were drawn with replacement."""
    return np.array([np.percentile(took[drawn], _SHARES) for drawn in draws])
