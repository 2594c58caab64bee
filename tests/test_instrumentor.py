"""`opentelemetry-instrument` and `FastRMInstrumentor`: models watched without a line of code, or left as they are."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from weakref import ref

import pytest
import torch
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image
from sqlalchemy import select
from transformers import AutoProcessor, GenerationMixin, LlamaConfig, LlamaForCausalLM, ProcessorMixin

from fastrm_monitor import FastRMError, instrument
from fastrm_monitor.demo import MODEL_FOLDER, PROXY_FOLDER
from fastrm_monitor.lab.ask import load_lvlm
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from fastrm_monitor.telemetry.instrumentor import FastRMInstrumentor
from tests.otlp import otlp_receiver
from tests.tiny import tiny_model

PROMPT = "USER: <image>\nis there a red circle? ASSISTANT:"

SERVE = """
from opentelemetry import trace
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(FOLDER).eval()
processor = AutoProcessor.from_pretrained(FOLDER)
inputs = processor(images=[Image.new("RGB", (64, 64), "grey")], text=PROMPT, return_tensors="pt")
with trace.get_tracer("serve").start_as_current_span("request"):
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(tokens.tolist())
""".replace("FOLDER", repr(str(MODEL_FOLDER))).replace("PROMPT", repr(PROMPT))
"""An application that knows nothing of us."""


def plain_environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FASTRM_"))}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def run(words, folder, **environment):
    done = subprocess.run(
        words,
        cwd=folder,
        env=plain_environment(**environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


AUTO = str(Path(sys.executable).parent / "opentelemetry-instrument")


# --- the command ----------------------------------------------------------------------------------------------------


def test_entry_point():
    """`opentelemetry-instrument` finds the instrumentor."""
    (found,) = [one for one in entry_points(group="opentelemetry_instrumentor") if one.name == "fastrm"]
    assert found.load() is FastRMInstrumentor


def test_opentelemetry_instrument_serves_and_watches(tmp_path):
    """The script gives the same tokens; a receiver gets its span, ours below, event and metrics; the case is stored."""
    (tmp_path / "serve.py").write_text(SERVE)
    store = f"sqlite:///{tmp_path / 'fastrm.db'}"
    plain = run([sys.executable, "serve.py"], tmp_path)
    with otlp_receiver() as receiver:
        watched = run(
            [AUTO, sys.executable, "serve.py"], tmp_path, FASTRM_PROXY=str(PROXY_FOLDER), FASTRM_STORE=store,
            FASTRM_SAMPLE_RATE="1", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", OTEL_LOGS_EXPORTER="otlp", OTEL_METRIC_EXPORT_INTERVAL="500",
        )  # fmt: skip
        spans = {span.name: span for span in receiver.spans()}
        events, names = receiver.events(), receiver.metric_names()
    assert watched.stdout == plain.stdout
    request, ours = spans["request"], spans["chat model"]
    assert (ours.trace_id, ours.parent_span_id) == (request.trace_id, request.span_id)
    values = {one.key: one.value for one in ours.attributes}
    with Store(store) as opened, opened.session() as session:
        (case,) = session.scalars(select(Case))
    assert values["fastrm.case.url"].string_value.endswith(f"/case?case={case.case_id}")
    assert case.trace_id == request.trace_id.hex()
    assert case.question == "is there a red circle?"
    assert [(event.event_name, event.span_id) for event in events] == [("gen_ai.evaluation.result", ours.span_id)]
    assert {"fastrm.confidence", "fastrm.results"} <= names


def test_command_without_a_proxy_is_inert(tmp_path):
    """Without `FASTRM_PROXY` the command imports nothing that is heavy, and does not wait for transformers."""
    script = """
