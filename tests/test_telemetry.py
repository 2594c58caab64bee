"""What OpenTelemetry receives: exactly the documented span, event and metrics, in memory and over real OTLP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from fastrm_monitor.drift.watch import Drift
from fastrm_monitor.telemetry import setup
from fastrm_monitor.telemetry.emit import Telemetry
from fastrm_monitor.types import Answer, Assessment, RelevanceMap
from tests.otlp import otlp_receiver

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


def answer(**changes):
    values = {
        "request_id": "r-1",
        "model": "llava",
        "question": "what colour?",
        "text": "red",
        "pictures": (),
        "started_ns": 1_000_000_000,
        "ended_ns": 1_500_000_000,
        "input_tokens": 70,
        "output_tokens": 2,
        "finish_reason": "stop",
    }
    return Answer(**{**values, **changes})


def assessment(**changes):
    values = {
        "request_id": "r-1",
        "maps": (RelevanceMap(np.zeros((2, 2), np.float32)),),
        "entropy": 0.5,
        "features": {},
        "confidence": 0.25,
        "calibrated": True,
        "flagged": True,
        "reason": "low_confidence",
        "threshold": 0.4,
        "proxy_version": "abc",
        "scoring_seconds": 0.002,
        "case_id": "11111111-2222-3333-4444-555555555555",
    }
    return Assessment(**{**values, **changes})


UNSCORED = {
    "maps": (), "entropy": None, "confidence": None, "calibrated": False, "flagged": False, "reason": "no_image",
    "threshold": None, "scoring_seconds": 0.0, "scored": False, "case_id": None,
}  # fmt: skip


class Received:
    """A telemetry whose output lies in memory."""

    def __init__(self):
        self.tracers, self.loggers = TracerProvider(), LoggerProvider()
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self._spans, self._logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self._logs))
        self.telemetry = Telemetry(
            "http://dash:8501/",
            "transformers",
            tracer_provider=self.tracers,
            logger_provider=self.loggers,
            meter_provider=self.meters,
        )

    @property
    def spans(self):
        return self._spans.get_finished_spans()

    @property
    def events(self):
        return [one.log_record for one in self._logs.get_finished_logs()]

    def metrics(self):
        """(name, unit) -> list of (attributes, count or value)."""
        found = {}
        for resource in self.reader.get_metrics_data().resource_metrics:
            for scope in resource.scope_metrics:
                assert scope.scope.name == "fastrm_monitor"
                for metric in scope.metrics:
                    found[metric.name, metric.unit] = [
                        (dict(point.attributes), getattr(point, "sum", getattr(point, "value", None)))
                        for point in metric.data.data_points
                    ]
        return found


@pytest.fixture
def received():
    return Received()


def test_span(received):
    """A span with the answer's own times and exactly the documented attributes, and their types."""
    ids = received.telemetry.emit(answer(), assessment())
    (span,) = received.spans
    assert (span.name, span.kind) == ("chat llava", SpanKind.INTERNAL)
    assert (span.start_time, span.end_time) == (1_000_000_000, 1_500_000_000)
    assert ids.trace_id == f"{span.context.trace_id:032x}"
    assert ids.span_id == f"{span.context.span_id:016x}"
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "transformers",
        "gen_ai.request.model": "llava",
        "gen_ai.response.id": "r-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 70,
        "gen_ai.usage.output_tokens": 2,
        "fastrm.confidence": 0.25,
        "fastrm.calibrated": True,
        "fastrm.entropy": 0.5,
        "fastrm.flagged": True,
        "fastrm.reason": "low_confidence",
        "fastrm.proxy.version": "abc",
        "fastrm.case.id": "11111111-2222-3333-4444-555555555555",
        "fastrm.case.url": "http://dash:8501/case?case=11111111-2222-3333-4444-555555555555",
    }


