"""The object `fastrm` in HTTP responses: on the choice that it belongs to, and not a byte of anything else changes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from types import SimpleNamespace

import pytest

from fastrm_monitor.guard import Guard
from fastrm_monitor.integrations.vllm.responses import Overheard, add_to_response, add_to_stream, as_object
from fastrm_monitor.types import Assessment


def assessment(**changes):
    values = {
        "request_id": "r", "maps": (), "entropy": 0.42, "features": {}, "confidence": 0.31, "calibrated": True,
        "flagged": True, "reason": "low_confidence", "threshold": 0.5, "proxy_version": "abc",
        "scoring_seconds": 0.001, "case_id": "11111111",
    }  # fmt: skip
    return Assessment(**{**values, **changes})


TOLD = {
    "confidence": 0.31, "calibrated": True, "entropy": 0.42, "flagged": True, "reason": "low_confidence",
    "case_id": "11111111",
}  # fmt: skip
SKIPPED = assessment(
    confidence=None, calibrated=False, entropy=None, flagged=False, reason="no_image", case_id=None, scored=False
)


@pytest.fixture
def failed():
    return Counter()


@pytest.fixture
def guard(failed):
    return Guard(lambda stage: failed.update([stage]))


def output(**assessments):
    """An engine's output whose completions, by index, carry these assessments; None where one is not complete."""
    completions = []
    for index, one in enumerate(assessments.values()):
        completions.append(SimpleNamespace(index=index, text="red"))
        if one is not None:
            completions[-1].fastrm = one
    return SimpleNamespace(outputs=completions)


class Given:
    """An asynchronous generator of these items, which knows whether it was closed and may fail at its end."""

    def __init__(self, *items, error=None):
        self._items, self._error, self.closed = list(items), error, 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self._items:
            return self._items.pop(0)
        raise self._error or StopAsyncIteration

    async def aclose(self):
        self.closed += 1


def heard_of(*outputs, place=lambda _, completion: completion.index):
    """An `Overheard` through which these outputs went."""
    one = Overheard(Given(*outputs), place)

    async def drain():
        return [passed async for passed in one]

    assert asyncio.run(drain()) == list(outputs)
    return one


def streamed(chunks, heard, guard):
    async def drain():
        return [chunk async for chunk in add_to_stream(chunks, heard, guard)]

    return asyncio.run(drain())


def chunk(*choices, **rest):
    """A chunk as vLLM writes it; a choice is (index, text, finish reason)."""
    body = {
        "id": "c-1",
        "choices": [
            {"index": index, "delta": {"content": text}, "finish_reason": reason} for index, text, reason in choices
        ],
        **rest,
    }
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def content(text):
    assert text.startswith("data: ")
    assert text.endswith("\n\n")
    return json.loads(text[6:])


# --- what is told -----------------------------------------------------------------------------------------------------


def test_what_a_client_is_told():
    """The object is the documented one, and valid JSON where nothing was scored."""
    assert as_object(assessment()) == TOLD
    skipped = {**dict.fromkeys(TOLD), "calibrated": False, "flagged": False, "reason": "no_image"}
    assert json.loads(json.dumps(as_object(SKIPPED), allow_nan=False)) == skipped


# --- overheard --------------------------------------------------------------------------------------------------------


def test_outputs_pass():
    """The server gets the engine's own outputs; the assessments of complete answers are remembered by choice."""
    mine, other = assessment(), assessment(confidence=0.75)
    one = heard_of(output(a=None, b=None), output(a=None, b=other), output(a=mine, b=None))
    assert one.assessments == {0: mine, 1: other}


def test_outputs_of_several_prompts():
    """A list of prompts with two answers each numbers its choices through, as the server does."""
    ours = [assessment(confidence=0.1 * n) for n in range(4)]
    outputs = (1, output(a=ours[2], b=ours[3])), (0, output(a=ours[0], b=ours[1]))
    one = heard_of(*outputs, place=lambda number, completion: completion.index + number * 2)
    assert one.assessments == dict(enumerate(ours))


