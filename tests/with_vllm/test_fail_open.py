"""Whatever breaks inside monitoring, the answers are what they are, and the failure is counted by its stage."""

from __future__ import annotations

from collections import Counter

import pytest
from vllm import SamplingParams

from fastrm_monitor.integrations.vllm import frontend, ledger, pictures, slots, worker
from fastrm_monitor.integrations.vllm.internals import front
from fastrm_monitor.monitor import Monitor
from fastrm_monitor.records.store import Store
from fastrm_monitor.telemetry.emit import Telemetry
from tests.with_vllm.asked import asks

STAGES = {
    "capture: the step is not read": (worker.WorkerMonitor, "read", "capture_failed", "capture"),
    "capture: requests are not seen coming": (worker.WorkerMonitor, "admit", "capture_failed", "capture"),
    "projection": (slots.SlotKeys, "write", "keys_missing", "projection"),
    "score": (slots.SlotKeys, "score", "scorer_error", "score"),
    "tokens: before sampling": (worker.Step, "before_sampling", None, "tokens"),
    "tokens: after sampling": (worker.Step, "after_sampling", None, "tokens"),
    "drain: from the device": (worker.Step, "collect", "capture_failed", "drain"),
    "drain: in the engine core": (ledger.Ledger, "note", "capture_failed", "drain"),
    "drain: in the front end": (frontend.Desk, "receive", "capture_failed", "drain"),
    "front end: requests are not seen coming": (front, "_served", "not seen", "capture"),
    "judging": (Monitor, "assess", "scorer_error", "score"),
    "handing over": (Monitor, "record", None, "record"),
    "store": (Store, "add", None, "store"),
    "export": (Telemetry, "emit", None, "telemetry"),
    "pictures": (pictures.PictureShelf, "put", None, "picture"),
}


@pytest.fixture(scope="module")
def rows():
    return asks(125, questions=4)


@pytest.fixture(scope="module")
def right(llm, rows):
    """What the engine answers while all is well (`test_500_greedy_answers_are_the_same` is about that)."""
    return answers(llm, rows)[0]


def answers(llm, rows):
    outputs = llm.generate([row.for_vllm for row in rows], SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs], [output.fastrm for output in outputs]


@pytest.mark.parametrize("name", STAGES)
def test_500_answers_are_right(llm, desk, rows, right, monkeypatch, name):
    """An exception in every call of one stage changes no answer and is counted."""
    owner, method, reason, stage = STAGES[name]

    def broken(*args, **kwargs):
        raise RuntimeError(f"injected into {method}")

    assert len(rows) == 500
    llm.reset_prefix_cache()
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, broken)
        tokens, assessments = answers(llm, rows)
        assert desk.monitor.flush(60)
    assert tokens == right
    # What fails in the worker is told with the next answer.
    answers(llm, rows[:2])
    assert desk.monitor.flush(60)
    counts = desk.monitor.counters.snapshot()
    by_name = Counter()
    for (one, _), value in counts.items():
        by_name[one] += value
    print(f"\n{name}: {dict(sorted(counts.items()))}")
    assert counts["failed", stage] >= 1
    assert desk.monitor._store.totals()["failed", stage] == counts["failed", stage]  # what `doctor` shows
    if reason == "not seen":
        assert all(one is None for one in assessments)
    elif reason is not None:
        assert {one.reason for one in assessments} == {reason}
        # The keys of cached prefixes stay missing; everything else is as before.
        assert counts["skipped", reason] == (502 if reason == "keys_missing" else 500)
    else:
        assert all(one.scored for one in assessments)
    assert by_name["seen"] == by_name["scored"] + by_name["skipped"] == (2 if reason == "not seen" else 502)
    ended = by_name["stored"] + by_name["sampled_out"] + by_name["dropped"]
    assert by_name["scored"] == ended + desk.monitor.pending


def test_all_is_well_again(llm, desk, rows, right):
    """After the failures every answer is scored and stored as before."""
    llm.reset_prefix_cache()
    tokens, assessments = answers(llm, rows)
    assert tokens == right
    assert all(one.scored for one in assessments)
    assert desk.monitor.flush(60)
    counts = desk.monitor.counters.snapshot()
    assert counts["stored", ""] == 500
    assert not [key for key in counts if key[0] in ("failed", "dropped", "skipped")]
