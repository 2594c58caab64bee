"""The transformers integration on the real embedded LVLM: it sees every answer and changes none."""

from __future__ import annotations

import copy
import pickle
import threading
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sqlalchemy import select
from transformers import CompileConfig, StoppingCriteria, StoppingCriteriaList

from fastrm_monitor import Monitor, Request, guard, instrument
from fastrm_monitor.demo import PROXY_FOLDER
from fastrm_monitor.errors import ModelError, ProxyError
from fastrm_monitor.lab.ask import Asker, load_lvlm
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store

PROMPT = "USER: {images}{question} ASSISTANT:"


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """What fails inside the monitor fails the test, unless the test lifts this."""
    monkeypatch.setattr(guard, "STRICT", True)


@pytest.fixture(scope="module")
def samples():
    return list(SceneSet(["natural", "density"], 60, seed=77))


@pytest.fixture
def watch(embedded):
    """Instrument the embedded model; every handle is removed at the end."""
    handles = []

    def watch(**arguments):
        handles.append(instrument(*embedded, **{"proxy": PROXY_FOLDER, **arguments}))
        return handles[-1]

    yield watch
    for handle in handles:
        handle.remove()


def inputs_of(processor, rows):
    """The processor's output for rows of (pictures, question), left-padded."""
    pictures = [picture for own, _ in rows for picture in own]
    text = [PROMPT.format(images="<image>\n" * len(own), question=question) for own, question in rows]
    return processor(images=pictures or None, text=text, padding=True, return_tensors="pt")


def rows_of(samples):
    return [([sample.picture()], sample.question) for sample in samples]


def generate(embedded, rows, **options):
    model, processor = embedded
    return model.generate(**inputs_of(processor, rows), **{"max_new_tokens": 4, "do_sample": False, **options})


def by_name(handle):
    """Counts by name, over all reasons."""
    totals = {}
    for (name, _), value in handle.monitor.counters.snapshot().items():
        totals[name] = totals.get(name, 0) + value
    return totals


def check_invariant(handle):
    assert handle.flush(20)
    totals = {**dict.fromkeys(("seen", "scored", "skipped", "stored", "sampled_out", "dropped"), 0), **by_name(handle)}
    assert totals["seen"] == totals["scored"] + totals["skipped"]
    ended = totals["stored"] + totals["sampled_out"] + totals["dropped"]
    assert totals["scored"] == ended + handle.monitor.pending


def test_tokens_of_200_requests_are_the_same(embedded, samples, watch):
    """200 greedy answers and 40 sampled ones are token by token what they are without monitoring."""

    def all_tokens():
        found = []
        for start in range(0, 200, 8):
            found.append(generate(embedded, rows_of(samples[start : start + 8])))
        torch.manual_seed(5)
        found.append(generate(embedded, rows_of(samples[:40]), do_sample=True, temperature=3.0))
        return found

    alone = all_tokens()
    handle = watch()
    watched = all_tokens()
    assert len(samples) >= 200
    assert all(torch.equal(one, other) for one, other in zip(alone, watched, strict=True))
    assert len(handle.pop()) == 240
    assert by_name(handle)["scored"] == 240


def test_the_same_pass_is_read(embedded, samples, watch):
    """Monitoring calls the model not once more than the answer needs."""
    model, _ = embedded
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        generate(embedded, rows_of(samples[:4]))
        alone = len(calls)
        watch()
        generate(embedded, rows_of(samples[:4]))
    finally:
        hook.remove()
    assert alone == len(calls) - alone > 0


def test_fields_of_an_assessment(embedded, samples, watch):
    """An assessment has the caller's id, a map of the grid's shape, entropy, confidence, decision, version and time."""
    handle = watch()
    with handle.requests([Request(id="a"), Request(id="b")]):
        generate(embedded, rows_of(samples[:2]))
    first, second = handle.pop()
    assert (first.request_id, second.request_id) == ("a", "b")
    for one in (first, second):
        assert one.relevance.shape == (8, 8)
        assert one.relevance.dtype == np.float32
        assert 0 <= one.relevance.min() <= one.relevance.max() <= 1
        assert 0 <= one.entropy <= 1
        assert 0 <= one.confidence <= 1
        assert isinstance(one.calibrated, bool)
        assert isinstance(one.flagged, bool)
        assert one.proxy_version == handle.monitor.scorer.folder.version
        assert 0 < one.scoring_seconds < 5
        assert one.scored
        assert {"token_probability", "token_entropy", "map_entropy"} <= set(one.features)
    assert handle.pop() == []


