"""What the engine core keeps of a request goes out once, with the answer that it belongs to."""

from __future__ import annotations

import numpy as np
import pytest

from fastrm_monitor.integrations.vllm.ledger import Ledger, parts_of
from fastrm_monitor.integrations.vllm.worker import Finding, Sheet

MAP = np.array([0.25, 0.5, 1.0], np.float32).tobytes()


def sheet(findings=None, numbers=None, failed=None, about=""):
    """A sheet; `numbers` are (log probability, entropy) by place in the batch."""
    numbers = numbers or {}
    return Sheet(
        findings or {},
        np.array(list(numbers), np.int32),
        np.array(list(numbers.values()), np.float32).reshape(-1, 2),
        failed or {},
        about,
    )


def served(ledger, request_ids, numbers, count=1, **rest):
    """One step as the engine core has it: the sheet comes in, then `count` tokens of each request go out."""
    noted = ledger.note(sheet(numbers=numbers, **rest), request_ids)
    for request_id in request_ids:
        ledger.token(request_id, noted.get(request_id), count)


def taken(ledger, request_id, *, finished):
    """What the front end reads of what the engine core sends; None where nothing is sent."""
    entry = ledger.take(request_id, finished=finished)
    return None if entry is None else parts_of(entry)


def floats(content):
    return np.frombuffer(content, np.float32).tolist()


def test_an_entry_goes_out_once():
    """Finding and numbers of all tokens go out when the request is finished, and nothing after that."""
    ledger = Ledger()
    served(ledger, ["a"], {0: (-0.5, 1.0)}, findings={"a": Finding(MAP, {"p_ik": 0.75})})
    served(ledger, ["a"], {0: (-0.25, 2.0)})
    entry = taken(ledger, "a", finished=True)
    assert floats(entry.pop("log_probabilities")) == [-0.5, -0.25]
    assert floats(entry.pop("entropies")) == [1.0, 2.0]
    assert entry == {"relevance": MAP, "signals": {"p_ik": 0.75}, "reason": None}
    assert taken(ledger, "a", finished=True) is None
    assert ledger.idle


@pytest.mark.parametrize("signals", [{}, {"p_ik": 0.1, "grounding": 1e-9}, {"p_ik": float("inf")}])
def test_entries_travel_as_text(signals):
    """An entry is one line of ASCII, which every transport can carry, and is read as what was written."""
    ledger, odd = Ledger(), np.array([np.nan, np.inf, 0.1], np.float32).tobytes()
    served(
        ledger, ["a"], {0: (-0.1, np.inf)}, findings={"a": Finding(odd, signals)}, failed={"score": 1}, about="größer"
    )
    entry = ledger.take("a", finished=True)
    assert entry.isascii()
    assert entry.isprintable()
    parts = parts_of(entry)
    assert (parts["relevance"], parts["signals"], parts["about"]) == (odd, signals, "größer")
    assert parts["failed"] == {"score": 1}
    assert floats(parts["log_probabilities"]) == [np.float32(-0.1)]
    assert floats(parts["entropies"]) == [np.inf]


def test_numbers_go_to_the_requests_of_the_batch():
    """A number belongs to the request at its place in the step's batch; those without pictures keep none."""
    ledger = Ledger()
    found = {name: Finding(MAP) for name in "ac"}
    served(ledger, ["text", "c", "a"], {1: (-1.0, 0.5), 2: (-2.0, 0.75)}, findings=found)
    served(ledger, ["a", "text", "c"], {0: (-3.0, 0.25), 2: (-4.0, 0.125)})
    assert floats(taken(ledger, "a", finished=True)["log_probabilities"]) == [-2.0, -3.0]
    assert floats(taken(ledger, "c", finished=True)["entropies"]) == [0.5, 0.125]
    assert taken(ledger, "text", finished=True) is None


def test_tokens_that_are_not_served_have_no_numbers():
    """Steps of a prompt that is still being computed give no token, so their numbers are not the answer's."""
    ledger = Ledger()
    for count, log_probability in ((0, -9.0), (1, -0.5), (0, -9.0)):
        served(ledger, ["a"], {0: (log_probability, 1.0)}, count=count, findings={"a": Finding(MAP)})
    assert floats(taken(ledger, "a", finished=True)["log_probabilities"]) == [-0.5]


def test_tokens_without_numbers():
    """Several tokens a step, and steps that were not measured, add none: whoever counts them sees that they miss."""
    ledger = Ledger()
    served(ledger, ["a"], {0: (-0.5, 1.0)}, findings={"a": Finding(MAP)})
    served(ledger, ["a"], {0: (-0.5, 1.0)}, count=3)
    served(ledger, ["a"], {})
    assert floats(taken(ledger, "a", finished=True)["entropies"]) == [1.0]


def test_requests_that_may_end_at_a_stop_string():
    """Taken with every token, the parts are the finding once and each number once, in order."""
    ledger = Ledger()
    served(ledger, ["a"], {0: (-0.5, 1.0)}, findings={"a": Finding(MAP, {"p_ik": 0.75})})
    first = taken(ledger, "a", finished=False)
    assert (first["relevance"], first["signals"], floats(first["log_probabilities"])) == (MAP, {"p_ik": 0.75}, [-0.5])
    served(ledger, ["a"], {0: (-0.25, 2.0)})
    second = taken(ledger, "a", finished=False)
    assert "relevance" not in second
    assert floats(second["log_probabilities"]) == [-0.25]
    served(ledger, ["a"], {0: (-0.125, 3.0)})
    last = taken(ledger, "a", finished=True)
    assert "reason" not in last
    assert floats(last["entropies"]) == [3.0]
    assert ledger.idle


@pytest.mark.parametrize("finished", [True, False])
def test_failures_and_the_line_about_the_worker(finished):
    """Counts of failures and the worker's line travel with whatever request comes next, once, added up."""
    ledger = Ledger()
    ledger.note(sheet(failed={"score": 1}, about="engine 1"), [])
    ledger.note(sheet(failed={"score": 2, "projection": 1}), [])
    with ledger.guard("drain"):
        raise RuntimeError("odd output")
    assert not ledger.idle
    told = taken(ledger, "text", finished=finished)
    assert told["failed"] == {"score": 3, "projection": 1, "drain": 1}
    assert (told["about"], told["refused"]) == ("engine 1", False)
    assert taken(ledger, "text", finished=finished) is None
    assert ledger.idle


def test_a_worker_that_reads_nothing():
    """That a worker refused the proxy is told with the next answer, once."""
    ledger = Ledger()
    ledger.note(Sheet.refusal("engine 1, unmonitored"), ["a"])
    assert not ledger.idle
    told = taken(ledger, "a", finished=True)
    assert (told["about"], told["refused"]) == ("engine 1, unmonitored", True)
    assert taken(ledger, "b", finished=True) is None


def test_requests_that_are_gone():
    """An aborted request leaves nothing behind, and its late numbers do not bring it back."""
    ledger = Ledger()
    served(ledger, ["a", "b"], {0: (-0.5, 1.0)}, findings={"a": Finding(MAP), "b": Finding(reason="keys_missing")})
    ledger.forget(["a", "never seen"])
    served(ledger, ["a"], {0: (-0.5, 1.0)})
    assert taken(ledger, "a", finished=True) is None
    assert taken(ledger, "b", finished=True)["reason"] == "keys_missing"
    assert ledger.idle
