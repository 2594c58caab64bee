"""The road of an answer without an engine: assessed, decided, handed over, counted."""

from __future__ import annotations

import os
import shutil
import threading
from functools import partial

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

from fastrm_monitor import Answer, FastRMError, Monitor, guard
from fastrm_monitor.demo import PROXY_FOLDER
from fastrm_monitor.errors import ProxyError, StoreError
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.patches import PatchGrid
from fastrm_monitor.testing import strict
from tests.forking import exit_codes, forked, forks

GRID = PatchGrid(np.arange(4).reshape(2, 2), 4)
NUMBERS = {"token_probability": 0.5, "token_entropy": 0.7}


@pytest.fixture
def uncalibrated(tmp_path):
    """The embedded proxy without its confidence."""
    folder = shutil.copytree(PROXY_FOLDER, tmp_path / "uncalibrated")
    (folder / "confidence.json").unlink(missing_ok=True)
    return folder


@pytest.fixture
def opened(uncalibrated):
    """`Monitor.open` of the uncalibrated proxy, closed at the end."""
    monitors = []

    def opened(**settings):
        monitors.append(Monitor.open(**{"proxy": uncalibrated, **settings}))
        return monitors[-1]

    yield opened
    for monitor in monitors:
        monitor.close()


def assess(monitor, number=0, probability=0.5):
    relevance = np.array([0.1, 0.9, 0.2, 0.0], np.float32)
    return monitor.assess(f"r{number}", relevance, [GRID], answer={**NUMBERS, "token_probability": probability})


def answer(number=0):
    return Answer(
        request_id=f"r{number}",
        model="m",
        question="q",
        text="a",
        pictures=(lambda: Image.new("RGB", (8, 8)),),
        started_ns=1,
        ended_ns=2,
        input_tokens=5,
        output_tokens=1,
    )


def test_uncalibrated_is_said(opened):
    """Without labels the confidence is the token probability and called uncalibrated."""
    with strict():
        one = assess(opened(), probability=0.25)
    assert (one.confidence, one.calibrated) == (0.25, False)
    assert one.relevance.tolist() == np.array([[0.1, 0.9], [0.2, 0.0]], np.float32).tolist()


@pytest.mark.parametrize("score", ["token_probability", "map_entropy"])
def test_flag_rate_over_running_traffic(opened, score):
    """Uncalibrated, about the given share of the traffic is flagged, lowest scores first, on either score."""
    monitor = opened(flag_rate=0.2, flag_score=score)
    rng = np.random.default_rng(0)
    flagged, values = [], []
    for number in range(600):
        relevance = rng.uniform(0, 1, 4).astype(np.float32) ** rng.uniform(0.2, 8)
        one = monitor.assess(f"r{number}", relevance, [GRID], answer={**NUMBERS, "token_probability": rng.random()})
        if number >= 100:
            flagged.append(one.flagged)
            values.append(one.features[score] * (1 if score == "token_probability" else -1))
    assert 0.14 < np.mean(flagged) < 0.26
    flags, scores = np.array(flagged), np.array(values)
    assert scores[flags].max() < np.quantile(scores, 0.35)


def test_stored_is_what_was_flagged_or_sampled(opened, any_store_url):
    """Of 300 answers exactly those flagged or drawn into the sample are cases; the rest is counted as sampled out."""
    monitor = opened(store=any_store_url, sample_rate=0.2)
    rng = np.random.default_rng(1)
    kept = {}
    for number in range(300):
        one = assess(monitor, number, rng.random())
        monitor.record(answer(number), one)
        if one.case_id is not None:
            kept[one.case_id] = (one.flagged, one.sampled)
        assert (one.case_id is not None) == (one.flagged or one.sampled)
    assert monitor.flush(20)
    with Store(any_store_url) as store:
        with store.session() as session:
            cases = {case.case_id: (case.flagged, case.sampled) for case in session.scalars(select(Case))}
        totals = store.totals()
    assert cases == kept
    assert 20 < sum(sampled for _, sampled in cases.values()) < 110
    assert totals["stored", ""] + totals["sampled_out", ""] == totals["scored", ""] == totals["seen", ""] == 300


def test_nothing_is_stored_without_a_store(opened):
    """Without a store there are no cases, and every scored answer counts as sampled out, flagged or not."""
    monitor = opened(sample_rate=1.0)
    one = assess(monitor)
    monitor.record(answer(), one)
    assert monitor.flush(10)
    assert one.case_id is None
    counts = monitor.counters.snapshot()
    assert counts["sampled_out", ""] == counts["scored", ""] == 1