def test_event(received):
    """One `gen_ai.evaluation.result`, inside the span, at the answer's end, with exactly the documented attributes."""
    received.telemetry.emit(answer(), assessment())
    (event,), (span,) = received.events, received.spans
    assert event.event_name == "gen_ai.evaluation.result"
    assert (event.timestamp, event.trace_id, event.span_id) == (
        1_500_000_000,
        span.context.trace_id,
        span.context.span_id,
    )
    assert dict(event.attributes) == {
        "gen_ai.evaluation.name": "fastrm.confidence",
        "gen_ai.evaluation.score.value": 0.25,
        "gen_ai.evaluation.score.label": "flagged",
        "gen_ai.evaluation.explanation": "the calibrated confidence is below the threshold",
        "gen_ai.evaluation.target": "llava",
        "gen_ai.response.id": "r-1",
        "fastrm.calibrated": True,
        "fastrm.score.range": "0..1",
        "fastrm.evaluator.version": "abc",
        "fastrm.case.id": "11111111-2222-3333-4444-555555555555",
    }


def above_zero(points):
    return [(attributes, value) for attributes, value in points if value]


def test_metrics(received):
    """Histograms of scored answers, counters by verdict, reason and stage, the queue; attributes with few values."""
    received.telemetry.queue_changed(3)
    received.telemetry.emit(answer(), assessment())
    received.telemetry.emit(answer(), assessment(confidence=0.75, flagged=False, reason=None))
    received.telemetry.emit(answer(), assessment(**UNSCORED))
    received.telemetry.queue_changed(-2)
    received.telemetry.dropped("queue_full", 4)
    received.telemetry.skipped("no_image")
    received.telemetry.skipped("some_new_reason")
    received.telemetry.failures({"score": 1.0, "store": 0.0})
    model = {"model": "llava"}
    assert {name: above_zero(points) for name, points in received.metrics().items()} == {
        ("fastrm.confidence", "1"): [(model, 1.0)],
        ("fastrm.entropy", "1"): [(model, 1.0)],
        ("fastrm.scoring.duration", "s"): [(model, pytest.approx(0.004))],
        ("fastrm.results", "{answer}"): [
            ({**model, "verdict": "flagged"}, 1),
            ({**model, "verdict": "passed"}, 1),
            ({**model, "verdict": "unscored"}, 1),
        ],
        ("fastrm.skipped", "{answer}"): [({"reason": "no_image"}, 1), ({"reason": "some_new_reason"}, 1)],
        ("fastrm.failed", "{failure}"): [({"stage": "score"}, 1)],
        ("fastrm.dropped", "{answer}"): [({"reason": "queue_full"}, 4)],
        ("fastrm.queue.size", "{answer}"): [({}, 1)],
    }


def test_counters_begin_at_zero(received):
    """Before anything happens the usual reasons and stages are there with 0: a rise from nothing is no rise."""
    found = received.metrics()
    assert {value for points in found.values() for _, value in points} == {0}
    assert {"reason": "queue_full"} in [attributes for attributes, _ in found["fastrm.dropped", "{answer}"]]
    assert {"stage": "score"} in [attributes for attributes, _ in found["fastrm.failed", "{failure}"]]
    assert {"reason": "partial_prefill"} in [attributes for attributes, _ in found["fastrm.skipped", "{answer}"]]
    received.telemetry.emit(answer(), assessment())
    results = received.metrics()["fastrm.results", "{answer}"]
    assert ({"model": "llava", "verdict": "unscored"}, 0) in results


def test_failures_are_totals(received):
    """Totals are counted as they grow; those of a forked child, which begin anew, come on top."""
    for totals in ({"score": 2.0}, {"score": 2.0, "store": 1.0}, {"score": 5.0, "store": 1.0}, {"score": 1.0}):
        received.telemetry.failures(totals)
    assert above_zero(received.metrics()["fastrm.failed", "{failure}"]) == [
        ({"stage": "score"}, 6),
        ({"stage": "store"}, 1),
    ]


