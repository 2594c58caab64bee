"""The queue: never in the way of an answer, and every item delivered once or reported lost."""

import gc
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrm_monitor import guard
from fastrm_monitor.records import ending
from fastrm_monitor.records.counters import Counters
from fastrm_monitor.records.writer import Writer
from tests.forking import exit_codes, forks


class Sink:
    """Takes batches and losses; `gate` holds deliveries back while it is cleared."""

    def __init__(self):
        self.batches, self.lost, self.idles = [], [], 0
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.fails = None

    def deliver(self, items):
        self.entered.set()
        self.gate.wait(10)
        if self.fails:
            raise self.fails
        self.batches.append(items)

    def dropped(self, item, reason):
        self.lost.append((item, reason))

    def idle(self):
        self.idles += 1

    @property
    def delivered(self):
        return [item for batch in self.batches for item in batch]


@pytest.fixture
def sink():
    made = Sink()
    yield made
    made.gate.set()


@pytest.fixture
def make(sink):
    """Make a writer to the sink; it is closed at the end."""
    made = []

    def make(**options):
        writer = Writer(sink.deliver, dropped=sink.dropped, **{"size": 100, "flush_seconds": 5.0, **options})
        made.append(writer)
        return writer

    yield make
    sink.gate.set()
    for writer in made:
        writer.close()


@pytest.fixture(autouse=True)
def unlimited_log(monkeypatch):
    """Each test logs as if nothing had been logged before."""
    monkeypatch.setattr(guard, "_last_logged", {})


def stuck(writer, sink):
    """Have the writer's thread hang in a delivery of the item "first"."""
    sink.gate.clear()
    writer.put("first", keep=False)
    assert sink.entered.wait(5)


def writer_threads():
    return [thread for thread in threading.enumerate() if thread.name == "fastrm-writer"]


def test_items_arrive_in_order(make, sink):
    """All items are delivered, in the order they were put, in batches of at most the given size."""
    writer = make(batch=4)
    for i in range(50):
        writer.put(i, keep=bool(i % 2))
    assert writer.flush(5)
    assert sink.delivered == list(range(50))
    assert max(map(len, sink.batches)) <= 4
    assert (sink.lost, writer.pending) == ([], 0)


def test_nothing_starts_before_the_first_put(make):
    """Making a writer, flushing it and closing it start no thread; the first put does."""
    before = len(writer_threads())
    unused, used = make(), make()
    assert unused.flush(0)
    unused.close()
    assert len(writer_threads()) == before
    used.put(1, keep=True)
    assert len(writer_threads()) == before + 1
    assert writer_threads()[-1].daemon


def test_put_never_blocks(make, sink):
    """While a delivery hangs, two thousand puts into a full queue take next to no time and are all accounted for."""
    writer = make(size=10)
    stuck(writer, sink)
    began = time.monotonic()
    for i in range(2000):
        writer.put(i, keep=bool(i % 2))
    assert time.monotonic() - began < 1.0
    assert (writer.pending, len(sink.lost)) == (11, 1990)


def test_unflagged_go_first(make, sink):
    """When the queue is full, the newest item that need not be kept goes; a keeper only among keepers, the newest."""
    writer = make(size=4)
    stuck(writer, sink)
    for item in ("a-", "b+", "c-", "d+"):
        writer.put(item, keep=item.endswith("+"))
    for item in ("e-", "f+", "g-", "h+", "i+", "j-"):
        writer.put(item, keep=item.endswith("+"))
    assert sink.lost == [(item, "queue_full") for item in ("e-", "c-", "g-", "a-", "i+", "j-")]
    sink.gate.set()
    assert writer.flush(5)
    assert sink.delivered == ["first", "b+", "d+", "f+", "h+"]


