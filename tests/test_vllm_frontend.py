"""The front end judges each answer once, with what the worker found out about it, and counts add up."""

from __future__ import annotations

import gc
import math
import weakref
from io import BytesIO

import numpy as np
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from fastrm_monitor import Monitor, guard
from fastrm_monitor.config import load_settings
from fastrm_monitor.integrations.vllm.frontend import Desk, Served
from fastrm_monitor.integrations.vllm.pictures import PictureShelf
from fastrm_monitor.records.images import unpack_map
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.patches import FixedGridLayout
from fastrm_monitor.telemetry.emit import Telemetry
from tests.tiny import tiny_scorer

IMAGE = 4
RELEVANCE = [0.125, 0.875, 0.25, 0.0]
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
WORDS = {1: "<s>", 2: "</s>", 10: "what", 11: "colour?", 20: "dark", 21: "red"}


class Tokenizer:
    """Words by number; 1 and 2 are special."""

    def decode(self, tokens, skip_special_tokens=False):
        return " ".join(WORDS[token] for token in tokens if not (skip_special_tokens and token < 3))


class Place:
    """A desk with a store and spans in memory."""

    def __init__(self, store_url, confidence=None, room=1 << 20, **settings):
        self._spans = InMemorySpanExporter()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracer, self._url = tracers.get_tracer("server"), store_url
        self.monitor = Monitor(
            tiny_scorer(confidence),
            settings=load_settings(**{"sample_rate": 1.0, "pictures": "full", **settings}),
            store=Store(store_url),
            telemetry=Telemetry("http://dash", "vllm", tracer_provider=tracers),
        )
        self.shelf = PictureShelf(room)
        self.desk = Desk(self.monitor, FixedGridLayout(IMAGE, 2, 2), Tokenizer(), "llava", self.shelf)

    def ask(self, request_id="r", pictures=("cat",), **changes):
        prompt = [1, *[IMAGE] * (4 * len(pictures)), 10, 11]
        return self.desk.admit(Served(**{
            "request_id": request_id, "prompt": prompt, "pictures": list(pictures),
            "image_tokens": 4 * len(pictures), **changes,
        }))  # fmt: skip

    def answer(self, served, tokens=(20, 21, 2), reason="stop", at_end_token=True, text="dark red"):
        return self.desk.finish(
            served, tokens=list(tokens), text=lambda: text, reason=reason, at_end_token=at_end_token
        )

    def cases(self):
        assert self.monitor.flush(10)
        with Store(self._url) as store, store.session() as session:
            return list(session.scalars(select(Case).options(selectinload(Case.pictures)).order_by(Case.id)))

    @property
    def spans(self):
        assert self.monitor.flush(10)
        return self._spans.get_finished_spans()

    def counts(self):
        return {name: value for name, value in self.monitor.counters.snapshot().items() if name[0] != "confidence_sum"}


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """What fails inside the monitor fails the test, unless the test lifts this."""
    monkeypatch.setattr(guard, "STRICT", True)


@pytest.fixture
def lenient(monkeypatch, strict):
    monkeypatch.setattr(guard, "STRICT", False)


@pytest.fixture
def make(store_url):
    places = []

    def make(**settings):
        places.append(Place(store_url, **settings))
        return places[-1]

    yield make
    for place in places:
        place.monitor.close()


def floats(*values):
    return np.array(values, np.float32).tobytes()


def entry(*probabilities, relevance=RELEVANCE, reason=None, signals=None, entropies=None):
    """What the engine core sends with an answer whose tokens had these probabilities."""
    return {
        "relevance": None if relevance is None else floats(*relevance),
        "signals": signals or {},
        "reason": reason,
        "log_probabilities": floats(*(math.log(one) for one in probabilities)),
        "entropies": floats(*(entropies or [0.5] * len(probabilities))),
    }


def png(colour="red", size=(200, 100)):
    buffer = BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


class Upload:
    """A picture beside its encoded bytes, as the engine has it."""

    def __init__(self, content):
        self.media, self.original_bytes = Image.open(BytesIO(content)), content


# --- scored -----------------------------------------------------------------------------------------------------------


