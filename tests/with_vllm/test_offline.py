"""The offline engine: what comes with each answer, and that the answers are what they are without monitoring."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from sqlalchemy import select
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from fastrm_monitor.integrations.vllm import pictures
from fastrm_monitor.monitor import Monitor
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.policies import publish, roll_back
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.recalibration import Recalibration
from tests.with_vllm.asked import asks, by_transformers, by_vllm, furthest

GREEDY = SamplingParams(temperature=0, max_tokens=4)


def generate(llm, rows, params=GREEDY):
    return llm.generate([row.for_vllm for row in rows], params, use_tqdm=False)


def totals(desk):
    """Counts by name and reason, after a flush; the invariant holds whenever they are taken."""
    assert desk.monitor.flush(20)
    counts = desk.monitor.counters.snapshot()

    def of(name):
        return sum(value for (one, _), value in counts.items() if one == name)

    assert of("seen") == of("scored") + of("skipped")
    assert of("scored") == of("stored") + of("sampled_out") + of("dropped") + desk.monitor.pending
    return counts


def test_500_greedy_answers_are_the_same(llm, desk, script):
    """Token by token what an engine without the plug-in answers."""
    rows = asks(125, questions=4)
    assert len(rows) == 500
    alone = json.loads(script("alone.py", FASTRM_PROXY="").strip().splitlines()[-1])
    watched = [list(output.outputs[0].token_ids) for output in generate(llm, rows)]
    assert watched == alone
    assert totals(desk)["scored", ""] == 500


def test_what_comes_with_an_answer(llm, desk):
    """The output and each of its completions carry the assessment; the case has picture, question and answer."""
    (row,) = asks(1)
    (output,) = generate(llm, [row])
    one = output.fastrm
    assert one is output.outputs[0].fastrm
    assert one.request_id == output.request_id
    assert one.maps[0].values.shape == (8, 8)
    assert one.scored
    assert one.calibrated
    assert totals(desk)["stored", ""] == 1
    with desk.monitor._store.session() as session:
        case = session.scalars(select(Case)).one()
        assert case.case_id == one.case_id
        assert case.question == row.question
        assert case.answer == output.outputs[0].text.strip()
        assert case.pictures[0].content
        assert (case.pictures[0].width, case.pictures[0].height) == row.pictures[0].size


def test_a_policy_is_taken_over_while_serving(llm, desk, store_url):
    """What is published decides the next answers of the same engine, and so does a roll-back."""
    desk.monitor.close()
    desk.monitor = Monitor.open(store=store_url, provider="vllm", sample_rate=1.0, policy_seconds=0.01)
    rows = asks(4, seed=9)
    before = [output.fastrm for output in generate(llm, rows)]
    assert totals(desk)["scored", ""] == 4
    assert {one.policy for one in before} == {None}
    with Store(store_url) as store:
        with store.session() as session:
            model = session.scalars(select(Case.model)).first()
        proxy = desk.monitor.scorer.folder.version
        given = {"model": model, "proxy_version": proxy, "chosen": {"method": "risk"}, "author": "a"}
        sure = Recalibration(slope=1.0, intercept=0.0)
        versions = [publish(store, threshold=0.0, recalibration=sure, **given)]
        versions.append(publish(store, threshold=0.999999, recalibration=sure, **given))
        assert after(llm, desk, rows, versions[1]) == {True}
        versions.append(roll_back(store, versions[0], author="a"))
        assert after(llm, desk, rows, versions[2]) == {False}


def after(llm, desk, rows, version):
    """Which decisions there are once the version is in force: it is looked for behind the answers."""
    for _ in range(20):
        found = [output.fastrm for output in generate(llm, rows)]
        if {one.policy for one in found} == {version}:
            return {one.flagged for one in found}
        assert desk.monitor.flush(20)
        time.sleep(0.05)
    return f"version {version} was not taken over"


def test_token_numbers_are_the_engines_own(llm, desk):
    """Token probability and entropy equal those from vLLM's log probabilities of the whole vocabulary."""
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=-1, ignore_eos=True)
    for output in generate(llm, asks(6, seed=5), params):
        chosen = [float(np.float32(step[token].logprob)) for step, token in zip(
            output.outputs[0].logprobs, output.outputs[0].token_ids, strict=True)]  # fmt: skip
        every = [np.array([one.logprob for one in step.values()]) for step in output.outputs[0].logprobs]
        entropy = np.mean([-(np.exp(line) * np.where(np.isfinite(line), line, 0)).sum() for line in every])
        assert output.fastrm.features["token_probability"] == pytest.approx(math.exp(np.mean(chosen)), rel=1e-4)
        assert output.fastrm.features["token_entropy"] == pytest.approx(entropy, abs=1e-4)


def test_two_answers_to_a_request(llm, desk):
    """With n=2 each answer has its own confidence; the map is the prompt's."""
    params = SamplingParams(n=2, temperature=2.0, seed=3, max_tokens=12, ignore_eos=True)
    outputs = generate(llm, asks(20, seed=3), params)
    output = next(one for one in outputs if one.outputs[0].token_ids != one.outputs[1].token_ids)
    first, second = (completion.fastrm for completion in output.outputs)
    assert first.request_id != second.request_id
    assert first.case_id != second.case_id
    assert np.allclose(first.maps[0].values, second.maps[0].values, atol=1e-6)
    assert first.features["token_probability"] != second.features["token_probability"]
    assert totals(desk)["stored", ""] == 40