def test_counts_from_many_threads(opened, any_store_url):
    """Four threads and a queue of eight: each answer ends as stored, sampled out or dropped, exactly once."""
    monitor = opened(store=any_store_url, sample_rate=0.5, queue_size=8)

    def serve(base):
        for number in range(100):
            if number % 10 == 0:
                monitor.record(answer(base + number), monitor.skip(f"r{base + number}", "no_image"))
            else:
                monitor.record(answer(base + number), assess(monitor, base + number))

    threads = [threading.Thread(target=serve, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.flush(30)
    totals = {}
    for (name, _), value in monitor.counters.snapshot().items():
        totals[name] = totals.get(name, 0) + value
    assert (totals["seen"], totals["scored"], totals["skipped"]) == (400, 360, 40)
    assert totals["scored"] == totals["stored"] + totals["sampled_out"] + totals.get("dropped", 0)
    with Store(any_store_url) as store, store.session() as session:
        assert len(session.scalars(select(Case.case_id)).all()) == totals["stored"]


def test_a_picture_that_fails_loses_no_case(opened, store_url, monkeypatch):
    """A picture that cannot be made is left out and counted; the case with its map is there."""
    monkeypatch.setattr(guard, "STRICT", False)
    monitor = opened(store=store_url, sample_rate=1.0)

    def broken():
        raise OSError("gone")

    one = assess(monitor)
    given = answer()
    monitor.record(type(given)(**{**vars(given), "pictures": (broken,)}), one)
    assert monitor.flush(10)
    with Store(store_url) as store, store.session() as session:
        (case,) = session.scalars(select(Case))
        assert (case.case_id, case.pictures[0].content, len(case.pictures[0].relevance)) == (one.case_id, None, 8)
    assert monitor.counters.snapshot()["failed", "picture"] == 1


def test_setup_mistakes_raise_at_once(tmp_path, uncalibrated, monkeypatch):
    """A proxy that is not there, a store that cannot be opened and a setting out of range: each one sentence."""
    for arguments, error, said in (
        ({}, ProxyError, "pass proxy=FOLDER or set FASTRM_PROXY"),
        ({"proxy": tmp_path / "none"}, ProxyError, "There is no proxy folder"),
        ({"proxy": uncalibrated, "store": f"sqlite:///{tmp_path}/no/s.db"}, StoreError, "make it first"),
        ({"proxy": uncalibrated, "flag_rate": 3}, FastRMError, "FASTRM_FLAG_RATE"),
        ({"proxy": uncalibrated, "treshold": 0.4}, FastRMError, "There is no setting 'treshold'"),
        ({"proxy": uncalibrated, "flush_seconds": float("inf")}, FastRMError, "FASTRM_FLUSH_SECONDS"),
        ({"proxy": uncalibrated, "flag_score": "luck"}, FastRMError, "FASTRM_FLAG_SCORE"),
    ):
        with pytest.raises(error, match=said):
            Monitor.open(**arguments)


def test_a_store_that_is_away_is_no_setup_mistake(opened, tmp_path):
    """A monitor whose PostgreSQL cannot be reached opens, scores, and keeps its cases on disk."""
    pytest.importorskip("psycopg")
    away = "postgresql://nobody@127.0.0.1:9/none"
    monitor = opened(store=away, spool=str(tmp_path / "spool"), sample_rate=1.0)
    monitor.record(answer(), assess(monitor))
    assert monitor.flush(20)
    assert (monitor.spooled, monitor.pending, monitor.balance().holds) == (1, 1, True)


def test_environment_and_arguments(uncalibrated, monkeypatch, store_url):
    """`FASTRM_*` sets what no argument sets; an argument beats it."""
    monkeypatch.setenv("FASTRM_PROXY", str(uncalibrated))
    monkeypatch.setenv("FASTRM_STORE", store_url)
    monkeypatch.setenv("FASTRM_SAMPLE_RATE", "0.5")
    monitor = Monitor.open(sample_rate=1.0)
    one = assess(monitor)
    assert (one.sampled, one.sample_rate, one.case_id is not None) == (True, 1.0, True)
    monitor.close()
    monitor.close()  # idempotent


@forks
def test_fork_while_others_are_assessed(opened, store_url):
    """Children forked in the middle of traffic count and store their own answers alone, under a name of their own."""
    monitor = opened(store=store_url, sample_rate=1.0, flush_seconds=10)
    stop = threading.Event()

    def serve():
        while not stop.is_set():
            assess(monitor)
            # Not stored: SQLite's write lock is not fair, and this is about ours.
            monitor.record(answer(), monitor.skip("r", "no_image"))

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()

    def served_one(number):
        monitor.record(answer(number), assess(monitor, number))
        counts = monitor.counters.snapshot()
        own = (counts["seen", ""], monitor.flush(10), monitor.server.endswith(f":{os.getpid()}"))
        return own == (1.0, True, True) and monitor.counters.snapshot()["stored", ""] == 1

    children = [forked(partial(served_one, 10_000 + child)) for child in range(6)]
    stop.set()
    for thread in threads:
        thread.join()
    assert exit_codes(children, 40) == [0] * 6
    assert monitor.flush(60)
    with Store(store_url) as store, store.session() as session:
        found = session.scalars(select(Case.request_id).where(Case.request_id.like("r1000_"))).all()
    assert {f"r{10_000 + child}" for child in range(6)} <= set(found)


@pytest.mark.parametrize(
    "setting",
    [
        {"store": "sqlite:///x.db?timeout=abc"},
        {"store": "sqlite:///%00.db"},
        {"store": f"sqlite:///{'a' * 5000}"},
        {"proxy": "a" * 5000},
        {"proxy": "a\0b"},
    ],
    ids=["option", "null", "long store", "long proxy", "null proxy"],
)
def test_odd_names_are_one_sentence(setting, tmp_path, monkeypatch):
    """What no driver and no file system takes is a mistake like others: one sentence, and no other error."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FastRMError) as raised:
        Monitor.open(**{"proxy": PROXY_FOLDER, **setting})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_a_telemetry_variable_costs_telemetry_only(tmp_path, monkeypatch, caplog):
    """A value that the OpenTelemetry SDK refuses is said in the log; answers are scored."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc")
    monitor = Monitor.open(proxy=PROXY_FOLDER)
    monitor.close()
    assert "check OTEL_*" in caplog.text