def test_a_scored_answer(make):
    """The map lies where the picture's crop is; confidence, entropy and the case are those of the answer's tokens."""
    place = make()
    place.shelf.put("cat", Upload(png()))
    served = place.ask()
    place.desk.receive(served, entry(0.5, 0.125, 0.01, entropies=[1.0, 2.0, 9.0]))
    one = place.answer(served)
    assert (one.request_id, one.scored, one.calibrated) == ("r", True, False)
    assert one.confidence == pytest.approx(0.25)
    assert one.features["token_entropy"] == pytest.approx(1.5)
    assert one.relevance.tolist() == [RELEVANCE[:2], RELEVANCE[2:]]
    assert one.maps[0].region == (0.25, 0.0, 0.75, 1.0)
    (case,) = place.cases()
    assert (case.case_id, case.request_id, case.model) == (one.case_id, "r", "llava")
    assert (case.question, case.answer) == ("what colour?", "dark red")
    (picture,) = case.pictures
    assert Image.open(BytesIO(picture.content)).getpixel((0, 0)) == (255, 0, 0)
    assert unpack_map(picture.relevance, 2, 2).tolist() == one.relevance.tolist()
    assert place.counts() == {("seen", ""): 1, ("scored", ""): 1, ("stored", ""): 1}


def test_what_the_span_says(make):
    """The span has the request's beginning, its lengths without the end token, and the reason of its end."""
    place = make()
    served = place.ask()
    place.desk.receive(served, entry(0.5, 0.5, 0.5))
    place.answer(served)
    (span,) = place.spans
    assert span.start_time == served.started_ns <= span.end_time
    names = ("usage.input_tokens", "usage.output_tokens", "response.id", "response.finish_reasons", "provider.name")
    assert [span.attributes[f"gen_ai.{name}"] for name in names] == [7, 2, "r", ("stop",), "vllm"]


def test_several_pictures(make):
    """Each picture has its own map and its own place in the case, in prompt order."""
    place = make()
    place.shelf.put("dog", Upload(png("blue", (100, 100))))
    place.shelf.put("cat", Upload(png("red", (100, 200))))
    served = place.ask(pictures=("cat", "dog", "cat"))
    place.desk.receive(served, entry(0.5, 0.5, 0.5, relevance=[*RELEVANCE, 1, 1, 1, 1, 0, 0, 0, 0]))
    one = place.answer(served)
    assert [own.values.tolist() for own in one.maps] == [[RELEVANCE[:2], RELEVANCE[2:]], [[1, 1]] * 2, [[0, 0]] * 2]
    assert [own.region for own in one.maps] == [(0.0, 0.25, 1.0, 0.75), (0.0, 0.0, 1.0, 1.0), (0.0, 0.25, 1.0, 0.75)]
    (case,) = place.cases()
    colours = [Image.open(BytesIO(picture.content)).getpixel((0, 0)) for picture in case.pictures]
    assert colours == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


def test_p_ik_reaches_the_confidence(make):
    """The probe's number enters the calibrated confidence."""
    fitted = LogisticConfidence(("p_ik",), (0.0,), (1.0,), (2.0,), 0.5, threshold=0.5)
    place = make(confidence=fitted)
    served = place.ask()
    place.desk.receive(served, entry(0.5, 0.5, 0.5, signals={"p_ik": 0.75}))
    one = place.answer(served)
    assert (one.calibrated, one.features["p_ik"]) == (True, 0.75)
    assert one.confidence == pytest.approx(1 / (1 + math.exp(-(0.5 + 2 * math.log(3)))))


def test_parts_that_come_with_every_token(make):
    """What comes in parts, as with stop strings, is one answer's: the finding stays, the numbers add up in order."""
    place = make()
    served = place.ask()
    first, second = entry(0.5), entry(0.125)
    place.desk.receive(served, first)
    place.desk.receive(served, {name: second[name] for name in ("log_probabilities", "entropies")})
    place.desk.receive(served, {})
    one = place.answer(served, tokens=(20, 21), at_end_token=False)
    assert one.scored
    assert one.confidence == pytest.approx(0.25)


# --- the answer's tokens ----------------------------------------------------------------------------------------------


