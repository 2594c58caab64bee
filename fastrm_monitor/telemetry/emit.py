"""What an answer looks like to OpenTelemetry: one span, one `gen_ai.evaluation.result` event, a few metrics.

Called on the monitor's background thread, after the fact: the span carries the answer's own start and end and hangs
below the caller's. Pictures never travel; the span links to the case instead. Knows the API, not how it is exported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from opentelemetry import trace
from opentelemetry._logs import LoggerProvider, SeverityNumber, get_logger_provider
from opentelemetry.metrics import MeterProvider, get_meter_provider
from opentelemetry.trace import SpanKind, TracerProvider, get_tracer_provider
from opentelemetry.util.types import AttributeValue

import fastrm_monitor
from fastrm_monitor.drift.watch import Drift
from fastrm_monitor.records.text import clean_text
from fastrm_monitor.scoring.policy import REASONS
from fastrm_monitor.telemetry import semconv
from fastrm_monitor.telemetry.metrics import Metrics, verdict_of
from fastrm_monitor.types import Answer, Assessment


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
        self._metrics = Metrics((meter_provider or get_meter_provider()).get_meter(semconv.SCOPE, version))

    def emit(self, answer: Answer, assessment: Assessment) -> SpanIds:
        """Span, event and metrics of one answer."""
        answer = _sendable(answer)
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
        self._metrics.answered(answer.model, assessment)
        ids = span.get_span_context()
        if not ids.is_valid:
            return SpanIds()
        return SpanIds(trace.format_trace_id(ids.trace_id), trace.format_span_id(ids.span_id))

    def skipped(self, reason: str) -> None:
        """Count an answer that could not be scored, whether or not it is emitted too."""
        self._metrics.skipped(reason)

    def failures(self, totals: Mapping[str, float]) -> None:
        """Show the failures of monitoring by stage so far; called now and then, by one thread."""
        self._metrics.failures(totals)

    def dropped(self, reason: str, count: int = 1) -> None:
        """Count answers that were lost."""
        self._metrics.dropped(reason, count)

    def queue_changed(self, delta: int) -> None:
        """Answers were handed over (+) or left the queue (-)."""
        self._metrics.queue_changed(delta)

    def drifted(self, model: str, found: Iterable[Drift]) -> None:
        """Show what a complete window of a model's answers said of their drift."""
        self._metrics.drifted(model, found)

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
            found[semconv.EVALUATION_SCORE_LABEL] = verdict_of(assessment)
            found[semconv.SCORE_RANGE] = "0..1"
            found[semconv.CALIBRATED] = assessment.calibrated
            if assessment.reason is not None:
                found[semconv.EVALUATION_EXPLANATION] = REASONS.get(assessment.reason, assessment.reason)
        if assessment.case_id is not None:
            found[semconv.CASE_ID] = assessment.case_id
        if _captures("EVENT"):
            found |= _messages(answer)
        return found


def _sendable(answer: Answer) -> Answer:
    """With texts that UTF-8 can carry: an exporter would leave a lone surrogate out, with a traceback for each."""
    return replace(
        answer,
        model=clean_text(answer.model),
        request_id=clean_text(answer.request_id),
        question=clean_text(answer.question),
        text=clean_text(answer.text),
        finish_reason=None if answer.finish_reason is None else clean_text(answer.finish_reason),
    )


def capture_mode() -> str:
    """What the standard variable says of question and answer, in capitals; the default when it says nothing."""
    return os.environ.get(semconv.CAPTURE_CONTENT, "").strip().upper() or semconv.CAPTURE_MODES[0]


def captures_content() -> bool:
    """Whether question and answer travel at all."""
    return _captures("SPAN") or _captures("EVENT")


def _captures(place: str) -> bool:
    """Whether question and answer travel on spans or on events; not where the variable has a value of no meaning."""
    return capture_mode() in (f"{place}_ONLY", "SPAN_AND_EVENT")


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