def test_drift(received):
    """A window's statistics by feature, with the answers behind them beside; the newest window counts."""
    received.telemetry.drifted("llava", [Drift("confidence", 0.9, 0.9, 0.9, 0.9, 500, 500)])
    received.telemetry.drifted("llava", [Drift("confidence", 0.25, 1e-9, 0.5, 0.125, 1000, 400)])
    found, labels = received.metrics(), {"model": "llava", "feature": "confidence"}
    assert found["fastrm.drift", ""] == [
        ({**labels, "statistic": "ks"}, 0.25),
        ({**labels, "statistic": "ks_p"}, 1e-9),
        ({**labels, "statistic": "psi"}, 0.5),
        ({**labels, "statistic": "wasserstein"}, 0.125),
    ]
    assert found["fastrm.drift.cases", "{answer}"] == [
        ({**labels, "sample": "reference"}, 1000),
        ({**labels, "sample": "window"}, 400),
    ]


def test_unscored_answer(received):
    """An answer without a score has a span without numbers and an event with `error.type` in place of a score."""
    received.telemetry.emit(answer(), assessment(**UNSCORED))
    (span,), (event,) = received.spans, received.events
    assert not {"fastrm.confidence", "fastrm.entropy", "fastrm.case.id", "fastrm.case.url"} & set(span.attributes)
    assert span.attributes["fastrm.reason"] == "no_image"
    assert dict(event.attributes) == {
        "gen_ai.evaluation.name": "fastrm.confidence",
        "gen_ai.evaluation.target": "llava",
        "gen_ai.response.id": "r-1",
        "fastrm.evaluator.version": "abc",
        "error.type": "no_image",
    }


def test_caller_is_the_parent(received):
    """The span joins the trace of the caller's request, though it is emitted later and on another thread."""
    tracer = received.tracers.get_tracer("caller")
    with tracer.start_as_current_span("request") as parent:
        context = trace.set_span_in_context(parent)
    thread = threading.Thread(target=received.telemetry.emit, args=(answer(context=context), assessment()))
    thread.start()
    thread.join()
    span = next(one for one in received.spans if one.name == "chat llava")
    assert span.context.trace_id == parent.get_span_context().trace_id
    assert span.parent.span_id == parent.get_span_context().span_id


@pytest.mark.parametrize(
    ("value", "on_span", "on_event"),
    [(None, False, False), ("NO_CONTENT", False, False), ("span_only", True, False), ("EVENT_ONLY", False, True),
     ("SPAN_AND_EVENT", True, True), (" Span_And_Event ", True, True), ("true", False, False)],
)  # fmt: skip
def test_content_is_the_users_choice(received, monkeypatch, value, on_span, on_event):
    """Question and answer travel only where the standard variable says so; by default nowhere."""
    monkeypatch.delenv(CAPTURE, raising=False)
    if value is not None:
        monkeypatch.setenv(CAPTURE, value)
    received.telemetry.emit(answer(), assessment())
    (span,), (event,) = received.spans, received.events
    for attributes, wanted in ((span.attributes, on_span), (event.attributes, on_event)):
        assert ("what colour?" in str(dict(attributes))) is wanted
        assert ("gen_ai.input.messages" in attributes) is wanted
        if wanted:
            assert json.loads(attributes["gen_ai.output.messages"]) == [
                {"role": "assistant", "parts": [{"type": "text", "content": "red"}], "finish_reason": "stop"}
            ]


def test_what_utf8_cannot_carry(received, monkeypatch, caplog):
    """Lone surrogates travel as U+FFFD: none of the attributes is left out, and nothing is logged."""
    monkeypatch.setenv(CAPTURE, "SPAN_AND_EVENT")
    torn = {"question": "what \udcff?", "text": "red \ud83d", "request_id": "r\ud800", "model": "m\udfff"}
    received.telemetry.emit(answer(**torn), assessment())
    (span,), (event,) = received.spans, received.events
    for attributes in (span.attributes, event.attributes):
        assert attributes["gen_ai.response.id"] == "r\ufffd"
        assert "red \ufffd" in attributes["gen_ai.output.messages"]
        str(dict(attributes)).encode()
    assert span.name == "chat m\ufffd"
    assert caplog.records == []


