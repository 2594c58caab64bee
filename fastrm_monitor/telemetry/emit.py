"""What an answer looks like to OpenTelemetry: one span, one `gen_ai.evaluation.result` event, a few metrics.

Called on the monitor's background thread, after the fact: the span carries the answer's own start and end and hangs
below the caller's. Pictures never travel; the span links to the case instead. Knows the API, not how it is exported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry._logs import LoggerProvider, SeverityNumber, get_logger_provider
from opentelemetry.metrics import MeterProvider, get_meter_provider
from opentelemetry.trace import SpanKind, TracerProvider, get_tracer_provider
from opentelemetry.util.types import AttributeValue

import fastrm_monitor
from fastrm_monitor.scoring.policy import REASONS
from fastrm_monitor.telemetry import semconv
from fastrm_monitor.types import Answer, Assessment

_SHARES = [round(0.05 * step, 2) for step in range(1, 20)]
_SECONDS = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


@dataclass(frozen=True)
class SpanIds:
    """Hexadecimal ids of an emitted span; without an SDK those of the caller's span, None when there is none either."""

    trace_id: str | None = None
    span_id: str | None = None


def _nothing() -> None:
    """No exporter of our own: whoever configured the SDK flushes it."""


class Telemetry:
    """Emits answers; without providers it uses the global ones, which do nothing until an SDK is configured.

    Args:
        dashboard_url: where reviewers open the dashboard; makes the case link.
        provider: `gen_ai.provider.name`, e.g. "transformers" or "vllm".
        tracer_provider: of the spans.
        logger_provider: of the events.
        meter_provider: of the metrics.
        flush: sends what is queued; `close`: sends it and lets go of the exporters.
        close: see `flush`.
    """

    def __init__(
        self,
        dashboard_url: str,
        provider: str,
        *,
        tracer_provider: TracerProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        flush: Callable[[], None] = _nothing,
        close: Callable[[], None] = _nothing,
    ) -> None:
        self._dashboard_url = dashboard_url.rstrip("/")
        self._provider = provider
        self.flush, self.close = flush, close
        version = fastrm_monitor.__version__
        self._tracer = (tracer_provider or get_tracer_provider()).get_tracer(semconv.SCOPE, version)
        self._logger = (logger_provider or get_logger_provider()).get_logger(semconv.SCOPE, version)
        meter = (meter_provider or get_meter_provider()).get_meter(semconv.SCOPE, version)
        self._confidence = meter.create_histogram(
            semconv.METRIC_CONFIDENCE,
            "1",
            "Confidence of the scored answers.",
            explicit_bucket_boundaries_advisory=_SHARES,
        )
        self._entropy = meter.create_histogram(
            semconv.METRIC_ENTROPY,
            "1",
            "Spatial entropy of the relevance maps.",
            explicit_bucket_boundaries_advisory=_SHARES,
        )
        self._duration = meter.create_histogram(
            semconv.METRIC_SCORING_DURATION,
            "s",
            "Time that scoring an answer took.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._results = meter.create_counter(semconv.METRIC_RESULTS, "{answer}", "Answers by verdict.")
        self._dropped = meter.create_counter(semconv.METRIC_DROPPED, "{answer}", "Answers lost on the way, by reason.")
        self._queue = meter.create_up_down_counter(
            semconv.METRIC_QUEUE_SIZE, "{answer}", "Answers that wait for telemetry and storage."
        )

    def emit(self, answer: Answer, assessment: Assessment) -> SpanIds:
        """Span, event and metrics of one answer."""
        name = f"{semconv.OPERATION_CHAT} {answer.model}"
        kind = SpanKind.INTERNAL  # the model runs in this process
        first: dict[str, AttributeValue] = {  # what samplers see
            semconv.OPERATION_NAME: semconv.OPERATION_CHAT,
            semconv.PROVIDER_NAME: self._provider,
            semconv.REQUEST_MODEL: answer.model,
        }
        span = self._tracer.start_span(name, answer.context, kind, first, start_time=answer.started_ns)
        if span.is_recording():
            span.set_attributes(self._span_attributes(answer, assessment))
        context = trace.set_span_in_context(span, answer.context)
        self._logger.emit(
            timestamp=answer.ended_ns,
            context=context,
            severity_number=SeverityNumber.WARN if assessment.flagged else SeverityNumber.INFO,
            event_name=semconv.EVALUATION_EVENT,
            attributes=self._event_attributes(answer, assessment),
        )
        span.end(answer.ended_ns)
        self._measure(answer, assessment)
        ids = span.get_span_context()
        if not ids.is_valid:
            return SpanIds()
        return SpanIds(trace.format_trace_id(ids.trace_id), trace.format_span_id(ids.span_id))

    def dropped(self, reason: str, count: int = 1) -> None:
        """Count answers that were lost."""
        self._dropped.add(count, {semconv.DROP_REASON: reason})

    def queue_changed(self, delta: int) -> None:
        """Answers were handed over (+) or left the queue (-)."""
        self._queue.add(delta)

    def _span_attributes(self, answer: Answer, assessment: Assessment) -> dict[str, AttributeValue]:
        found: dict[str, AttributeValue | None] = {
            semconv.RESPONSE_ID: answer.request_id,
            semconv.RESPONSE_FINISH_REASONS: None if answer.finish_reason is None else [answer.finish_reason],
            semconv.USAGE_INPUT_TOKENS: answer.input_tokens,
            semconv.USAGE_OUTPUT_TOKENS: answer.output_tokens,
            semconv.CONFIDENCE: assessment.confidence,
            semconv.CALIBRATED: assessment.calibrated,
            semconv.ENTROPY: assessment.entropy,
            semconv.FLAGGED: assessment.flagged,
            semconv.REASON: assessment.reason,
            semconv.PROXY_VERSION: assessment.proxy_version,
        }
        if assessment.case_id is not None:
            found[semconv.CASE_ID] = assessment.case_id
            found[semconv.CASE_URL] = f"{self._dashboard_url}/case?case={assessment.case_id}"
        if _captures("SPAN"):
            found |= _messages(answer)
        return {name: value for name, value in found.items() if value is not None}

    def _event_attributes(self, answer: Answer, assessment: Assessment) -> dict[str, AttributeValue]:
        found: dict[str, AttributeValue] = {
            semconv.EVALUATION_NAME: semconv.EVALUATION,
            semconv.EVALUATION_TARGET: answer.model,
            semconv.RESPONSE_ID: answer.request_id,
            semconv.EVALUATOR_VERSION: assessment.proxy_version,
        }
        if assessment.confidence is None:
            found[semconv.ERROR_TYPE] = assessment.reason or semconv.UNSCORED_LABEL
        else:
            found[semconv.EVALUATION_SCORE_VALUE] = assessment.confidence
            found[semconv.EVALUATION_SCORE_LABEL] = _verdict(assessment)
            found[semconv.SCORE_RANGE] = "0..1"
            found[semconv.CALIBRATED] = assessment.calibrated
            if assessment.reason is not None:
                found[semconv.EVALUATION_EXPLANATION] = REASONS.get(assessment.reason, assessment.reason)
        if assessment.case_id is not None:
            found[semconv.CASE_ID] = assessment.case_id
        if _captures("EVENT"):
            found |= _messages(answer)
        return found

    def _measure(self, answer: Answer, assessment: Assessment) -> None:
        model: dict[str, AttributeValue] = {semconv.MODEL: answer.model}
        if assessment.confidence is not None:
            self._confidence.record(assessment.confidence, model)
            self._duration.record(assessment.scoring_seconds, model)
        if assessment.entropy is not None:
            self._entropy.record(assessment.entropy, model)
        self._results.add(1, {**model, semconv.VERDICT: _verdict(assessment)})


def _verdict(assessment: Assessment) -> str:
    if not assessment.scored:
        return semconv.UNSCORED_LABEL
    return semconv.FLAGGED_LABEL if assessment.flagged else semconv.PASSED_LABEL


def _captures(place: str) -> bool:
    """Whether the standard variable lets question and answer travel on spans or on events."""
    return os.environ.get(semconv.CAPTURE_CONTENT, "").strip().upper() in (f"{place}_ONLY", "SPAN_AND_EVENT")


def _messages(answer: Answer) -> dict[str, AttributeValue]:
    """Question and answer as the conventions' messages; text only, never a picture."""
    asked = [{"role": "user", "parts": [{"type": "text", "content": answer.question}]}]
    said = [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": answer.text}],
            "finish_reason": answer.finish_reason or "stop",
        }
    ]
    return {
        semconv.INPUT_MESSAGES: json.dumps(asked, ensure_ascii=False),
        semconv.OUTPUT_MESSAGES: json.dumps(said, ensure_ascii=False),
    }
