"""Forks, signals and the end of the process: every item delivered once."""

import multiprocessing
import signal
import subprocess
import sys
import threading
import time

import pytest

from fastrm_monitor.records.writer import Writer
from tests.forking import exit_codes, forked, forks, in_child
from tests.writer.sink import run_script, stuck


@forks
def test_fork_delivers_each_item_once(make, sink):
    """The parent's items are delivered by the parent alone, the child's by the child, each by a thread of its own."""
    writer = make()
    stuck(writer, sink)
    writer.put("parent", keep=True)

    def put_one():
        sink.gate = threading.Event()
        sink.gate.set()
        before = writer.pending
        writer.put("child", keep=True)
        return before, writer.flush(5), sink.delivered, sink.lost

    assert in_child(put_one) == repr((0, True, ["child"], []))
    assert writer.pending == 2
    sink.gate.set()
    assert writer.flush(5)
    assert (sink.delivered, sink.lost) == (["first", "parent"], [])


@forks
def test_fork_while_others_put(make, sink):
    """Children forked while other threads hold the queue's lock can put and close; none of them hangs."""
    writer = make(size=50)
    stop = threading.Event()

    def keep_putting():
        while not stop.is_set():
            writer.put("parent", keep=False)

    threads = [threading.Thread(target=keep_putting) for _ in range(2)]
    for thread in threads:
        thread.start()

    def put_one():
        writer.put("child", keep=True)
        writer.close()
        return writer.pending == 0 and sink.batches[-1] == ["child"]

    children = [forked(put_one) for _ in range(10)]
    stop.set()
    for thread in threads:
        thread.join()
    assert exit_codes(children) == [0] * len(children)


def test_end_of_the_process_delivers():
    """A process that ends without closing delivers what is queued, and runs `idle` a last time."""
    lines, _, errors = run_script("""
def deliver(items):
    time.sleep(0.2)
    say("delivered", *items)
writer = Writer(deliver, size=10, flush_seconds=10, batch=1, dropped=lambda *lost: say("lost", *lost))
idle_after = []
writer._idle = lambda: idle_after.append(1) or (writer._closed and say("idle"))
for item in "abc": writer.put(item, keep=False)
""")
    assert [line for line in lines if line != "idle"] == ["delivered a", "delivered b", "delivered c"]
    assert lines[-1] == "idle"
    assert errors == ""


def test_end_of_the_process_is_bounded():
    """A process whose delivery hangs ends soon after `flush_seconds`, reports its losses and prints no traceback."""
    lines, seconds, errors = run_script("""
entered = threading.Event()
def deliver(items):
    entered.set()
    time.sleep(60)
writers = [Writer(deliver, size=10, flush_seconds=0.3, dropped=lambda *lost: say("lost", *lost)) for _ in range(3)]
for writer in writers:
    entered.clear()
    writer.put("first", keep=True)
    entered.wait()
    writer.put("second", keep=True)
""")
    assert lines == ["lost second shutdown"] * 3
    assert 0.2 < seconds < 5
    assert "Traceback" not in errors
    assert errors.count("closed with 1 records dropped and 1 in delivery") == 3


def test_sigterm_delivers():
    """A process without a handler for SIGTERM delivers what is queued, and then ends as if it had been killed by it."""
    script = """
import os, signal, time
from fastrm_monitor.records.writer import Writer
def deliver(items):
    time.sleep(0.1)
    print("delivered", *items, flush=True)
writer = Writer(deliver, size=10, flush_seconds=10, batch=1, dropped=print, sigterm=True)
for item in "abc": writer.put(item, keep=False)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
print("survived")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["delivered a", "delivered b", "delivered c"]
    assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")


def test_sigterm_of_the_first_process_of_a_container():
    """A process that SIGTERM would not have ended delivers what is queued, and goes on serving and delivering."""
    script = """
import os, signal, time
from fastrm_monitor.records.writer import Writer
me, os.getpid = os.getpid(), lambda: 1
writer = Writer(lambda items: print("delivered", *items, flush=True), size=10, flush_seconds=10, dropped=print,
                sigterm=True)
for item in "ab":
    writer.put(item, keep=False)
    os.kill(me, signal.SIGTERM)
    writer.flush(10)
print("goes on")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["delivered a", "delivered b", "goes on"]


@pytest.mark.parametrize("setting", ["the host's own", "switched off", "no main thread"])
def test_sigterm_of_others_is_left_alone(setting):
    """A host's handler stays; nothing is installed when that is switched off, nor from any but the main thread."""
    script = f"""
import signal, threading
from fastrm_monitor.records.writer import Writer
setting = {setting!r}
host = lambda *rest: None
if setting == "the host's own":
    signal.signal(signal.SIGTERM, host)
before = signal.getsignal(signal.SIGTERM)
writer = Writer(lambda items: None, size=10, flush_seconds=1, dropped=print, sigterm=setting != "switched off")
if setting == "no main thread":
    thread = threading.Thread(target=writer.put, args=(1, True))
    thread.start()
    thread.join()
else:
    writer.put(1, True)
assert signal.getsignal(signal.SIGTERM) is before
if setting == "no main thread":
    writer.put(2, True)
    assert signal.getsignal(signal.SIGTERM) is not before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=60, check=True)


@forks
def test_a_child_of_multiprocessing_delivers_before_it_ends(sink, tmp_path):
    """A forked child of `multiprocessing`, which runs no `atexit`, delivers what it has queued."""
    path = tmp_path / "delivered"

    def deliver(items):
        time.sleep(0.1)
        with open(path, "a") as file:
            file.write("".join(items))

    writer = Writer(deliver, size=10, flush_seconds=5, batch=1, dropped=sink.dropped)

    def work():
        for item in "abc":
            writer.put(item, keep=True)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(20)
    assert (child.exitcode, path.read_text()) == (0, "abc")
