"""Faults inside the server's process: each is begun before the first answer and ended after the last."""

from __future__ import annotations

import os
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Engine, event

from benchmarks.faults.server import RATE, Server
from fastrm_monitor.monitor import Monitor


def nothing(server: Server) -> Iterator[None]:
    """Nothing fails."""
    yield


def slow_commits(server: Server) -> Iterator[None]:
    """Each commit takes 0.7 s more."""
    delay_commits(server.monitor)
    yield


def delay_commits(monitor: Monitor, seconds: float = 0.7) -> None:
    """Have each commit take longer."""
    event.listen(_engine(monitor), "commit", lambda connection: time.sleep(seconds))


def files_end(server: Server) -> Iterator[None]:
    """No file of database or spool may grow beyond 400 kB: the system refuses the write."""
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

    yield from _meanwhile(hold, stop)


def read_only(server: Server) -> Iterator[None]:
    """The database may only be read."""
    make_read_only(server.monitor)
    yield


def make_read_only(monitor: Monitor) -> None:
    """Have the database refuse whatever is written."""
    engine = _engine(monitor)
    refuse = "PRAGMA query_only = ON" if engine.dialect.name == "sqlite" else "SET TRANSACTION READ ONLY"
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(refuse))


def disk_error(server: Server) -> Iterator[None]:
    """Every commit fails with the error that the database gives when its disk is full, from 30 % to 70 %."""
    engine = _engine(server.monitor)

    def fail(connection: Any) -> None:
        if 0.3 * server.count <= server.done.value < 0.7 * server.count:
            raise _disk_is_full(engine)

    event.listen(engine, "commit", fail)
    yield


def _disk_is_full(engine: Engine) -> Exception:
    from sqlalchemy.exc import OperationalError

    if engine.dialect.name == "sqlite":
        return OperationalError("COMMIT", None, sqlite3.OperationalError("database or disk is full"))
    from psycopg.errors import DiskFull

    return OperationalError("COMMIT", None, DiskFull("could not extend file: No space left on device"))


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
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                    "AND backend_type = 'client backend' AND datname = current_database()"
                )

    yield from _meanwhile(cut, stop)


def _meanwhile(work: Callable[[], None], stop: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


def _engine(monitor: Monitor) -> Engine:
    store = monitor._store
    if store is None:
        raise LookupError("a server without a store has no engine")
    return store._engine