@pytest.mark.parametrize("odd", [SimpleNamespace(), SimpleNamespace(outputs=()), SimpleNamespace(outputs=None), None])
def test_odd_outputs(odd):
    """Outputs without completions pass too."""
    assert heard_of(odd, output(a=SKIPPED)).assessments == {0: SKIPPED}


def test_the_engines_error_passes():
    """An error of the engine reaches the server as it is."""

    async def first_two():
        one = Overheard(Given("an output", error=KeyError("engine")), lambda *_: 0)
        assert await anext(one) == "an output"
        await anext(one)

    with pytest.raises(KeyError, match="engine"):
        asyncio.run(first_two())


def test_closing_reaches_the_engine():
    """When the server closes what it reads, because its client is gone, the engine's generator is closed."""
    outputs = Given()
    asyncio.run(Overheard(outputs, lambda *_: 0).aclose())
    assert outputs.closed == 1
    asyncio.run(Overheard(aiter(Bare()), lambda *_: 0).aclose())


class Bare:
    """An asynchronous iterator that cannot be closed."""

    def __init__(self, *items):
        self._items = list(items)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._items:
            raise StopAsyncIteration
        return self._items.pop(0)


# --- complete responses -----------------------------------------------------------------------------------------------


def test_a_complete_response(guard):
    """Each choice has its own answer's assessment; one without stays as it is."""
    response = SimpleNamespace(choices=[SimpleNamespace(index=index) for index in (1, 0, 2)])
    assert add_to_response(response, {0: assessment(), 1: SKIPPED}, guard) is response
    assert [getattr(choice, "fastrm", None) for choice in response.choices] == [as_object(SKIPPED), TOLD, None]


@pytest.mark.parametrize("choices", [None, [object()], [SimpleNamespace(index=[])]])
def test_an_odd_response(choices, guard, failed):
    """A response that cannot be added to is served as it is, and counted."""
    response = SimpleNamespace(choices=choices)
    assert add_to_response(response, {0: assessment()}, guard) is response
    assert failed == {"response": 1}


def test_an_error_response(guard, failed):
    """An error has no choices, which is no failure."""
    error = SimpleNamespace(error="model not found")
    assert vars(add_to_response(error, {0: assessment()}, guard)) == {"error": "model not found"}
    assert failed == {}


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream(guard, failed):
    """The chunk that ends the choice gets the object beside what it had; every other chunk is the very same."""
    before = [chunk((0, "", None)), chunk((0, "dunkelrot, größer", None)), "data: {odd\n\n", ": a comment\n\n"]
    end = chunk((0, "日", "stop"), usage={"total_tokens": 9})
    after = [chunk(usage={"total_tokens": 9}), "data: [DONE]\n\n"]
    passed = streamed(Given(*before, end, *after), heard_of(output(a=assessment())), guard)
    assert passed[:4] + passed[5:] == before + after
    expected = content(end)
    expected["choices"][0]["fastrm"] = TOLD
    assert content(passed[4]) == expected
    assert "日" in passed[4]
    assert failed == {}


def test_a_stream_that_ends_as_it_is_heard(guard):
    """Chunks that pass before the engine's last output has none; the assessment is looked up when the chunk comes."""
    outputs = Given(output(a=None), output(a=assessment()))
    heard = Overheard(outputs, lambda _, completion: completion.index)

    async def server():
        async for one in heard:
            done = hasattr(one.outputs[0], "fastrm")
            yield chunk((0, "red", "stop" if done else None))

    first, last = streamed(server(), heard, guard)
    assert first == chunk((0, "red", None))
    assert content(last)["choices"][0]["fastrm"] == TOLD


