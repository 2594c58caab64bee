"""What OpenTelemetry receives: exactly the documented span, event and metrics, in memory and over real OTLP."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from fastrm_monitor.telemetry import setup
from fastrm_monitor.telemetry.emit import Telemetry
from fastrm_monitor.types import Answer, Assessment, RelevanceMap

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
        self._spans, self._logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self._logs))
        self.telemetry = Telemetry(
            "http://dash:8501/",
            "transformers",
            tracer_provider=self.tracers,
            logger_provider=self.loggers,
            meter_provider=MeterProvider([self.reader]),
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


def test_metrics(received):
    """Histograms of scored answers, counters by verdict and reason, the queue; only attributes with few values."""
    received.telemetry.queue_changed(3)
    received.telemetry.emit(answer(), assessment())
    received.telemetry.emit(answer(), assessment(confidence=0.75, flagged=False, reason=None))
    received.telemetry.emit(answer(), assessment(**UNSCORED))
    received.telemetry.queue_changed(-2)
    received.telemetry.dropped("queue_full", 4)
    model = {"model": "llava"}
    assert received.metrics() == {
        ("fastrm.confidence", "1"): [(model, 1.0)],
        ("fastrm.entropy", "1"): [(model, 1.0)],
        ("fastrm.scoring.duration", "s"): [(model, pytest.approx(0.004))],
        ("fastrm.results", "{answer}"): [
            ({**model, "verdict": "flagged"}, 1),
            ({**model, "verdict": "passed"}, 1),
            ({**model, "verdict": "unscored"}, 1),
        ],
        ("fastrm.dropped", "{answer}"): [({"reason": "queue_full"}, 4)],
        ("fastrm.queue.size", "{answer}"): [({}, 1)],
    }


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
     ("SPAN_AND_EVENT", True, True), ("true", False, False)],
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

MESSAGES = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
}


@pytest.fixture
def receiver():
    """A small OTLP HTTP receiver; `receiver.got[path]` are the parsed messages."""
    got = {path: [] for path in MESSAGES}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            got[self.path].append(MESSAGES[self.path].FromString(body))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.url = got, f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


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


def test_without_the_exporter_it_says_so(monkeypatch, caplog):
    """An endpoint without the extra installed is one warning that names the extra, and answers are served."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    telemetry = setup.telemetry_from_environment("http://dash", "transformers")
    assert telemetry.emit(answer(), assessment()).trace_id is None
    assert [r.message for r in caplog.records] == [
        "fastrm-monitor: OTEL_* names an OTLP endpoint, but the exporter is not installed and nothing is sent: "
        "pip install 'fastrm-monitor[otel]'"
    ]


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
    environment = {"TESTS": str(__import__("pathlib").Path(__file__).parent), "PATH": "/usr/bin",
                   "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['chat llava']"
    assert receiver.got["/v1/traces"] == []