def test_ends_of_answers(llm, desk):
    """An end token is no part of the answer, a stop string's tokens are; tokens only can be asked for."""
    row = asks(1)[0]
    (plain,) = generate(llm, [row])
    tokens = list(plain.outputs[0].token_ids)
    assert tokens[-1] == 2
    (longer,) = generate(llm, [row], SamplingParams(temperature=0, max_tokens=len(tokens) - 1))
    assert longer.outputs[0].finish_reason == "length"
    wanted = plain.fastrm.features["token_probability"]
    assert longer.fastrm.features["token_probability"] == pytest.approx(wanted, rel=1e-6)
    word = plain.outputs[0].text.strip()
    (stopped,) = generate(llm, [row], SamplingParams(temperature=0, max_tokens=4, stop=[word]))
    assert stopped.outputs[0].stop_reason == word
    assert stopped.fastrm.features["token_probability"] == pytest.approx(wanted, rel=1e-6)
    assert np.allclose(stopped.fastrm.relevance, plain.fastrm.relevance, atol=1e-6)
    (bare,) = generate(llm, [row], SamplingParams(temperature=0, max_tokens=4, detokenize=False))
    assert bare.outputs[0].text == ""
    assert bare.fastrm.confidence == pytest.approx(plain.fastrm.confidence, abs=1e-6)
    totals(desk)
    with desk.monitor._store.session() as session:
        answers = {case.case_id: case.answer for case in session.scalars(select(Case))}
    assert answers[bare.fastrm.case_id] == word


def test_beams_are_not_answers(llm, desk):
    """The single-token requests that beam search is made of are counted as skipped and never scored."""
    from vllm.sampling_params import BeamSearchParams

    (row,) = asks(1)
    llm.beam_search([row.for_vllm], BeamSearchParams(beam_width=2, max_tokens=3))
    counts = totals(desk)
    assert counts["seen", ""] == counts["skipped", "beam_search"] > 0


def test_one_token_with_log_probabilities_is_an_answer(llm, desk):
    """Classification asks for one token, its log probability and no text; that is not a beam."""
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=1, detokenize=False)
    (output,) = generate(llm, asks(1), params)
    assert output.fastrm.scored
    assert totals(desk)["scored", ""] == 1


def test_refused_requests_leave_nothing(llm, desk, monkeypatch):
    """Pictures of requests that the engine refuses are forgotten after a minute."""
    refused = SamplingParams(temperature=0, max_tokens=4, stop_token_ids=[99999])
    for row in asks(5, seed=51):
        with pytest.raises(VLLMValidationError):
            generate(llm, [row], refused)
    (row,) = asks(1, seed=52)
    assert generate(llm, [row])[0].fastrm.scored
    assert len(desk.shelf._kept) >= 5
    now = pictures.time.monotonic()
    monkeypatch.setattr(pictures.time, "monotonic", lambda: now + 62)
    (row,) = asks(1, seed=53)
    assert generate(llm, [row])[0].fastrm.scored
    assert not desk.shelf._kept


def test_aborted_requests(llm, desk):
    """A request that is aborted before or during its answer is counted, and the others are scored as ever."""
    rows = asks(8, seed=9)
    engine = llm.llm_engine
    for number, row in enumerate(rows):
        engine.add_request(f"r{number}", row.for_vllm, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    engine.abort_request(["r0"])
    for _ in range(4):
        engine.step()
    engine.abort_request(["r1", "r2"])
    done = {}
    while engine.has_unfinished_requests():
        done |= {output.request_id: output for output in engine.step() if output.finished}
    assert sorted(done) == ["r3", "r4", "r5", "r6", "r7"]
    for number, wanted in enumerate(by_transformers(rows)):
        if number >= 3:
            assert np.abs(done[f"r{number}"].fastrm.relevance - wanted.maps[0]).max() < 1e-4
    counts = totals(desk)
    assert counts["skipped", "aborted"] == 3
    assert counts["scored", ""] == 5


def test_longer_than_the_context(llm, desk):
    """The own error of vLLM comes through, nothing is counted, and the next request is served and scored."""
    row = asks(1)[0]
    with pytest.raises(VLLMValidationError, match="maximum context length"):
        llm.generate([{**row.for_vllm, "prompt": row.prompt + " red" * 400}], GREEDY, use_tqdm=False)
    (output,) = generate(llm, [row])
    assert output.fastrm.scored
    assert totals(desk)["seen", ""] == 1


def test_keys_of_another_owner_are_never_used(llm, desk):
    """Blocks filled without a forward pass keep their last owner's keys: such a prompt is not scored."""
    rows = asks(4, questions=2, seed=21)
    first, second = rows[::2], rows[1::2]
    generate(llm, first)
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    keys = runner.fastrm._keys
    keys.tags[keys.tags != 0] += 1  # every slot belongs to somebody else now
    outputs = generate(llm, second)
    assert all(output.num_cached_tokens == 64 for output in outputs)
    assert [output.fastrm.reason for output in outputs] == ["keys_missing"] * 4
    assert all(output.fastrm.confidence is None and not output.fastrm.maps for output in outputs)
    llm.reset_prefix_cache()
    again = generate(llm, second)
    for output, wanted in zip(again, by_transformers(second), strict=True):
        assert furthest(by_vllm(output), wanted)[0] < 1e-4
    assert totals(desk)["skipped", "keys_missing"] == 4


def test_sleep_and_wake(llm, desk):
    """After an engine has slept, the keys of before are not used for anything that it computes anew."""
    rows = asks(6, seed=31)
    generate(llm, rows)
    llm.sleep(level=1)
    llm.wake_up()
    outputs = generate(llm, rows)
    for output, wanted in zip(outputs, by_transformers(rows), strict=True):
        assert furthest(by_vllm(output), wanted)[0] < 1e-4