def test_the_last_token_of_a_cut_answer_counts(make):
    """An answer that ends at its length has no end token: all its tokens count."""
    place = make()
    served = place.ask()
    place.desk.receive(served, entry(0.5, 0.5, 0.0625, entropies=[1.0, 2.0, 6.0]))
    one = place.answer(served, tokens=(20, 21, 20), reason="length", at_end_token=False)
    assert one.confidence == pytest.approx(0.25)
    assert one.features["token_entropy"] == pytest.approx(3.0)
    assert place.spans[0].attributes["gen_ai.usage.output_tokens"] == 3


def test_an_empty_answer_is_judged_by_its_end_token(make):
    """An answer of nothing but the end token has that token's probability, and no tokens."""
    place = make()
    served = place.ask()
    place.desk.receive(served, entry(0.375))
    one = place.answer(served, tokens=(2,), text="")
    assert one.confidence == pytest.approx(0.375)
    assert place.spans[0].attributes["gen_ai.usage.output_tokens"] == 0


@pytest.mark.parametrize("probabilities", [(), (0.5,), (0.5, 0.5), (0.5, 0.5, 0.5, 0.5)])
def test_numbers_that_miss(probabilities, make):
    """An answer some of whose tokens were not measured has no token numbers, and is not called calibrated."""
    fitted = LogisticConfidence(("token_probability",), (0.0,), (1.0,), (2.0,), 0.5, threshold=0.5)
    place = make(confidence=fitted)
    served = place.ask()
    place.desk.receive(served, entry(*probabilities))
    one = place.answer(served)
    assert one.scored
    assert not {"token_probability", "token_entropy"} & one.features.keys()
    assert (one.confidence, one.calibrated) == (pytest.approx(1 - one.entropy), False)


@pytest.mark.parametrize("odd", [math.nan, -math.inf])
def test_numbers_that_are_none(odd, make):
    """A token whose distribution was no distribution has no numbers; no NaN gets into what a client is told."""
    place = make()
    served = place.ask()
    given = entry(0.5, 0.5, 0.5)
    given["log_probabilities"], given["entropies"] = floats(-0.5, odd, -0.5), floats(0.5, math.nan, 0.5)
    place.desk.receive(served, given)
    one = place.answer(served)
    assert one.scored
    assert all(math.isfinite(value) for value in one.features.values())
    assert math.isfinite(one.confidence)


def test_an_answer_without_tokens(make):
    """An answer that ended before its first token has none, whatever the engine says of its end."""
    place = make()
    served = place.ask()
    place.desk.receive(served, entry())
    assert place.answer(served, tokens=(), text="").scored
    assert place.spans[0].attributes["gen_ai.usage.output_tokens"] == 0


# --- skipped ----------------------------------------------------------------------------------------------------------


def check_skipped(place, one, reason):
    assert (one.scored, one.reason, one.confidence, one.maps, one.case_id) == (False, reason, None, (), None)
    assert place.cases() == []
    assert place.counts()["skipped", reason] == place.counts()["seen", ""] == 1


def test_text_only(make):
    """An answer to a question without a picture is skipped as such, and has its span."""
    place = make()
    check_skipped(place, place.answer(place.ask(pictures=())), "no_image")
    assert len(place.spans) == 1


def test_nothing_came_from_the_worker(make):
    """An answer of which the worker said nothing is skipped, and says so."""
    place = make()
    check_skipped(place, place.answer(place.ask()), "capture_failed")


@pytest.mark.parametrize("reason", ["keys_missing", "scorer_error", "layout_mismatch", "prompt_embeds"])
def test_the_workers_reason(reason, make):
    """Why the worker has no map is why the answer is skipped."""
    place = make()
    served = place.ask()
    place.desk.receive(served, entry(0.5, 0.5, 0.5, relevance=None, reason=reason))
    check_skipped(place, place.answer(served), reason)


def test_a_worker_that_refused_its_proxy(make):
    """Of a worker that reads nothing the front end says why, from the first answer on."""
    place = make()
    first = place.ask()
    place.desk.receive(first, {"about": "engine 1, unmonitored", "refused": True})
    assert [place.answer(served).reason for served in (first, place.ask("s"))] == ["proxy_refused"] * 2
    assert place.answer(place.ask("t", pictures=())).reason == "no_image"


