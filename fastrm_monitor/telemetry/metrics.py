"""The instruments and what is counted with them; attributes have few values, so that series stay few.

Counters whose label values are known begin at zero: Prometheus cannot see a counter rise that appears when it is 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from opentelemetry.metrics import Meter

from fastrm_monitor.drift.watch import Drift
from fastrm_monitor.telemetry import semconv
from fastrm_monitor.types import Assessment

_SHARES = [round(0.05 * step, 2) for step in range(1, 20)]
_SECONDS = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


class Metrics:
    """The metrics of one monitor.

    Args:
        meter: makes the instruments.
    """

    def __init__(self, meter: Meter) -> None:
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
        self._skipped = meter.create_counter(
            semconv.METRIC_SKIPPED, "{answer}", "Answers that could not be scored, by reason."
        )
        self._failed = meter.create_counter(
            semconv.METRIC_FAILED, "{failure}", "Failures of monitoring by stage; the answers were served."
        )
        self._dropped = meter.create_counter(semconv.METRIC_DROPPED, "{answer}", "Answers lost on the way, by reason.")
        self._queue = meter.create_up_down_counter(
            semconv.METRIC_QUEUE_SIZE, "{answer}", "Answers that wait for telemetry and storage."
        )
        # No unit: Prometheus would call a gauge of unit "1" a ratio, and these are not.
        self._drift = meter.create_gauge(
            semconv.METRIC_DRIFT, "", "How far the newest window of answers is from its reference."
        )
        self._drift_cases = meter.create_gauge(
            semconv.METRIC_DRIFT_CASES, "{answer}", "Answers that the drift statistics rest on."
        )
        self._models: set[str] = set()
        self._failures: dict[str, float] = {}
        self._queue.add(0)
        for reason in semconv.DROP_REASONS:
            self._dropped.add(0, {semconv.DROP_REASON: reason})
        for reason in semconv.SKIP_REASONS:
            self._skipped.add(0, {semconv.SKIP_REASON: reason})
        for stage in semconv.STAGES:
            self._failed.add(0, {semconv.STAGE: stage})

    def answered(self, model: str, assessment: Assessment) -> None:
        """One answer with its verdict and, if it was scored, its numbers."""
        labels = {semconv.MODEL: model}
        if model not in self._models:
            self._models.add(model)
            for verdict in semconv.VERDICTS:
                self._results.add(0, {**labels, semconv.VERDICT: verdict})
        if assessment.confidence is not None:
            self._confidence.record(assessment.confidence, labels)
            self._duration.record(assessment.scoring_seconds, labels)
        if assessment.entropy is not None:
            self._entropy.record(assessment.entropy, labels)
        self._results.add(1, {**labels, semconv.VERDICT: verdict_of(assessment)})

    def skipped(self, reason: str) -> None:
        """An answer could not be scored."""
        self._skipped.add(1, {semconv.SKIP_REASON: reason})

    def failures(self, totals: Mapping[str, float]) -> None:
        """Failures by stage so far; what came since the last call is counted. For one thread."""
        for stage, total in totals.items():
            before = self._failures.get(stage, 0.0)
            added = total - before if total >= before else total  # a forked child began anew
            if added:
                self._failed.add(added, {semconv.STAGE: stage})
            self._failures[stage] = total

    def dropped(self, reason: str, count: int) -> None:
        """Answers were lost."""
        self._dropped.add(count, {semconv.DROP_REASON: reason})

    def queue_changed(self, delta: int) -> None:
        """Answers were handed over (+) or left the queue (-)."""
        self._queue.add(delta)

    def drifted(self, model: str, found: Iterable[Drift]) -> None:
        """What a complete window said, one `Drift` a feature."""
        for one in found:
            labels = {semconv.MODEL: model, semconv.FEATURE: one.feature}
            for statistic, value in one.statistics().items():
                self._drift.set(value, {**labels, semconv.STATISTIC: statistic})
            for sample, count in (("reference", one.n_reference), ("window", one.n_window)):
                self._drift_cases.set(count, {**labels, semconv.SAMPLE: sample})


def verdict_of(assessment: Assessment) -> str:
    """One of `semconv.VERDICTS`."""
    if not assessment.scored:
        return semconv.UNSCORED_LABEL
    return semconv.FLAGGED_LABEL if assessment.flagged else semconv.PASSED_LABEL
