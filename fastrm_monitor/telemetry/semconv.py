"""Every name that telemetry uses, and nothing else.

The `gen_ai.*` names are those of OpenTelemetry's semantic conventions for generative AI (status Development), written
down here because the constants of the Python package are marked as moved. The `fastrm.*` names are our own.
"""

from __future__ import annotations

SCOPE = "fastrm_monitor"
"""Instrumentation scope of tracer, meter and logger."""

# --- span, of the conventions ---
OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"

OPERATION_CHAT = "chat"

# --- event, of the conventions ---
EVALUATION_EVENT = "gen_ai.evaluation.result"
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_SCORE_VALUE = "gen_ai.evaluation.score.value"
EVALUATION_SCORE_LABEL = "gen_ai.evaluation.score.label"
EVALUATION_EXPLANATION = "gen_ai.evaluation.explanation"
EVALUATION_TARGET = "gen_ai.evaluation.target"
ERROR_TYPE = "error.type"

EVALUATION = "fastrm.confidence"
"""Value of `gen_ai.evaluation.name`."""

# --- our own, on span and event ---
CONFIDENCE = "fastrm.confidence"
CALIBRATED = "fastrm.calibrated"
ENTROPY = "fastrm.entropy"
FLAGGED = "fastrm.flagged"
REASON = "fastrm.reason"
PROXY_VERSION = "fastrm.proxy.version"
CASE_ID = "fastrm.case.id"
CASE_URL = "fastrm.case.url"
SCORE_RANGE = "fastrm.score.range"
EVALUATOR_VERSION = "fastrm.evaluator.version"

# --- metrics and their attributes; only what has few values ---
METRIC_CONFIDENCE = "fastrm.confidence"
METRIC_ENTROPY = "fastrm.entropy"
METRIC_SCORING_DURATION = "fastrm.scoring.duration"
METRIC_RESULTS = "fastrm.results"
METRIC_SKIPPED = "fastrm.skipped"
METRIC_FAILED = "fastrm.failed"
METRIC_DROPPED = "fastrm.dropped"
METRIC_QUEUE_SIZE = "fastrm.queue.size"
METRIC_DRIFT = "fastrm.drift"
METRIC_DRIFT_CASES = "fastrm.drift.cases"
MODEL = "model"
VERDICT = "verdict"
SKIP_REASON = "reason"
DROP_REASON = "reason"
STAGE = "stage"
FEATURE = "feature"
STATISTIC = "statistic"
SAMPLE = "sample"

FLAGGED_LABEL, PASSED_LABEL, UNSCORED_LABEL = "flagged", "passed", "unscored"
"""Values of `gen_ai.evaluation.score.label` (the first two) and of the metrics' `verdict`."""
VERDICTS = (FLAGGED_LABEL, PASSED_LABEL, UNSCORED_LABEL)

SKIP_REASONS = (
    "no_image",
    "generation_failed",
    "scorer_error",
    "capture_failed",
    "states_not_finite",
    "partial_prefill",
)
DROP_REASONS = ("queue_full", "too_large", "store_error", "spool_full", "spool_damaged", "shutdown", "case_error")
STAGES = ("capture", "score", "record", "telemetry", "case", "picture", "store", "spool", "drift")
"""The most usual values of `reason` and `stage`, whose counters begin at zero; there may be others."""

CAPTURE_CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
"""Standard variable: one of `CAPTURE_MODES`, the first of which is the default."""
CAPTURE_MODES = ("NO_CONTENT", "SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT")
