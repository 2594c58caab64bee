"""What breaks a side buffer beside a KV cache, each in an engine and a process of its own."""

from __future__ import annotations

import json

import pytest

from fastrm_monitor.records.schema import upgrade


def last_line(printed):
    return json.loads(printed.strip().splitlines()[-1])


@pytest.mark.parametrize(("runner", "pictures"), [("V1", 100), ("V2", 12)])
def test_eviction_reuse_and_preemption(script, runner, pictures):
    """In a KV cache of 40 blocks not one map differs, nothing is unscored, and every token was measured."""
    found = last_line(script("pressure.py", runner, str(pictures)))
    print(f"\n{runner}: {found}")
    assert found["requests"] == 5 * pictures
    assert found["preemptions"] >= 50
    assert found["evictions"] >= 100
    assert found["hits"] >= 10
    assert found["scored"] == found["with_token_numbers"] == found["requests"]
    assert found["largest_difference"] < 1e-4
    assert found["failed"] == {}


def test_blocks_that_a_connector_fills_are_not_scored(script, tmp_path):
    """The connector of vLLM with made-up blocks: every answer is served, none is scored, the reason says why."""
    for found in last_line(script("connector.py", "DecodeBenchConnector", str(tmp_path))):
        assert found == {
            "requests": 24, "answered": 24, "scored": 0, "unscored": {"keys_missing": 24}, "largest_difference": 0.0,
        }  # fmt: skip


def test_blocks_from_disk_are_not_scored(script, tmp_path):
    """The connector of vLLM to the disk: computed prompts are scored, loaded ones are not, no map is wrong."""
    computed, loaded = last_line(script("connector.py", "ExampleConnector", str(tmp_path)))
    assert computed["scored"] == 24
    assert computed["largest_difference"] < 1e-4
    assert loaded["answered"] == 24
    assert loaded["scored"] + loaded["unscored"]["keys_missing"] == 24
    assert loaded["unscored"]["keys_missing"] > 0
    assert loaded["largest_difference"] < 1e-4


def test_two_tensor_parallel_ranks(script, tmp_path):
    """Maps and confidences are those of transformers, prefix hits included; each answer is one row of the store."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    upgrade(url)
    found = last_line(script("ranks.py", FASTRM_STORE=url, FASTRM_SAMPLE_RATE="1"))
    print(f"\n{found}")
    assert [one["scored"] for one in found["rounds"]] == [29, 29]
    assert [one["hits"] for one in found["rounds"]] == [0, 29]
    assert all(one["map"] < 1e-4 and one["confidence"] < 1e-3 for one in found["rounds"])
    assert found["cases"] == 58
    assert found["counters"]["skipped no_image"] == 6


def test_a_proxy_of_another_model_is_refused(script, tmp_path):
    """One sentence at the start, then the server serves, and every answer is counted as unscored for that reason."""
    found = last_line(script("refused.py", str(tmp_path)))
    assert found["answers"] == found["wanted"]
    assert found["reasons"] == ["proxy_refused"] * len(found["answers"])
    assert len(found["log"]) == 1
    assert "is for a model with other weights" in found["log"][0]
    assert "vLLM goes on serving, unmonitored" in found["log"][0]


def test_speculative_decoding(script):
    """Maps are right; token numbers are the engine's or there are none, and then no confidence counts as calibrated."""
    found = last_line(script("speculative.py"))
    print(f"\n{found}")
    assert found["accepted"] > 0
    assert found["scored"] == 24
    assert found["largest_difference"] < 1e-4
    assert found["wrong_numbers"] == 0
    assert found["calibrated"] == found["with_numbers"] < 24