def test_bytes_are_bounded_too(make, sink):
    """Queued items and the batch in delivery never have more bytes than the bound; the newest unflagged go first."""
    writer = make(most_bytes=100)
    sink.gate.clear()
    writer.put("first", keep=False, size=40)
    assert sink.entered.wait(5)
    for item, size in (("a-", 20), ("b+", 20), ("c-", 20)):
        writer.put(item, keep=item.endswith("+"), size=size)
    assert sink.lost == []
    writer.put("d-", keep=False, size=1)
    writer.put("e+", keep=True, size=30)
    writer.put("f+", keep=True, size=11)
    writer.put("g+", keep=True, size=10)
    assert sink.lost == [(item, "queue_full") for item in ("d-", "c-", "a-", "f+")]
    sink.gate.set()
    assert writer.flush(5)
    assert sink.delivered == ["first", "b+", "e+", "g+"]
    for item in ("h-", "i+"):
        writer.put(item, keep=item.endswith("+"), size=100)
    assert writer.flush(5)
    assert sink.delivered[4:] in (["i+"], ["h-", "i+"])  # whether the first was delivered before the second came


def test_what_can_never_fit_is_too_large(make, sink):
    """An item that is larger than the whole bound drives nothing out, and is lost as "too_large"."""
    writer = make(most_bytes=100)
    stuck(writer, sink)
    writer.put("a-", keep=False, size=60)
    writer.put("b+", keep=True, size=101)
    assert sink.lost == [("b+", "too_large")]


def test_nothing_is_driven_out_in_vain(make, sink):
    """An item for which even all unflagged ones could not make room is lost alone."""
    writer = make(most_bytes=100)
    stuck(writer, sink)
    for item, size in (("a-", 20), ("b+", 70), ("c+", 40)):
        writer.put(item, keep=item.endswith("+"), size=size)
    assert sink.lost == [("c+", "queue_full")]


def test_batches_are_gathered(make, sink):
    """Items that come one by one within a moment are delivered together, and a flush does not wait for that moment."""
    writer = make()
    for number in range(10):
        writer.put(number, keep=True)
        time.sleep(0.001)
    began = time.monotonic()
    assert writer.flush(5)
    assert time.monotonic() - began < 0.04
    assert len(sink.batches) <= 3


def test_closing_delivers_flagged_items_first(make, sink):
    """When the process ends, what must be kept goes before what need not."""
    writer = make(batch=2)
    stuck(writer, sink)
    for item in ("a-", "b+", "c-", "d+"):
        writer.put(item, keep=item.endswith("+"))
    closing = threading.Thread(target=writer.close)
    closing.start()
    while not writer._closed:
        time.sleep(0.001)
    sink.gate.set()
    closing.join()
    assert sink.delivered == ["first", "b+", "d+", "a-", "c-"]


@pytest.mark.parametrize("passed_on", [True, False])
def test_a_hanging_delivery_is_rescued(sink, caplog, passed_on):
    """When the thread hangs, the queue is handed to `rescue` in time; what that cannot save is lost to "shutdown".

    So is the batch in delivery, and the thread is told when it comes back, unless the batch was passed on before.
    """
    saved, hurried, taken = [], [], []

    def deliver(items):
        if passed_on:
            assert writer.pass_on(lambda: taken.append(items))
        sink.deliver(items)
        if not passed_on:
            assert not writer.pass_on(lambda: taken.append(items))

    def rescue(items, until):
        saved.append((items[:1], 0 < until - time.monotonic() < 0.5))
        return items[1:]

    writer = Writer(
        deliver, size=9, dropped=sink.dropped, flush_seconds=0.5, rescue=rescue, hurry=lambda: hurried.append(True)
    )
    stuck(writer, sink)
    writer.put("a-", keep=False)
    writer.put("b+", keep=True)
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 0.6
    assert hurried == [True]
    if passed_on:
        assert (saved, taken) == ([(["b+"], True)], [["first"]])
        assert sink.lost == [("a-", "shutdown")]
        assert "closed with 1 records dropped and 0 in delivery" in caplog.text
    else:
        assert (saved, taken) == ([(["first"], True)], [])
        assert sink.lost == [("b+", "shutdown"), ("a-", "shutdown")]
    sink.gate.set()
    assert writer.flush(5)
    assert (len(sink.lost), writer.pending) == (1 if passed_on else 2, 0)


def test_a_failure_after_the_rescue_is_not_counted(sink):
    """A delivery that fails after `rescue` took its batch reports none of it: it was saved."""
    rescued = []

    def rescue(items, until):
        rescued.extend(items)
        return []

    writer = Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=0.2, rescue=rescue)
    sink.fails = OSError("disk full")
    stuck(writer, sink)
    writer.close()
    sink.gate.set()
    assert writer.flush(5)
    assert (rescued, sink.lost) == (["first"], [])