def test_pictures_never_travel(received, monkeypatch):
    """With all content captured, the pictures of an answer are not even made."""
    monkeypatch.setenv(CAPTURE, "SPAN_AND_EVENT")

    def picture():
        raise AssertionError("a picture was asked for")

    received.telemetry.emit(answer(pictures=(picture,)), assessment())
    (span,), (event,) = received.spans, received.events
    for attributes in (span.attributes, event.attributes):
        assert len(str(dict(attributes))) < 2000


def test_meaningless_capture_mode_is_said(monkeypatch, caplog):
    """A value that the standard does not have is one line that names those it has, and captures nothing."""
    monkeypatch.setenv(CAPTURE, "true")
    setup.telemetry_from_environment("http://dash", "transformers")
    (line,) = caplog.messages
    assert line == (
        "fastrm-monitor: OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=TRUE has no meaning, so no question and no "
        "answer is sent: use one of NO_CONTENT, SPAN_ONLY, EVENT_ONLY, SPAN_AND_EVENT"
    )


def test_given_providers_are_used(received, monkeypatch):
    """Providers that were handed over are used whatever the variables say, until they are taken back."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    setup.use_providers(tracer_provider=received.tracers, meter_provider=received.meters)
    try:
        telemetry = setup.telemetry_from_environment("http://dash", "transformers")
        telemetry.emit(answer(), assessment())
        telemetry.close()
    finally:
        setup.use_providers()
    assert [span.name for span in received.spans] == ["chat llava"]
    assert received.events == []
    assert above_zero(received.metrics()["fastrm.results", "{answer}"])
    assert setup._given == {}


def test_nothing_without_sdk():
    """Without an SDK nothing is emitted and nothing fails; the ids are those of the caller's span, if there is one."""
    telemetry = Telemetry("http://dash", "transformers")
    ids = telemetry.emit(answer(), assessment())
    assert (ids.trace_id, ids.span_id) == (None, None)
    parent = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=True))
    ids = telemetry.emit(answer(context=trace.set_span_in_context(parent)), assessment())
    assert (int(ids.trace_id, 16), int(ids.span_id, 16)) == (0xABC, 0xDEF)
    telemetry.flush()
    telemetry.close()


# --- real OTLP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver():
    """A small OTLP HTTP receiver; `receiver.got[path]` are the parsed messages."""
    with otlp_receiver() as server:
        yield server


def test_otlp_receiver_gets_all_three_signals(receiver, monkeypatch):
    """With the standard endpoint variable alone, a real receiver gets span, event and metrics."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "checkout")
    telemetry = setup.telemetry_from_environment("http://dash", "transformers", 10.0)
    telemetry.emit(answer(), assessment())
    telemetry.flush()
    telemetry.close()
    (spans,) = receiver.got["/v1/traces"]
    (resource,) = spans.resource_spans
    assert ("service.name", "checkout") in [(one.key, one.value.string_value) for one in resource.resource.attributes]
    (span,) = resource.scope_spans[0].spans
    attributes = {one.key: one.value for one in span.attributes}
    assert span.name == "chat llava"
    assert attributes["fastrm.confidence"].double_value == 0.25
    assert attributes["fastrm.flagged"].bool_value is True
    (logs,) = receiver.got["/v1/logs"]
    (event,) = logs.resource_logs[0].scope_logs[0].log_records
    assert (event.event_name, event.span_id) == ("gen_ai.evaluation.result", span.span_id)
    names = {m.name for got in receiver.got["/v1/metrics"] for r in got.resource_metrics for s in r.scope_metrics
             for m in s.metrics}  # fmt: skip
    assert {"fastrm.confidence", "fastrm.entropy", "fastrm.scoring.duration", "fastrm.results"} <= names


def test_exporters_can_be_chosen(receiver, monkeypatch):
    """`OTEL_METRICS_EXPORTER=none` and its like are obeyed, and `OTEL_SDK_DISABLED` switches all off."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    telemetry = setup.telemetry_from_environment("http://dash", "transformers", 10.0)
    telemetry.emit(answer(), assessment())
    telemetry.close()
    assert [len(got) for got in receiver.got.values()] == [1, 0, 0]
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry = setup.telemetry_from_environment("http://dash", "transformers", 10.0)
    assert telemetry.emit(answer(), assessment()).trace_id is None