import sys
print(sorted({"torch", "transformers", "pydantic", "sqlalchemy"} & set(sys.modules)))
from fastrm_monitor.telemetry.instrumentor import FastRMInstrumentor
print(FastRMInstrumentor().is_instrumented_by_opentelemetry, FastRMInstrumentor()._hooked)
"""
    done = run([AUTO, sys.executable, "-c", script], tmp_path, OTEL_TRACES_EXPORTER="none",
               OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none")  # fmt: skip
    assert done.stdout.splitlines() == ["[]", "True False"]


def test_command_does_not_import_what_the_application_does_not(tmp_path):
    """With a proxy named, a process that uses no transformers gets the instrumentor and nothing that is heavy."""
    names = ("torch", "transformers", "numpy", "pydantic", "sqlalchemy", FastRMInstrumentor.__module__)
    script = f"import sys; print(sorted(set({names}) & set(sys.modules)))"
    done = run([AUTO, sys.executable, "-c", script], tmp_path, FASTRM_PROXY=str(PROXY_FOLDER),
               OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none")  # fmt: skip
    assert done.stdout == f"['{FastRMInstrumentor.__module__}']\n"


# --- the class ------------------------------------------------------------------------------------------------------


@pytest.fixture
def instrumentor(monkeypatch):
    """The instrumentor, not yet at work; taken back at the end."""
    for name in [name for name in os.environ if name.startswith(("OTEL_", "FASTRM_"))]:
        monkeypatch.delenv(name)
    made = FastRMInstrumentor()
    yield made
    if made.is_instrumented_by_opentelemetry:
        made.uninstrument()


def ask(model, processor):
    inputs = processor(images=[Image.new("RGB", (64, 64), "grey")], text=PROMPT, return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist()


def test_providers_and_restoring(instrumentor):
    """Spans and metrics go to the given providers; `uninstrument` leaves classes and model as they were."""
    before = GenerationMixin.__dict__["generate"], ProcessorMixin.__dict__["__init__"]
    memory, tracers, reader = InMemorySpanExporter(), TracerProvider(), InMemoryMetricReader()
    tracers.add_span_processor(SimpleSpanProcessor(memory))
    instrumentor.instrument(proxy=PROXY_FOLDER, tracer_provider=tracers, meter_provider=MeterProvider([reader]))
    model, processor = load_lvlm("embedded", "cpu")
    answers = [ask(model, processor), ask(model, processor)]
    assert "generate" in model.__dict__
    instrumentor.uninstrument()
    assert [span.name for span in memory.get_finished_spans()] == ["chat model"] * 2
    assert all("fastrm.confidence" in span.attributes for span in memory.get_finished_spans())
    names = {m.name for r in reader.get_metrics_data().resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert "fastrm.results" in names
    assert (GenerationMixin.__dict__["generate"], ProcessorMixin.__dict__["__init__"]) == before
    assert "generate" not in model.__dict__
    assert answers == [ask(model, processor)] * 2
    assert len(memory.get_finished_spans()) == 2


def test_it_can_be_taken_up_again(instrumentor):
    """After `uninstrument` the same model is watched again by another `instrument`, with a processor made by then."""
    instrumentor.instrument(proxy=PROXY_FOLDER)
    instrumentor.uninstrument()
    model, _ = load_lvlm("embedded", "cpu")
    instrumentor.instrument(proxy=PROXY_FOLDER)
    ask(model, AutoProcessor.from_pretrained(MODEL_FOLDER))
    assert "generate" in model.__dict__


def test_without_arguments_it_does_what_the_command_does(instrumentor, monkeypatch):
    """`instrument()` is inert without `FASTRM_PROXY`, and with it everything comes from the environment."""
    plain = GenerationMixin.__dict__["generate"]
    instrumentor.instrument()
    assert GenerationMixin.__dict__["generate"] is plain
    instrumentor.uninstrument()
    monkeypatch.setenv("FASTRM_PROXY", str(PROXY_FOLDER))
    instrumentor.instrument()
    model, processor = load_lvlm("embedded", "cpu")
    ask(model, processor)
    assert model._fastrm_handle.monitor.counters.snapshot()["scored", ""] == 1


def test_misspelt_argument_is_refused(instrumentor):
    """An argument that is no setting raises at once; nothing is wrapped then."""
    plain = GenerationMixin.__dict__["generate"]
    with pytest.raises(FastRMError, match="There is no setting 'flag_rat'"):
        instrumentor.instrument(proxy=PROXY_FOLDER, flag_rat=0.1)
    assert GenerationMixin.__dict__["generate"] is plain


def test_two_models_have_their_own_processors(instrumentor, tmp_path):
    """Each model is watched with the processor of its own checkpoint, whichever was made last."""
    copied = shutil.copytree(MODEL_FOLDER, tmp_path / "copied")
    instrumentor.instrument(proxy=PROXY_FOLDER)
    first = load_lvlm("embedded", "cpu")
    second = load_lvlm(str(copied), "cpu")
    for model, processor in (first, second):
        ask(model, processor)
        assert model._fastrm_handle._tokenizer is processor.tokenizer


@pytest.mark.parametrize("processors", [0, 2])
def test_without_its_processor_a_model_is_left_alone(instrumentor, embedded, tmp_path, caplog, processors):
    """No processor, or two that both might be the model's: one line that says what to do, and the same tokens."""
    plain = ask(*embedded)
    instrumentor.instrument(proxy=PROXY_FOLDER)
    kept = [
        AutoProcessor.from_pretrained(shutil.copytree(MODEL_FOLDER, tmp_path / f"copy{number}"))
        for number in range(processors)
    ]
    model, processor = embedded  # made before
    assert [ask(model, processor), ask(model, processor)] == [plain, plain]
    assert "generate" not in model.__dict__
    reason = "several processors fit it" if kept else "no processor was made for it"
    assert caplog.messages == [
        f"fastrm-monitor: LlavaForConditionalGeneration goes on answering, unmonitored: {reason}: call "
        "fastrm_monitor.instrument(model, processor) in its place."
    ]