def test_after_a_flush_there_is_time_to_rescue(sink):
    """However little time is left for closing, as after the flush of SIGTERM, `rescue` has its whole share of it."""
    left = []

    def rescue(items, until):
        left.append(until - time.monotonic())
        return []

    writer = Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=2.0, rescue=rescue)
    stuck(writer, sink)
    writer.close(0.7)
    assert 0.6 < left[0] <= 0.7


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 6), keeps=st.lists(st.booleans(), max_size=40))
def test_drops_follow_the_rule(size, keeps):
    """For any sequence of puts, what remains and what is lost, in order, are what the rule says."""
    queue, lost = [], []  # the rule, written down as plainly as possible
    for item in enumerate(keeps):
        if len(queue) < size:
            queue.append(item)
            continue
        droppable = [queued for queued in queue if not queued[1]]
        if item[1] and droppable:
            queue.remove(droppable[-1])
            lost.append(droppable[-1])
            queue.append(item)
        else:
            lost.append(item)

    sink = Sink()
    writer = Writer(sink.deliver, size=size, flush_seconds=5, dropped=sink.dropped, batch=3)
    stuck(writer, sink)
    for item in enumerate(keeps):
        writer.put(item, keep=item[1])
    sink.gate.set()
    assert writer.flush(5)
    writer.close()
    assert sink.delivered == ["first", *queue]
    assert [item for item, _ in sink.lost] == lost


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit(1)])
def test_failed_delivery_is_reported(make, sink, error, caplog):
    """A batch whose delivery raises, whatever, is reported item by item, logged once, and the next is delivered."""
    writer = make(batch=2)
    sink.fails = error
    for i in range(4):
        writer.put(i, keep=True)
    assert writer.flush(5)
    sink.fails = None
    writer.put(4, keep=True)
    assert writer.flush(5)
    assert sink.lost == [(i, "store_error") for i in range(4)]
    assert sink.delivered == [4]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_failing_report_hurts_nobody(sink):
    """When even the report of a loss fails, put does not raise, and the thread lives on."""

    def dropped(item, reason):
        raise RuntimeError("no counters")

    writer = Writer(sink.deliver, size=1, flush_seconds=5, dropped=dropped)
    stuck(writer, sink)
    writer.put("a", keep=True)
    writer.put("b", keep=True)
    sink.fails = OSError("gone")
    sink.gate.set()
    assert writer.flush(5)
    sink.fails = None
    writer.put("c", keep=True)
    assert writer.flush(5)
    writer.close()
    assert sink.delivered == ["c"]


def test_flush_waits_no_longer_than_told(make, sink):
    """A flush of a hanging delivery is False after its time; once the delivery goes on, it is True."""
    writer = make()
    stuck(writer, sink)
    began = time.monotonic()
    assert not writer.flush(0.1)
    assert 0.05 < time.monotonic() - began < 1.0
    assert writer.pending == 1
    sink.gate.set()
    assert writer.flush()
    assert writer.pending == 0


def test_flush_does_not_wait_for_later_items(make, sink):
    """A flush returns when what was put before it is delivered, though puts never pause."""
    writer = make(size=10_000, batch=1)
    stop = threading.Event()

    def keep_putting():
        while not stop.wait(0.0005):
            writer.put("more", keep=False)

    writer._deliver = lambda items: time.sleep(0.001)
    thread = threading.Thread(target=keep_putting)
    thread.start()
    try:
        assert writer.flush(5)
        time.sleep(0.05)
        assert writer.flush(5)
    finally:
        stop.set()
        thread.join()


def test_flush_inside_a_delivery_does_not_wait_for_itself(make, sink):
    """A delivery that flushes gets False at once."""
    answers = []
    writer = make()
    writer._deliver = lambda items: answers.append(writer.flush())
    writer.put(1, keep=True)
    assert writer.flush(5)
    assert answers == [False]