@pytest.mark.parametrize(("end", "reason"), [("abort", "aborted"), ("error", "engine_error")])
def test_ends_that_are_no_answer(end, reason, make):
    """A request that was broken off has no answer to judge, though its prompt was measured."""
    place = make()
    served = place.ask()
    place.desk.receive(served, entry(0.5))
    check_skipped(place, place.answer(served, tokens=(20,), reason=end, at_end_token=False), reason)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_states_that_are_not_finite(odd, make):
    """A model that overflowed has no map."""
    place = make()
    served = place.ask()
    place.desk.receive(served, entry(0.5, 0.5, 0.5, relevance=[0.5, 0.5, odd, 0.5]))
    check_skipped(place, place.answer(served), "states_not_finite")


def test_a_prompt_of_embeddings(make):
    """A prompt without tokens is no failure: its answer is skipped, with an empty question."""
    place = make()
    served = place.ask(prompt=None)
    place.desk.receive(served, entry(0.5, 0.5, 0.5, relevance=None, reason="prompt_embeds"))
    check_skipped(place, place.answer(served), "prompt_embeds")
    assert place.spans[0].attributes["gen_ai.usage.input_tokens"] == 0


def test_requests_without_an_answer(make):
    """A request that ends without an answer is counted by its reason and leaves nothing else."""
    place = make()
    check_skipped(place, place.desk.drop(place.ask(), "beam_search"), "beam_search")
    assert place.spans == ()


# --- failures ---------------------------------------------------------------------------------------------------------


def test_image_tokens_that_are_no_whole_pictures(make, lenient):
    """A layout that is not the model's costs the score, not the answer, and is counted."""
    place = make()
    served = place.ask(image_tokens=5)
    place.desk.receive(served, entry(0.5, 0.5, 0.5, relevance=[*RELEVANCE, 0.5]))
    check_skipped(place, place.answer(served), "scorer_error")
    assert place.counts()["failed", "score"] == 1


def test_an_answer_that_cannot_be_recorded(make, lenient):
    """An answer whose text cannot be made keeps its assessment; its loss is counted."""
    place = make()
    served = place.ask()
    place.desk.receive(served, entry(0.5, 0.5, 0.5))

    def text():
        raise KeyError("text")

    one = place.desk.finish(served, tokens=[20, 21, 2], text=text, reason="stop", at_end_token=True)
    assert one.confidence == pytest.approx(0.5)
    assert place.cases() == []
    counts = place.counts()
    assert (counts["dropped", "record_error"], counts["failed", "record"], counts["scored", ""]) == (1, 1, 1)


def test_failures_elsewhere_are_counted_here(make):
    """Failures in worker and engine core are in the front end's counts, and so is which engine is watched."""
    place = make()
    place.desk.receive(place.ask(), {"failed": {"score": 2, "projection": 1}, "about": "vLLM 1, runner V1"})
    place.desk.receive(None, {"failed": {"score": 1}})  # came with an answer that nobody watches
    assert place.counts() == {("failed", "score"): 3, ("failed", "projection"): 1, ("engine", "vLLM 1, runner V1"): 1}