def test_a_mixed_batch_equals_single_runs(embedded, samples, watch):
    """Eight rows with left padding, text-only rows among them, are assessed as each alone (1e-4)."""
    rows = rows_of(samples[:8])
    rows[2] = ([], "is there a red circle?")
    rows[5] = ([], "how many squares are there?")
    rows[6] = (rows[6][0], "what is it?")  # shorter than the others
    assert len({len(question.split()) for _, question in rows}) > 2
    handle = watch()
    generate(embedded, rows)
    together = handle.pop()
    for row in rows:
        generate(embedded, [row])
    alone = handle.pop()
    assert [one.reason for one in together if not one.scored] == ["no_image", "no_image"]
    assert len(together) == len(alone) == 8
    for one, other in zip(together, alone, strict=True):
        assert one.scored == other.scored
        if one.scored:
            assert np.abs(one.relevance - other.relevance).max() < 1e-4
            assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
            assert one.entropy == pytest.approx(other.entropy, abs=1e-4)
            assert dict(one.features) == pytest.approx(dict(other.features), abs=1e-4)


def test_map_depends_on_question_and_picture(embedded, samples, watch):
    """One picture and two questions give two maps, and so do two pictures and one question."""
    handle = watch()
    picture, other = samples[0].picture(), samples[-1].picture()
    asked = [([picture], "how many rings are there?"), ([picture], "is there a blue square?")]
    generate(embedded, [*asked, ([other], "how many rings are there?")])
    one, two, three = handle.pop()
    assert np.abs(one.relevance - two.relevance).max() > 1e-4
    assert np.abs(one.relevance - three.relevance).max() > 1e-4


def test_several_pictures_in_a_request(embedded, samples, watch):
    """A request with two pictures has two maps, beside requests with one and with none, each with its own states."""
    handle = watch()
    one, two, three = (samples[n].picture() for n in (0, 4, 8))
    rows = [([one, two], "how many rings are there?"), ([], "is it?"), ([three], "is there a blue square?")]
    generate(embedded, rows)
    both, none, single = handle.pop()
    assert [len(each.maps) for each in (both, none, single)] == [2, 0, 1]
    generate(embedded, rows[2:])
    (again,) = handle.pop()
    assert np.abs(single.relevance - again.relevance).max() < 1e-4


def test_return_sequences(embedded, samples, watch):
    """Sampling three answers a question gives three assessments a question, in order: one map, own probabilities."""
    handle = watch()
    torch.manual_seed(1)
    with handle.requests([Request(id="a"), Request(id="b")]):
        tokens = generate(embedded, rows_of(samples[:2]), do_sample=True, temperature=5.0, num_return_sequences=3)
    found = handle.pop()
    assert len(tokens) == 6
    assert [one.request_id for one in found] == ["a", "a", "a", "b", "b", "b"]
    assert np.abs(found[0].relevance - found[2].relevance).max() < 1e-6
    assert np.abs(found[0].relevance - found[3].relevance).max() > 1e-4
    # temperature is the sampler's; the model's own probability of what was said is what counts
    assert len({round(one.features["token_probability"], 6) for one in found}) > 2


def test_token_probability_is_the_models_own(embedded, samples, watch):
    """The answer's probability and entropy are those of the model's raw logits, with and without sampling."""
    handle = watch()
    model, processor = embedded
    said = Asker(model, processor).answer(inputs_of(processor, rows_of(samples[:6])))
    for one, expected in zip(handle.pop(), said, strict=True):
        for name, value in expected.numbers.items():
            assert one.features[name] == pytest.approx(value, abs=1e-5)