def test_close_delivers_then_refuses(make, sink):
    """Closing delivers what is queued; later items are lost to "shutdown"; closing again changes nothing."""
    writer = make(batch=2)
    for i in range(9):
        writer.put(i, keep=False)
    writer.close()
    writer.put(9, keep=True)
    writer.close()
    assert sink.delivered == list(range(9))
    assert sink.lost == [(9, "shutdown")]
    assert writer.flush(0)


def test_close_of_a_hanging_delivery(make, sink, caplog):
    """Closing gives up after `flush_seconds`, reports the queue and logs one line.

    The batch under way stays pending, so that nothing is counted twice when the delivery does end.
    """
    writer = make(flush_seconds=0.1)
    stuck(writer, sink)
    writer.put("a", keep=False)
    writer.put("b", keep=True)
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 1.0
    assert sink.lost == [("b", "shutdown"), ("a", "shutdown")]
    assert writer.pending == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "fastrm-monitor: closed with 2 records dropped and 1 in delivery"
    ]
    sink.gate.set()
    assert writer.flush(5)
    assert (sink.delivered, len(sink.lost), writer.pending) == (["first"], 2, 0)


def test_close_during_the_last_delivery_is_prompt(make, sink):
    """A writer closed while its last batch is under way ends with that batch, not at the next tick of its clock."""
    writer = make(idle=sink.idle)
    stuck(writer, sink)
    threading.Timer(0.05, sink.gate.set).start()
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 0.6
    assert (sink.delivered, sink.idles) == (["first"], 2)


def test_idle_runs_after_batches_and_in_between(make, sink):
    """`idle` runs after a batch, again about a second later without any, and once more before the thread ends."""
    writer = make(idle=sink.idle)
    writer.put(1, keep=True)
    assert writer.flush(5)
    time.sleep(1.3)
    assert 2 <= sink.idles <= 4
    before = sink.idles
    writer.close()
    assert sink.idles == before + 1


def test_failing_idle_is_logged_and_forgotten(make, sink, caplog):
    """An `idle` that raises is logged once, and deliveries go on."""

    def idle():
        raise RuntimeError("no database")

    writer = make(idle=idle, batch=1)
    for i in range(5):
        writer.put(i, keep=True)
    assert writer.flush(5)
    writer.close()
    assert sink.delivered == list(range(5))
    assert [record.getMessage() for record in caplog.records] == [
        "fastrm-monitor: the idle work failed: RuntimeError: no database"
    ]


def test_no_thread_to_be_had(make, sink, monkeypatch):
    """When the system gives no thread, put does not raise and flush does not hang; the next put tries again."""

    def start(self):
        raise RuntimeError("can't start new thread")

    writer = make()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        writer.put(1, keep=True)
        assert not writer.flush()
        assert writer.pending == 1
    writer.put(2, keep=True)
    assert writer.flush(5)
    assert sink.delivered == [1, 2]


def test_abandoned_writer_goes_away(sink):
    """A writer that nobody holds delivers what it has, then it and its thread go away."""
    before = len(writer_threads())
    writer = Writer(sink.deliver, size=10, flush_seconds=5, dropped=sink.dropped)
    sink.gate.clear()
    writer.put("a", keep=True)
    writer.put("b", keep=False)
    gone = weakref.ref(writer)
    del writer
    gc.collect()
    sink.gate.set()
    patience = time.monotonic() + 5
    while (gone() is not None or len(writer_threads()) > before) and time.monotonic() < patience:
        gc.collect()
        time.sleep(0.02)
    assert gone() is None
    assert len(writer_threads()) == before
    assert (sink.delivered, sink.lost) == (["a", "b"], [])