def test_counts_add_up(make, lenient):
    """Of 200 answers of all kinds each is seen once and ends once; every scored one is stored, sampled out or lost."""
    place, rng = make(sample_rate=0.3), np.random.default_rng(0)
    kept = set()
    for number in range(200):
        served = place.ask(f"r{number}", pictures=("cat",) * int(rng.integers(0, 3)))
        kind = rng.choice(["scored", "silent", "reason", "nan", "short", "abort", "dropped", "unreadable"])
        relevance = rng.random(len(served.pictures) * 4)
        if kind in ("scored", "nan", "abort", "unreadable"):
            relevance[:1] = math.nan if kind == "nan" else relevance[:1]
            place.desk.receive(served, entry(*rng.uniform(0.1, 1, 3), relevance=relevance))
        if kind == "short":
            place.desk.receive(served, entry(*rng.uniform(0.1, 1, 3), relevance=relevance[1:]))
        if kind == "reason":
            place.desk.receive(served, entry(0.5, relevance=None, reason="keys_missing"))
        if kind == "dropped":
            one = place.desk.drop(served, "aborted")
        else:
            one = place.desk.finish(
                served,
                tokens=[20, 21, 2],
                text=(lambda: 1 / 0) if kind == "unreadable" else (lambda: "red"),
                reason="abort" if kind == "abort" else "stop",
                at_end_token=True,
            )
        if one.case_id is not None and kind != "unreadable":
            kept.add(one.case_id)
    assert {case.case_id for case in place.cases()} == kept
    totals = {}
    for (name, _), value in place.counts().items():
        totals[name] = totals.get(name, 0) + value
    assert totals["seen"] == 200 == totals["scored"] + totals["skipped"]
    assert totals["scored"] == totals["stored"] + totals["sampled_out"] + totals["dropped"]
    assert totals["stored"] == len(kept) > 3


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_picture_that_is_no_longer_kept(make, lenient):
    """A picture that had to go is counted; its answer is scored and its case kept, with the map and no picture."""
    place = make(room=100)
    place.shelf.put("cat", Upload(png()))
    served = place.ask()
    place.desk.receive(served, entry(0.5, 0.5, 0.5))
    one = place.answer(served)
    (case,) = place.cases()
    assert (case.case_id, case.pictures[0].content) == (one.case_id, None)
    assert unpack_map(case.pictures[0].relevance, 2, 2).tolist() == one.relevance.tolist()
    assert place.counts()["failed", "picture"] == 1


def test_pictures_are_there_for_every_request_that_has_them(make):
    """Two requests in flight with the same picture both have it in their cases, whichever ends first."""
    place = make()
    place.shelf.put("cat", Upload(png()))
    first = place.ask("a")
    place.shelf.put("cat", Upload(png()))
    second = place.ask("b")
    for served in (second, first):
        place.desk.receive(served, entry(0.5, 0.5, 0.5))
        place.answer(served)
    assert [case.pictures[0].content is not None for case in place.cases()] == [True, True]


def test_the_callers_pictures_are_let_go(make):
    """When its answer is complete and stored, nothing here keeps a caller's own picture in memory."""
    place = make()
    picture = Image.new("RGB", (64, 64), "red")
    watched = weakref.ref(picture)
    place.shelf.put("cat", picture)
    served = place.ask()
    place.desk.receive(served, entry(0.5, 0.5, 0.5))
    place.answer(served)
    assert len(place.cases()) == 1
    del picture, served
    gc.collect()
    assert watched() is None


# --- traces -----------------------------------------------------------------------------------------------------------


def parent_of(place, served):
    place.answer(served)
    span = place.spans[-1]
    return span.parent and (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}")


def test_the_callers_trace_is_joined(make):
    """A `traceparent` header makes the answer's span a child of the caller's."""
    place = make()
    served = place.ask(headers={"traceparent": TRACEPARENT})
    assert parent_of(place, served) == tuple(TRACEPARENT.split("-")[1:3])


def test_a_current_span_comes_first(make):
    """In an instrumented server, whose span has joined the caller's already, the answer's span is that one's child."""
    place = make()
    with place.tracer.start_as_current_span("POST /v1/chat/completions") as server:
        served = place.ask(headers={"traceparent": TRACEPARENT})
    ids = server.get_span_context()
    assert parent_of(place, served) == (f"{ids.trace_id:032x}", f"{ids.span_id:016x}")


@pytest.mark.parametrize("headers", [None, {}, {"traceparent": "00-zz-zz-01"}, {"tracestate": "a=b"}])
def test_no_usable_trace_header(headers, make):
    """Without a caller's trace, or with one that cannot be read, the answer's span begins a trace."""
    place = make()
    assert parent_of(place, place.ask(headers=headers)) is None


def test_the_context_is_the_requests(make):
    """What counts is the span at the request's arrival, not the one at the answer's end."""
    place = make()
    served = place.ask()
    with place.tracer.start_as_current_span("another request's"):
        place.answer(served)
    assert [span.parent for span in place.spans if span.name == "chat llava"] == [None]
    assert not trace.get_current_span(otel_context.get_current()).get_span_context().is_valid


def test_tokens_of_a_request_that_asked_for_no_text(make):
    """The text of an answer that came as tokens has no special tokens."""
    assert make().desk.decode([20, 21, 2]) == "dark red"