def test_nobody_waits_for_a_dead_receiver(monkeypatch):
    """An endpoint where nobody listens delays flush and close by no more than the time given, and raises nothing."""
    import time

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    telemetry = setup.telemetry_from_environment("http://dash", "transformers", 0.5)
    telemetry.emit(answer(), assessment())
    began = time.monotonic()
    telemetry.flush()
    telemetry.close()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("protocol", "missing", "sentence"),
    [
        ("", "http", "the OTLP exporter for http/protobuf is not installed: pip install 'fastrm-monitor[otel]'"),
        ("grpc", "grpc", "the OTLP exporter for grpc is not installed: pip install 'fastrm-monitor[grpc]'"),
        ("http/json", None, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json is not supported: use http/protobuf or grpc"),
    ],
)
def test_without_the_exporter_it_says_so(monkeypatch, caplog, protocol, missing, sentence):
    """A protocol without its package, or an unknown one, is one line that says what to do, and answers are served."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    for module in ("trace_exporter", "metric_exporter", "_log_exporter"):
        if missing is not None:
            monkeypatch.setitem(sys.modules, f"opentelemetry.exporter.otlp.proto.{missing}.{module}", None)
    telemetry = setup.telemetry_from_environment("http://dash", "transformers")
    telemetry.emit(answer(), assessment())
    telemetry.close()
    assert caplog.messages == [f"fastrm-monitor: no traces and no logs and no metrics will be sent, {sentence}"]


def test_without_the_sdk_it_says_so(monkeypatch, caplog):
    """An endpoint without the extra installed is one warning that names the extra, and answers are served."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    telemetry = setup.telemetry_from_environment("http://dash", "transformers")
    assert telemetry.emit(answer(), assessment()).trace_id is None
    assert caplog.messages == [
        "fastrm-monitor: OTEL_* asks for telemetry, but the SDK is not installed and nothing is sent: "
        "pip install 'fastrm-monitor[otel]'"
    ]