def test_invariant_under_faults():
    """Whatever threads, a small queue and failing deliveries do, each answer is counted exactly once.

    seen = scored + skipped and scored = stored + sampled_out + dropped + pending.
    """
    counters, random = Counters(), Random(0)

    def deliver(batch):
        time.sleep(random.random() * 0.002)
        if random.random() < 0.3:
            raise OSError("disk full")
        for keep in batch:
            counters.add("stored" if keep else "sampled_out")

    writer = Writer(
        deliver, size=8, flush_seconds=5, batch=3, dropped=lambda _, reason: counters.add("dropped", reason)
    )

    def serve(seed):
        dice = Random(seed)
        for _ in range(400):
            counters.add("seen")
            if dice.random() < 0.1:
                counters.add("skipped", "no_image")
                continue
            counters.add("scored")
            writer.put(dice.random() < 0.5, keep=dice.random() < 0.5)
            if dice.random() < 0.1:
                time.sleep(0.001)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def check(seen):
        totals = {}
        for (name, _), value in counters.snapshot().items():
            totals[name] = totals.get(name, 0) + value
        assert totals["seen"] == totals["scored"] + totals["skipped"] == seen
        ended = totals["stored"] + totals["sampled_out"] + totals["dropped"]
        assert totals["scored"] == ended + writer.pending

    assert writer.flush(10)
    check(1600)
    writer.close()
    counters.add("seen")
    counters.add("scored")
    writer.put(True, keep=True)
    check(1601)
    reasons = {reason for (name, reason) in counters.snapshot() if name == "dropped"}
    assert reasons == {"queue_full", "store_error", "shutdown"}


@forks
def test_fork_delivers_each_item_once(make, sink):
    """The parent's items are delivered by the parent alone, the child's by the child, each by a thread of its own."""
    writer = make()
    stuck(writer, sink)
    writer.put("parent", keep=True)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = "failed"
        try:
            sink.gate = threading.Event()
            sink.gate.set()
            before = writer.pending
            writer.put("child", keep=True)
            answer = repr((before, writer.flush(5), sink.delivered, sink.lost))
        finally:
            os.write(write, answer.encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == repr((0, True, ["child"], []))
    os.waitpid(pid, 0)
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
    children = []
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                writer.put("child", keep=True)
                writer.close()
                status = 0 if writer.pending == 0 and sink.batches[-1] == ["child"] else 2
            finally:
                os._exit(status)
        children.append(pid)
    stop.set()
    for thread in threads:
        thread.join()
    assert exit_codes(children) == [0] * len(children)


def run_script(body):
    """Run a script with a writer in a fresh process; its lines and its seconds after the last one."""
    script = f"""
import threading, time
from fastrm_monitor.records.writer import Writer
say = lambda *words: print(*words, flush=True)
{body}
say("end", time.time())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    end = next(line for line in lines if line.startswith("end"))
    return [line for line in lines if line != end], time.time() - float(end.split()[1]), done.stderr


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


def test_a_stalled_delivery_leaves_the_time_to_the_rescue(sink):
    """What is queued behind a delivery that does not come back is rescued soon, not at the end of the wait."""
    left = []

    def rescue(items, until):
        left.append((len(items), until - time.monotonic()))
        return []

    writer = Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=4.0, rescue=rescue)
    stuck(writer, sink)
    writer.put("a", keep=True)
    writer.close()
    assert left[0][0] == 2
    assert 3.0 < left[0][1] < 4.0


def test_who_closes_second_waits_for_the_rescue(sink):
    """A thread that closes while another does returns only when everything is saved: it may end the process next."""
    saved, inside = [], threading.Event()

    def rescue(items, until):
        inside.set()
        time.sleep(0.3)
        saved.extend(items)
        return []

    writer = Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=0.2, rescue=rescue)
    stuck(writer, sink)
    writer.put("a", keep=True)
    threading.Thread(target=writer.close).start()
    assert inside.wait(5)
    writer.close()
    assert saved == ["first", "a"]


def test_each_writer_has_its_share_of_the_end(sink, monkeypatch):
    """A writer that hangs leaves another one its time: what that has is rescued, too."""
    monkeypatch.setattr(ending, "_closers", weakref.WeakSet())
    rescued, writers = [], []

    def rescue(items, until):
        assert until > time.monotonic()
        rescued.extend(items)
        return []

    for name in ("a", "b"):
        writers.append(Writer(sink.deliver, size=9, dropped=sink.dropped, flush_seconds=1.0, rescue=rescue))
        sink.entered.clear()
        sink.gate.clear()
        writers[-1].put(name, keep=True)
        assert sink.entered.wait(5)
    began = time.monotonic()
    ending.close_all()
    assert time.monotonic() - began < 1.3
    assert (sorted(rescued), sink.lost) == (["a", "b"], [])