def test_an_answer_ends_where_its_own_call_says(embedded, samples, watch):
    """End tokens and stopping criteria of one call end its answers: padding is no part of an answer's probability."""
    model, _ = embedded
    rows = rows_of(samples[:6])
    handle = watch()
    plain = generate(embedded, rows)
    expected = handle.pop()
    first = plain[:, inputs_of(embedded[1], rows)["input_ids"].shape[1]]  # the first token of each answer
    word = int(first[0])
    generate(embedded, rows, eos_token_id=[word, model.generation_config.eos_token_id])
    own_end = handle.pop()

    class AfterOne(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            return first == ids[:, -1]

    generate(embedded, rows, stopping_criteria=StoppingCriteriaList([AfterOne()]))
    for one, other in zip(handle.pop(), expected, strict=True):
        assert one.features["token_probability"] == pytest.approx(other.features["token_probability"], abs=1e-5)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
    for row, (one, other) in enumerate(zip(own_end, expected, strict=True)):
        if int(first[row]) != word:
            assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert one.features["token_probability"] > 0.05


def test_copies_of_a_watched_model(embedded, samples, watch):
    """A watched model can be copied and pickled; the copy generates with its own weights, unwatched."""
    model, processor = embedded
    alone = generate(embedded, rows_of(samples[:3]))
    handle = watch()
    fresh, _ = load_lvlm("embedded", "cpu")  # transformers itself hinders pickling once a model has run
    with instrument(fresh, processor, proxy=PROXY_FOLDER):
        pickled = pickle.dumps(fresh)
    for copied in (copy.deepcopy(model), pickle.loads(pickled)):
        assert torch.equal(alone, generate((copied, processor), rows_of(samples[:3])))
        assert handle.pop() == []
        copied.lm_head.weight.data.zero_()
        assert not torch.equal(alone, generate((copied, processor), rows_of(samples[:3])))
        again = instrument(copied, processor, proxy=PROXY_FOLDER)
        generate((copied, processor), rows_of(samples[:2]))
        assert len(again.pop()) == 2
        again.remove()
    generate(embedded, rows_of(samples[:3]))
    assert len(handle.pop()) == 3


def test_a_wrapper_put_on_afterwards_is_kept(embedded, samples):
    """What the user wraps around generate after instrumenting stays when the handle goes, and passes through."""
    model, processor = embedded
    handle = instrument(model, processor, proxy=PROXY_FOLDER)
    inner, calls = model.generate, []

    def outer(*args, **kwargs):
        calls.append(1)
        return inner(*args, **kwargs)

    model.generate = outer
    try:
        handle.remove()
        generate(embedded, rows_of(samples[:1]))
        assert (len(calls), handle.pop()) == (1, [])
    finally:
        del model.generate


def test_requests_that_do_not_fit(embedded, samples, watch, caplog):
    """Too few or too many requests name nobody, are counted and logged; a single one needs no list."""
    handle = watch()
    for given in ([Request(id="a"), Request(id="b")], [Request(id="c")] * 5):
        with handle.requests(given):
            generate(embedded, rows_of(samples[:4]))
        assert not {one.request_id for one in handle.pop()} & {"a", "b", "c"}
    assert handle.monitor.counters.snapshot()["failed", "requests"] == 2
    assert "requests(...) must name every prompt" in caplog.text
    with handle.requests(Request(id="single")):
        generate(embedded, rows_of(samples[:1]))
    assert [one.request_id for one in handle.pop()] == ["single"]


def test_prompts_as_embeddings_are_served_unscored(embedded, samples, watch):
    """A prompt of embeddings has no image tokens to read: it is answered and says so."""
    model, processor = embedded
    handle = watch()
    embeds = model.get_input_embeddings()(inputs_of(processor, [([], "is there a ring?")])["input_ids"])
    model.generate(inputs_embeds=embeds, max_new_tokens=3, do_sample=False)
    assert [(one.scored, one.reason) for one in handle.pop()] == [(False, "no_input_ids")]
    check_invariant(handle)


def test_generate_that_raises(embedded, samples, watch):
    """An error in generate reaches the caller unmodified, its rows count as skipped, the next ones are scored."""
    handle = watch()

    class StopError(RuntimeError):
        pass

    def stop(ids, scores):
        raise StopError("half-way")

    with pytest.raises(StopError, match=r"^half-way$"):
        generate(embedded, rows_of(samples[:3]), logits_processor=[stop])
    assert handle.monitor.counters.snapshot()["skipped", "generation_failed"] == 3
    assert handle.pop() == []
    generate(embedded, rows_of(samples[:2]))
    assert [one.scored for one in handle.pop()] == [True, True]
    check_invariant(handle)


def test_two_threads(embedded, samples, watch):
    """Two threads that generate on one model get each their own assessments, those of a single run."""
    handle = watch()
    parts = [samples[:8], samples[8:16]]
    for part in parts:
        generate(embedded, rows_of(part))
    expected = handle.pop()
    found = {}

    def serve(number):
        for _ in range(3):
            generate(embedded, rows_of(parts[number]))
        found[number] = handle.pop()

    threads = [threading.Thread(target=serve, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert handle.pop(all_threads=True) == []
    for number in (0, 1):
        assert len(found[number]) == 24
        for k, one in enumerate(found[number]):
            assert np.abs(one.relevance - expected[8 * number + k % 8].relevance).max() < 1e-5
    check_invariant(handle)


def test_remove_leaves_the_model_as_it_was(embedded, samples):
    """After remove, once or twice, no hook, attribute or wrapper is left, and nothing is counted any more."""
    model, processor = embedded
    hooks = [sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules())]
    before, function = dict(model.__dict__), model.generate.__func__
    handle = instrument(model, processor, proxy=PROXY_FOLDER)
    handle.remove()
    handle.remove()
    hooks.append(sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()))
    assert hooks[0] == hooks[1]
    assert before.keys() == model.__dict__.keys()
    assert function is model.generate.__func__
    generate(embedded, rows_of(samples[:1]))
    assert by_name(handle) == {}


def test_an_own_generate_is_kept(embedded, samples, watch):
    """A generate that the user had put on the model himself is watched, and put back by remove."""
    model, _ = embedded
    original, calls = model.generate, []

    def own(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    model.generate = own
    try:
        handle = watch()
        generate(embedded, rows_of(samples[:1]))
        assert len(handle.pop()) == len(calls) == 1
        handle.remove()
        assert model.generate is own
    finally:
        del model.generate


def test_instrumenting_twice_is_refused(embedded, watch):
    """A second handle on one model is refused in a sentence; the first goes on."""
    watch()
    with pytest.raises(ModelError, match=r"instrumented already: call remove\(\)"):
        watch()


def test_wrong_set_up_raises_at_once(embedded, tmp_path, watch):
    """No proxy, a missing one, a bad processor or a model that is none: one sentence, the model untouched."""
    model, processor = embedded
    before = dict(model.__dict__)
    with pytest.raises(ProxyError, match="No proxy is given: pass proxy=FOLDER or set FASTRM_PROXY"):
        instrument(model, processor)
    with pytest.raises(ProxyError, match="There is no proxy folder at"):
        watch(proxy=tmp_path / "nowhere")
    with pytest.raises(ModelError, match="has no tokenizer"):
        instrument(model, SimpleNamespace(), proxy=PROXY_FOLDER)
    with pytest.raises(ModelError, match="only vision-language models"):
        instrument(torch.nn.Linear(2, 2), processor, proxy=PROXY_FOLDER)
    assert before.keys() == model.__dict__.keys()


def test_beam_search_is_served_unscored(embedded, samples, watch):
    """Beams rearrange rows: the answer is the same, and the assessment says that it was not scored, and why."""
    alone = generate(embedded, rows_of(samples[:2]), num_beams=3)
    handle = watch()
    assert torch.equal(alone, generate(embedded, rows_of(samples[:2]), num_beams=3))
    assert [(one.scored, one.reason) for one in handle.pop()] == [(False, "rows_do_not_match")] * 2
    check_invariant(handle)


def test_prompt_in_pieces_is_served_unscored(embedded, samples, watch):
    """A prompt that the model gets in chunks is answered and counted as a partial prefill, never half scored."""
    alone = generate(embedded, rows_of(samples[:2]), prefill_chunk_size=72)
    handle = watch()
    assert torch.equal(alone, generate(embedded, rows_of(samples[:2]), prefill_chunk_size=72))
    assert [(one.scored, one.reason) for one in handle.pop()] == [(False, "partial_prefill")] * 2
    check_invariant(handle)


def test_states_that_are_not_finite(embedded, samples, watch):
    """NaN in the states gives an unscored answer with its reason, not a map of nonsense."""
    handle = watch()
    measure = handle.monitor.scorer.measure
    handle.monitor.scorer.measure = lambda states, *rest: measure(states * torch.nan, *rest)
    generate(embedded, rows_of(samples[:2]))
    assert [one.reason for one in handle.pop()] == ["states_not_finite"] * 2
    check_invariant(handle)


BROKEN = {
    "measuring": (lambda monitor: (monitor.scorer, "measure"), ("failed", "capture")),
    "concluding": (lambda monitor: (monitor.scorer, "conclude"), ("failed", "score")),
    "deciding": (lambda monitor: (monitor.policy, "decide"), ("failed", "score")),
    "handing over": (lambda monitor: (monitor._writer, "put"), ("failed", "record")),
    "telemetry": (lambda monitor: (monitor._telemetry, "emit"), ("failed", "telemetry")),
    "storing": (lambda monitor: (monitor._store, "add"), ("failed", "store")),
    "counting in the store": (lambda monitor: (monitor._store, "add_traffic"), None),
}


@pytest.mark.parametrize("place", BROKEN)
def test_every_stage_fails_open(embedded, samples, watch, monkeypatch, store_url, place):
    """Whatever breaks, the answers are the same, the failure is counted by stage, and the counts still add up."""
    monkeypatch.setattr(guard, "STRICT", False)
    alone = generate(embedded, rows_of(samples[:8]))
    handle = watch(store=store_url, sample_rate=1.0)
    find, counted = BROKEN[place]
    owner, name = find(handle.monitor)

    def broken(*_args, **_kwargs):
        raise RuntimeError("injected")

    monkeypatch.setattr(owner, name, broken)
    assert torch.equal(alone, generate(embedded, rows_of(samples[:8])))
    assert len(handle.pop()) == 8
    assert handle.flush(10)
    if counted is not None:
        assert handle.monitor.counters.snapshot()[counted] > 0
    check_invariant(handle)


def test_what_is_stored(embedded, samples, watch, store_url):
    """With a sample rate of 1 every scored answer is a case with the caller's id, question, user and picture."""
    handle = watch(store=store_url, sample_rate=1.0)
    rows = rows_of(samples[:5])
    requests = [
        Request(id=f"r{n}", question=question, pictures=pictures, user_key="u1")
        for n, (pictures, question) in enumerate(rows)
    ]
    with handle.requests(requests):
        tokens = generate(embedded, rows)
    assessments = handle.pop()
    assert handle.flush(10)
    texts = [text.strip() for text in embedded[1].batch_decode(tokens[:, -4:], skip_special_tokens=True)]
    with Store(store_url) as store, store.session() as session:
        cases = {case.request_id: case for case in session.scalars(select(Case))}
        for n, one in enumerate(assessments):
            case = cases[f"r{n}"]
            assert (case.case_id, case.question, case.user_key) == (one.case_id, rows[n][1], "u1")
            assert texts[n].endswith(case.answer)
            assert case.confidence == pytest.approx(one.confidence)
            assert (case.flagged, case.reason, case.sampled) == (one.flagged, one.reason, True)
            (picture,) = case.pictures
            assert (picture.width, picture.height) == rows[n][0][0].size
    assert handle.monitor.counters.snapshot()["stored", ""] == 5
    check_invariant(handle)


def test_picture_and_question_without_help(embedded, samples, watch, store_url):
    """Without `requests`, the question is read from the prompt, and the picture is what the model saw of it."""
    handle = watch(store=store_url, sample_rate=1.0)
    wide = Image.new("RGB", (120, 64), (200, 40, 40))
    generate(embedded, [([wide], "what color is the square?")])
    assert handle.flush(10)
    with Store(store_url) as store, store.session() as session:
        (case,) = session.scalars(select(Case))
        assert case.question == "what color is the square?"
        (picture,) = case.pictures
        assert (picture.width, picture.height, picture.region) == (64, 64, [0.0, 0.0, 1.0, 1.0])
    with handle.requests([Request(pictures=[wide])]):
        generate(embedded, [([wide], "what color is the square?")])
    (one,) = handle.pop()[1:]
    assert one.maps[0].region == pytest.approx(((1 - 64 / 120) / 2, 0.0, (1 + 64 / 120) / 2, 1.0))


def test_pictures_of_several_answers_and_requests(embedded, samples, watch, store_url):
    """With two answers a prompt and one to two pictures a request, each case keeps the pictures of its own prompt."""
    handle = watch(store=store_url, sample_rate=1.0)
    plain = [Image.new("RGB", (64, 64), color) for color in ("red", "lime", "blue")]
    rows = [(plain[:2], "is there a red circle?"), ([], "what is it?"), (plain[2:], "what color is the square?")]
    torch.manual_seed(0)
    generate(embedded, rows, do_sample=True, num_return_sequences=2)
    found = handle.pop()
    assert handle.flush(10)
    with Store(store_url) as store, store.session() as session:
        cases = {case.case_id: case for case in session.scalars(select(Case))}
        for one, colors in zip(found, ["rg", "rg", "", "", "b", "b"], strict=True):
            assert len(one.maps) == len(colors)
            if colors:
                pixels = [Image.open(BytesIO(p.content)).getpixel((30, 30)) for p in cases[one.case_id].pictures]
                assert "".join("rgb"[int(np.argmax(pixel))] for pixel in pixels) == colors


def test_finishing_that_breaks_is_counted(embedded, samples, watch, monkeypatch):
    """When not even the rows of a call can be read, the answer is served and each row counts as skipped."""
    monkeypatch.setattr(guard, "STRICT", False)
    handle = watch()
    handle._answer_numbers = None
    generate(embedded, rows_of(samples[:3]))
    assert [one.reason for one in handle.pop()] == ["scorer_error"] * 3
    check_invariant(handle)


def test_store_that_goes_away(embedded, samples, watch, tmp_path, monkeypatch):
    """When the database goes away in mid-traffic answers go on, and the losses are counted by reason."""
    monkeypatch.setattr(guard, "STRICT", False)
    folder = tmp_path / "gone"
    folder.mkdir()
    handle = watch(store=f"sqlite:///{folder / 'store.db'}", sample_rate=1.0)
    alone = generate(embedded, rows_of(samples[:4]))
    assert handle.flush(10)
    folder.rename(tmp_path / "elsewhere")
    assert torch.equal(alone, generate(embedded, rows_of(samples[:4])))
    assert handle.flush(20)
    counts = handle.monitor.counters.snapshot()
    assert (counts["stored", ""], counts["dropped", "store_error"]) == (4, 4)
    check_invariant(handle)


def test_a_shared_monitor(embedded, samples, watch):
    """A monitor made by the user is used as it is; its threshold decides."""
    monitor = Monitor.open(proxy=PROXY_FOLDER, threshold=1.0, provider="transformers")
    handle = watch(monitor=monitor, proxy=None)
    generate(embedded, rows_of(samples[:4]))
    found = handle.pop()
    assert handle.monitor is monitor
    if found[0].calibrated:
        assert all(one.flagged and one.reason == "low_confidence" and one.threshold == 1.0 for one in found)


def test_compiled_decoding(embedded, samples, watch, monkeypatch):
    """With a static cache transformers compiles decoding: one graph as without monitoring, the same tokens, scored."""
    model, _ = embedded
    monkeypatch.setattr(type(model), "_valid_auto_compile_criteria", lambda *_: True)
    options = {"cache_implementation": "static", "compile_config": CompileConfig(backend="eager", mode=None)}

    def graphs_and_tokens():
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        tokens = generate(embedded, rows_of(samples[:4]), min_new_tokens=4, **options)
        return torch._dynamo.utils.counters["stats"]["unique_graphs"], tokens

    alone, tokens = graphs_and_tokens()
    handle = watch()
    watched, same = graphs_and_tokens()
    assert alone == watched >= 1
    assert torch.equal(tokens, same)
    assert [one.scored for one in handle.pop()] == [True] * 4
    generate(embedded, rows_of(samples[:1]), **options)
    assert "token_probability" in handle.pop()[0].features