def test_two_answers_in_one_stream(guard):
    """With n=2 each choice's end has that choice's object, also where both end in one chunk."""
    ours = assessment(confidence=0.1), assessment(confidence=0.9)
    ends = [chunk((1, "a", "stop"), (0, "b", None)), chunk((0, "c", "length"))]
    first, second = map(content, streamed(Given(*ends), heard_of(output(a=ours[0], b=ours[1])), guard))
    assert [choice.get("fastrm", {}).get("confidence") for choice in first["choices"]] == [0.9, None]
    assert second["choices"][0]["fastrm"]["confidence"] == 0.1
    both = chunk((1, "a", "stop"), (0, "b", "stop"))
    (only,) = map(content, streamed(Given(both), heard_of(output(a=ours[0], b=ours[1])), guard))
    assert [choice["fastrm"]["confidence"] for choice in only["choices"]] == [0.9, 0.1]


def test_each_object_is_told_once(guard):
    """A second chunk with a finish reason for the same choice stays as it is."""
    end = chunk((0, "", "stop"))
    first, second = streamed(Given(end, end), heard_of(output(a=assessment())), guard)
    assert "fastrm" in first
    assert second == end


@pytest.mark.parametrize(
    "odd",
    [
        'event: error\ndata: {"error":{"message":"x","finish_reason":"stop"}}\n\n',
        'data: {"error":{"message":"x","finish_reason":"stop"}}\n\n',
        'data: {"choices":[{"index":1,"logprobs":-1e-7,"finish_reason":"stop"}]}\n\n',
        'data: {"choices":[{"finish_reason":"stop","text":"\\u00e9"}]}\n\n',
    ],
)
def test_chunks_that_end_no_choice_of_ours(odd, guard, failed):
    """A chunk that has a finish reason and ends no answer that was heard of passes byte for byte."""
    assert streamed(Given(odd), heard_of(output(a=assessment())), guard) == [odd]
    assert failed == {}


@pytest.mark.parametrize(
    "odd",
    [
        'data: {"choices":[{"index":0,"finish_reason":"stop"}\n\n',
        'data: [{"index":0,"finish_reason":"stop"}]\n\n',
        'data: {"choices":null,"x":{"finish_reason":"stop"}}\n\n',
        'data: {"choices":[7,{"index":0,"finish_reason":"stop"}]}\n\n',
        'data: {"choices":[{"index":[],"finish_reason":"stop"}]}\n\n',
    ],
)
def test_chunks_that_cannot_be_read(odd, guard, failed):
    """A chunk that is not what a chunk should be passes byte for byte and is counted; the stream goes on."""
    end = chunk((0, "", "stop"))
    first, last = streamed(Given(odd, end), heard_of(output(a=assessment())), guard)
    assert first == odd
    assert content(last)["choices"][0]["fastrm"] == TOLD
    assert failed == {"response": 1}


def test_text_that_looks_like_an_end(guard):
    """An answer that writes of finish reasons ends nothing."""
    talk = chunk((0, '{"finish_reason":"stop"}', None))
    assert streamed(Given(talk), heard_of(output(a=assessment())), guard) == [talk]


def test_a_stream_whose_client_is_gone(guard):
    """Closing the stream closes the server's own generator, which stops the engine."""
    chunks = Given(chunk((0, "a", None)), chunk((0, "b", "stop")))

    async def first_of():
        stream = add_to_stream(chunks, heard_of_nothing(), guard)
        await anext(stream)
        await stream.aclose()

    asyncio.run(first_of())
    assert chunks.closed == 1


def heard_of_nothing():
    return Overheard(Given(), lambda *_: 0)


def test_a_stream_that_breaks(guard, failed):
    """An error of the server's generator passes as it is, and is none of ours."""
    with pytest.raises(KeyError, match="server"):
        streamed(Given(chunk((0, "a", None)), error=KeyError("server")), heard_of_nothing(), guard)
    assert failed == {}


def test_a_stream_that_cannot_be_closed(guard):
    """An iterator without `aclose` is read to its end."""
    chunks = [chunk((0, "a", None)), "data: [DONE]\n\n"]
    assert streamed(Bare(*chunks), heard_of_nothing(), guard) == chunks