def test_model_that_does_not_fit_is_left_alone(instrumentor, caplog):
    """A vision-language model that the proxy was not distilled from answers as before; one line says why."""
    model = tiny_model()
    instrumentor.instrument(proxy=PROXY_FOLDER)
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    ask(model, processor)
    ask(model, processor)
    assert "generate" not in model.__dict__
    (line,) = caplog.messages
    assert line.startswith("fastrm-monitor: LlavaForConditionalGeneration goes on answering, unmonitored: ")


def test_text_model_is_left_alone_in_silence(instrumentor, caplog):
    """A language model without pictures is nobody's business: no line, no hook."""
    instrumentor.instrument(proxy=PROXY_FOLDER)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=1))  # fmt: skip
    model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, pad_token_id=0)
    assert "generate" not in model.__dict__
    assert caplog.messages == []


def test_application_comes_first(instrumentor):
    """A model that the application instruments by itself keeps its handle, and every answer is counted once."""
    instrumentor.instrument(proxy=PROXY_FOLDER)
    model, processor = load_lvlm("embedded", "cpu")
    with instrument(model, processor, proxy=PROXY_FOLDER) as handle:
        ask(model, processor)
        assert model._fastrm_handle is handle
        assert len(handle.pop()) == 1


@pytest.mark.parametrize("setting", [{"store": "sqlite:////no/such/folder/fastrm.db"}, {"proxy": "no-such-proxy"}])
def test_what_cannot_be_opened_is_one_line(instrumentor, caplog, setting):
    """A store or proxy that cannot be used costs monitoring, not the answer."""
    instrumentor.instrument(**{"proxy": PROXY_FOLDER, **setting})
    model, processor = load_lvlm("embedded", "cpu")
    first = ask(model, processor)
    (line,) = caplog.messages
    assert "goes on answering, unmonitored" in line
    assert first == ask(model, processor)


def test_models_are_not_kept_alive(instrumentor):
    """A watched model that the application lets go of is freed."""
    instrumentor.instrument(proxy=PROXY_FOLDER)
    model, processor = load_lvlm("embedded", "cpu")
    ask(model, processor)
    model._fastrm_handle.flush(10)
    gone = ref(model)
    del model
    gc.collect()
    assert gone() is None
