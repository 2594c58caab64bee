"""Every answer is somewhere, at every moment: seen = scored + skipped, scored + adopted = stored + ... + pending."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

from fastrm_monitor import guard
from fastrm_monitor.records.breaker import CircuitBreaker
from fastrm_monitor.records.cases import bytes_of
from fastrm_monitor.records.engine import StoreAwayError
from fastrm_monitor.types import Answer
from tests.servers import answer, assess, cases, serve, serving


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    """Failures are swallowed and counted, as in production."""
    monkeypatch.setattr(guard, "STRICT", False)
    monkeypatch.setattr(guard, "_last_logged", {})


class Answers(RuleBasedStateMachine):
    """Answers come, are handed over or not, while the store fails and recovers and servers end and start."""

    def __init__(self):
        super().__init__()
        guard.STRICT = False
        self.folder = tempfile.TemporaryDirectory()
        self.url = f"sqlite:///{Path(self.folder.name) / 'store.db'}"
        self.number = 0
        self.monitor = None

    @initialize()
    def start(self):
        self.monitor = serving(self.url, queue_size=6, queue_mb=1, spool_mb=1, sample_rate=0.5, flush_seconds=5)
        self.monitor._outbox._health._breaker = CircuitBreaker(failures=2, clock=lambda: self.clock, draw=lambda: 0.0)
        self.clock, self.down = 0.0, False
        self.seen = self.scored = 0
        self.in_hand = []
        store, add, add_traffic = self.monitor._store, self.monitor._store.add, self.monitor._store.add_traffic

        def failing(call):
            def called(*arguments):
                if self.down:
                    raise StoreAwayError("The store is away.")
                return call(*arguments)

            return called

        store.add, store.add_traffic = failing(add), failing(add_traffic)

    @rule(count=st.integers(1, 9))
    def serve_some(self, count):
        serve(self.monitor, range(self.number, self.number + count))
        self.number += count
        self.seen += count
        self.scored += count

    @rule()
    def judge(self):
        self.in_hand.append((answer(self.number), assess(self.monitor, self.number)))
        self.number += 1
        self.seen += 1
        self.scored += 1

    @precondition(lambda self: self.in_hand)
    @rule(lost=st.booleans(), large=st.booleans())
    def hand_over(self, lost, large):
        given, assessment = self.in_hand.pop()
        if lost:
            self.monitor.lost(assessment, "record_error")
            return
        if large:
            picture = Image.new("RGB", (1000, 1000))
            given = Answer(**{**vars(given), "pictures": (picture.copy,)})
        self.monitor.record(given, assessment)

    @rule(hand_over=st.booleans())
    def skip(self, hand_over):
        skipped = self.monitor.skip(f"r{self.number}", "no_image")
        if hand_over:
            self.monitor.record(answer(self.number), skipped)
        self.number += 1
        self.seen += 1

    @rule()
    def fail(self):
        self.down = True

    @rule()
    def recover(self):
        self.down = False
        self.clock += 100

    @rule()
    def flush(self):
        assert self.monitor.flush(20)
        balance = self.monitor.balance()
        assert balance.pending == len(self.in_hand) + self.monitor.spooled
        if not self.down:
            assert balance.stored <= len(cases(self.url))

    @rule()
    def restart(self):
        """The server ends, whatever is going on, and the next one begins; what was in hand is gone with it."""
        for _, assessment in self.in_hand:
            self.monitor.lost(assessment, "record_error")
        self.in_hand = []
        left = self.monitor.spooled
        self.monitor.close()
        left = self.monitor.balance().pending
        assert self.monitor.balance().holds
        self.start()
        serve(self.monitor, [self.number])
        self.number, self.seen, self.scored = self.number + 1, 1, 1
        assert self.monitor.flush(20)
        for _ in range(50):
            if self.monitor.balance().adopted == left:
                break
            threading.Event().wait(0.02)
        assert self.monitor.balance().adopted == left

    @invariant()
    def balance_holds(self):
        if self.monitor is None:
            return
        balance = self.monitor.balance()
        assert balance.holds, balance
        assert (balance.seen, balance.scored) == (self.seen, self.scored)
        assert balance.pending >= len(self.in_hand)

    def teardown(self):
        if self.monitor is not None:
            self.monitor.close()
            assert self.monitor.balance().holds
        self.folder.cleanup()


TestAnswers = Answers.TestCase
TestAnswers.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_balance_holds_while_others_look(store_url):
    """Asked a thousand times while four threads serve and the store comes and goes, the balance holds each time."""
    monitor = serving(store_url, queue_size=32, sample_rate=0.5)
    add, looks, stop = monitor._store.add, [], threading.Event()
    turns = iter(range(10**9))

    def sometimes(*arguments):
        if next(turns) % 3 == 0:
            raise StoreAwayError("Just now.")
        return add(*arguments)

    monitor._store.add = sometimes

    def look():
        while not stop.is_set():
            looks.append(monitor.balance())

    threads = [threading.Thread(target=serve, args=(monitor, range(200 * n, 200 * n + 200))) for n in range(4)]
    looking = threading.Thread(target=look)
    looking.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.flush(30)
    stop.set()
    looking.join()
    monitor.close()
    assert len(looks) > 100
    assert [balance for balance in looks if not balance.holds] == []
    assert monitor.balance().scored == 800


def test_a_queue_of_pictures_is_bounded(store_url):
    """With the store hanging, waiting pictures take no more memory than `queue_mb`, and each loss is counted."""
    monitor = serving(store_url, queue_mb=4, pictures="thumbnail")
    inside, leave = threading.Event(), threading.Event()
    add = monitor._store.add

    def hanging(*arguments):
        inside.set()
        leave.wait(20)
        return add(*arguments)

    monitor._store.add = hanging
    serve(monitor, [1])
    assert inside.wait(5)
    made = []
    for number in range(0, 40, 2):
        picture = Image.new("RGB", (512, 512))  # 768 KiB
        made.append(picture)
        given = Answer(**{**vars(answer(number)), "pictures": (picture.copy,)})
        monitor.record(given, assess(monitor, number))
    huge = Answer(**{**vars(answer(99)), "pictures": (Image.new("RGB", (2000, 2000)).copy,)})
    monitor.record(huge, assess(monitor, 99))
    counts = monitor.counters.snapshot()
    assert counts["dropped", "queue_full"] == 20 - 5
    assert counts["dropped", "too_large"] == 1
    assert monitor.balance().holds
    leave.set()
    assert monitor.flush(20)
    monitor.close()
    assert len(cases(store_url)) == 6


@pytest.mark.parametrize(
    ("maker", "size"),
    [
        (Image.new("RGB", (100, 50)).copy, 15_000),
        (Image.new("L", (100, 50)).copy, 5_000),
        (lambda: None, 100_000),
    ],
)
def test_what_an_answer_weighs(monkeypatch, maker, size, store_url):
    """The size of a picture is that of what its function holds; where that is unknown, a guess."""
    monitor = serving(None)
    given = answer(1)
    with_picture = Answer(**{**vars(given), "pictures": (maker,)})
    without = Answer(**{**vars(given), "pictures": ()})
    assessment = assess(monitor, 1)
    assert bytes_of(with_picture, assessment) - bytes_of(without, assessment) == size
    longer = Answer(**{**vars(without), "text": "a" * 1001})
    assert bytes_of(longer, assessment) - bytes_of(without, assessment) == 1000
    for name in ("question", "text", "request_id", "user_key", "model"):
        large = Answer(**{**vars(without), name: "\N{GRINNING FACE}" * 1000})
        assert bytes_of(large, assessment) - bytes_of(without, assessment) > 3900, name
    assert assessment.maps[0].values.nbytes == np.float32().nbytes * 4