@pytest.fixture
def grpc_receiver():
    """An OTLP receiver that speaks gRPC; `got` are the names of the spans, events and metrics."""
    import grpc
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

    got = {"spans": [], "events": [], "metrics": []}

    def take_spans(request, _):
        got["spans"] += [one.name for r in request.resource_spans for s in r.scope_spans for one in s.spans]
        return traces.ExportTraceServiceResponse()

    def take_events(request, _):
        got["events"] += [e.event_name for r in request.resource_logs for s in r.scope_logs for e in s.log_records]
        return logs.ExportLogsServiceResponse()

    def take_metrics(request, _):
        got["metrics"] += [one.name for r in request.resource_metrics for s in r.scope_metrics for one in s.metrics]
        return metrics.ExportMetricsServiceResponse()

    def service(name, take, request):
        method = grpc.unary_unary_rpc_method_handler(
            take, request_deserializer=request.FromString, response_serializer=lambda reply: reply.SerializeToString()
        )
        return grpc.method_handlers_generic_handler(f"opentelemetry.proto.collector.{name}", {"Export": method})

    server = grpc.server(ThreadPoolExecutor(3))
    server.add_generic_rpc_handlers(
        (
            service("trace.v1.TraceService", take_spans, traces.ExportTraceServiceRequest),
            service("logs.v1.LogsService", take_events, logs.ExportLogsServiceRequest),
            service("metrics.v1.MetricsService", take_metrics, metrics.ExportMetricsServiceRequest),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    server.got, server.url = got, f"http://127.0.0.1:{port}"
    yield server
    server.stop(None).wait()


def test_grpc_is_spoken_when_asked_for(grpc_receiver, monkeypatch):
    """`OTEL_EXPORTER_OTLP_PROTOCOL=grpc` reaches a gRPC receiver with all three signals."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", grpc_receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    telemetry = setup.telemetry_from_environment("http://dash", "transformers", 10.0)
    telemetry.emit(answer(), assessment())
    telemetry.close()
    assert grpc_receiver.got["spans"] == ["chat llava"]
    assert grpc_receiver.got["events"] == ["gen_ai.evaluation.result"]
    assert "fastrm.confidence" in grpc_receiver.got["metrics"]


def test_a_signal_may_have_a_protocol_of_its_own(receiver, grpc_receiver, monkeypatch):
    """Spans by gRPC, the rest by HTTP, each to its own endpoint."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", grpc_receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    telemetry = setup.telemetry_from_environment("http://dash", "transformers", 10.0)
    telemetry.emit(answer(), assessment())
    telemetry.close()
    assert grpc_receiver.got["spans"] == ["chat llava"]
    assert (len(receiver.got["/v1/traces"]), len(receiver.got["/v1/logs"])) == (0, 1)


PAGE = """
import sys, logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
import os, urllib.request
sys.path.insert(0, os.environ["TESTS"])
from test_telemetry import answer, assessment
from fastrm_monitor.telemetry.setup import telemetry_from_environment
for model in ("first", "second"):  # two monitors of one process have one page
    telemetry = telemetry_from_environment("http://dash", "transformers")
    telemetry.emit(answer(model=model), assessment())
    telemetry.close()
address = "http://127.0.0.1:" + os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] + "/metrics"
page = urllib.request.urlopen(address).read().decode()
print(sorted({line.split('model="')[1].split('"')[0] for line in page.splitlines() if "fastrm_results_total{" in line}))
"""


def run_page(port):
    environment = {"TESTS": str(Path(__file__).parent), "PATH": "/usr/bin", "OTEL_METRICS_EXPORTER": "prometheus",
                   "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", PAGE], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_page_for_prometheus():
    """`OTEL_METRICS_EXPORTER=prometheus` opens one page for the process, with the metrics of all its monitors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run_page(port)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"fastrm-monitor: metrics for Prometheus are at http://127.0.0.1:{port}/metrics",
        "['first', 'second']",
    ]


def test_taken_port_is_one_sentence(receiver):
    """A port that another process has is said, with the variable that mends it, and answers are served."""
    done = run_page(receiver.server_port)
    assert done.stdout.splitlines()[0].startswith(
        "fastrm-monitor: no metrics will be sent, the page for Prometheus cannot be opened at "
        f"127.0.0.1:{receiver.server_port} ("
    )
    assert done.stdout.splitlines()[0].endswith("): set OTEL_EXPORTER_PROMETHEUS_PORT")


def test_the_applications_own_sdk_is_used(receiver):
    """An SDK that the application configured receives the spans; no second exporter is made for the endpoint."""
    script = """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
memory, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(memory))
trace.set_tracer_provider(provider)
from test_telemetry import answer, assessment
from fastrm_monitor.telemetry.setup import telemetry_from_environment
telemetry = telemetry_from_environment("http://dash", "transformers")
telemetry.emit(answer(), assessment())
telemetry.close()
print([span.name for span in memory.get_finished_spans()])
"""
    environment = {"TESTS": str(Path(__file__).parent), "PATH": "/usr/bin",
                   "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['chat llava']"
    assert receiver.got["/v1/traces"] == []
