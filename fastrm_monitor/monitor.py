"""The whole road of an answer: states -> map -> confidence -> decision -> {telemetry, store}.

    engine's states --Scorer.measure--> relevance --Scorer.conclude--> confidence --Policy--> decision
        --Assessment, to the caller at once--> queue --background thread--> telemetry, then store (or spool)

An integration calls `assess` or `skip` for every finished answer and `record` to hand it over; both return at once.
The monitor knows no engine.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrm_monitor.config import Settings, load_settings
from fastrm_monitor.drift.reference import Reference, comparable, load_reference
from fastrm_monitor.drift.watch import DriftWatch
from fastrm_monitor.errors import MissingExtraError, ProxyError
from fastrm_monitor.guard import Guard, logger
from fastrm_monitor.records.breaker import CircuitBreaker
from fastrm_monitor.records.cases import bytes_of, make_case
from fastrm_monitor.records.counters import Balance, Counters
from fastrm_monitor.records.drift import DriftLog
from fastrm_monitor.records.forks import renew_in_child
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.outbox import Outbox
from fastrm_monitor.records.policies import PolicyWatch
from fastrm_monitor.records.retention import Retention
from fastrm_monitor.records.spool import spool_for
from fastrm_monitor.records.store import Store
from fastrm_monitor.records.writer import Writer
from fastrm_monitor.redaction import Redact, Redactor, load_hook
from fastrm_monitor.scoring.policy import Policy
from fastrm_monitor.telemetry.emit import SpanIds, Telemetry, captures_content
from fastrm_monitor.telemetry.setup import telemetry_from_environment
from fastrm_monitor.types import Answer, Assessment

if TYPE_CHECKING:
    from fastrm_monitor.scoring.patches import PatchGrid
    from fastrm_monitor.scoring.scorer import Scorer

_Item = tuple[Answer, Assessment]

_SLOW_EMIT_SECONDS = 1.0


class Monitor:
    """Scores answers, decides, and hands them to telemetry and store; one for each served model.

    Args:
        scorer: scores with one proxy.
        settings: see `Settings`.
        store: where cases go; None stores nothing. The monitor closes it.
        telemetry: where spans, events and metrics go. The monitor closes it.
        policy: decides what is flagged; made from the settings when None.
        reference: what drift is measured against; the first answers when None.
        redact: takes out of the texts what must not be kept; what the settings name when None.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        settings: Settings,
        store: Store | None,
        telemetry: Telemetry,
        policy: Policy | None = None,
        reference: Reference | None = None,
        redact: Redact | None = None,
    ) -> None:
        fitted = scorer.folder.confidence
        threshold = settings.threshold if settings.threshold is not None else (fitted.threshold if fitted else None)
        self.scorer, self.settings = scorer, settings
        self.counters = Counters()
        self.guard = Guard(lambda stage: self.counters.add("failed", stage))
        self.policy = policy or Policy(
            threshold=threshold,
            flag_rate=settings.flag_rate,
            flag_score=settings.flag_score,
            sample_rate=settings.sample_rate,
        )
        self.after_fork()
        renew_in_child(self)
        self._store, self._telemetry = store, telemetry
        self._emitting = CircuitBreaker(first=5.0)
        self._drift = DriftWatch(reference, proxy_version=scorer.folder.version)
        self._drift_log = DriftLog(store) if store is not None else None
        self._policies = self._watch_policies(store)
        self._model: str | None = None  # as the answers name it
        self._redact = Redactor(redact or load_hook(settings.redact), lambda: self.counters.add("failed", "redaction"))
        self._retention = self._open_retention(store)
        self._writer: Writer[_Item] = Writer(
            self._deliver,
            size=settings.queue_size,
            most_bytes=settings.queue_mb << 20,
            flush_seconds=settings.flush_seconds,
            dropped=self._dropped,
            idle=self._idle,
            hurry=self._hurry,
            rescue=self._rescue,
            sigterm=settings.sigterm,
        )
        self._outbox = self._open_outbox(store)
        if self._outbox is not None and (self._outbox.others_left or settings.retention_days):
            self._writer.wake()  # cases of a server that ended, and what is too old, do not wait for the first answer

    @classmethod
    def open(
        cls,
        *,
        proxy: str | Path | None = None,
        store: str | None = None,
        provider: str = "custom",
        redact: Redact | str | None = None,
        **settings: Any,
    ) -> Monitor:
        """A monitor from a proxy folder and a store URL; what is not given comes from `FASTRM_*`.

        Args:
            proxy: the proxy folder.
            store: SQLAlchemy URL of the store.
            provider: `gen_ai.provider.name` of the telemetry.
            redact: a function of `redaction.Texts`, or where it is found: `package.module:function`.
            **settings: further fields of `Settings`.

        Raises:
            FastRMError: a setting, the proxy or the store cannot be used; the sentence says what to do.
        """
        named = redact if isinstance(redact, str) else None
        chosen = load_settings(proxy=None if proxy is None else str(proxy), store=store, redact=named, **settings)
        if chosen.proxy is None:
            raise ProxyError("No proxy is given: pass proxy=FOLDER or set FASTRM_PROXY.")
        try:
            from fastrm_monitor.scoring.scorer import Scorer
        except ModuleNotFoundError as error:
            raise MissingExtraError("Scoring answers", "hf") from error
        hook = redact if callable(redact) else load_hook(chosen.redact)
        scorer = Scorer(chosen.proxy)
        reference = load_reference(scorer.folder.path, scorer.folder.version)
        opened = Store(chosen.store.get_secret_value(), may_be_away=True) if chosen.store is not None else None
        telemetry = telemetry_from_environment(chosen.dashboard_url, provider, chosen.flush_seconds)
        return cls(scorer, settings=chosen, store=opened, telemetry=telemetry, reference=reference, redact=hook)

    def _open_outbox(self, store: Store | None) -> Outbox | None:
        if store is None:
            return None
        spool = spool_for(store.url, store.path, folder=self.settings.spool, megabytes=self.settings.spool_mb)
        if not store.reached:
            where = "are dropped meanwhile" if spool is None else f"wait in {spool.folder}"
            logger.warning("fastrm-monitor: the store %s cannot be reached yet; cases %s", store.safe_url, where)
        return Outbox(store, spool, self.counters, dropped=self._lose, crowded=lambda: self._writer.crowded)

    def _open_retention(self, store: Store | None) -> Retention | None:
        if store is None:
            return None
        days, keep_labelled = self.settings.retention_days, self.settings.retention_keep_labelled
        return Retention(store, days=days, keep_labelled=keep_labelled, counted=self._retained)

    def _watch_policies(self, store: Store | None) -> PolicyWatch | None:
        if store is None:
            return None
        return PolicyWatch(
            store,
            proxy_version=self.scorer.folder.version,
            seconds=self.settings.policy_seconds,
            threshold=self.settings.threshold,
            failed=lambda: self.counters.add("failed", "policy"),
        )

    def after_fork(self) -> None:
        """A child process is a server of its own; `Counters`, `Writer` and `Store` renew themselves."""
        self.server = f"{socket.gethostname()}:{os.getpid()}"
        self.policy.after_fork()

    # --- in the caller's thread ---------------------------------------------------------------------------------

    def assess(
        self,
        request_id: str,
        relevance: np.ndarray,
        grids: Sequence[PatchGrid],
        *,
        signals: Mapping[str, float] | None = None,
        answer: Mapping[str, float] | None = None,
        seconds: float = 0.0,
    ) -> Assessment:
        """Judge one finished answer.

        Args:
            request_id: of the answer.
            relevance: float (N,), the proxy's output at the prompt's image tokens.
            grids: where these tokens lie, one grid a picture.
            signals: what the states gave beside the map (`Measured.signals`).
            answer: `token_probability` and `token_entropy`, as far as known.
            seconds: wall time that measuring took.
        """
        score = self.scorer.conclude(relevance, grids, signals, answer)
        features, confidence, calibrated = score.features, score.confidence, score.calibrated
        published = self._policies.current if self._policies is not None else None
        shown = published.apply(features, confidence, calibrated) if published is not None else None
        if published is not None and shown is not None:
            (features, confidence), calibrated = shown, True
            decision = self.policy.decide(features, confidence, calibrated, published.threshold)
        else:
            published = None
            decision = self.policy.decide(features, confidence, calibrated)
        stored = self._store is not None and (decision.flagged or decision.sampled)
        with self.counters.together():
            self.counters.add("seen")
            self.counters.add("scored")
            self.counters.add("confidence_sum", value=confidence)
            if decision.flagged:
                self.counters.add("flagged", decision.reason or "")
            self.counters.begin()
        return Assessment(
            request_id=request_id,
            maps=score.maps,
            entropy=score.features["map_entropy"],
            features=features,
            confidence=confidence,
            calibrated=calibrated,
            flagged=decision.flagged,
            reason=decision.reason,
            threshold=decision.threshold,
            proxy_version=self.scorer.folder.version,
            scoring_seconds=seconds,
            sampled=decision.sampled,
            sample_rate=self.policy.sample_rate,
            case_id=str(uuid.uuid4()) if stored else None,
            policy=None if published is None else published.version,
        )

    def skip(self, request_id: str, reason: str) -> Assessment:
        """The assessment of an answer that cannot be scored, counted by reason, e.g. "no_image"."""
        with self.counters.together():
            self.counters.add("seen")
            self.counters.add("skipped", reason)
        with self.guard("telemetry"):
            self._telemetry.skipped(reason)
        return Assessment(
            request_id=request_id,
            maps=(),
            entropy=None,
            features={},
            confidence=None,
            calibrated=False,
            flagged=False,
            reason=reason,
            threshold=None,
            proxy_version=self.scorer.folder.version,
            scoring_seconds=0.0,
            scored=False,
        )

    def record(self, answer: Answer, assessment: Assessment) -> None:
        """Hand an answer to telemetry and store; returns at once, whatever their state."""
        self._writer.put((answer, assessment), keep=assessment.flagged, size=bytes_of(answer, assessment))
        self._telemetry_queue(+1)

    def lost(self, assessment: Assessment, reason: str) -> None:
        """Count an assessed answer that could not be handed over."""
        if assessment.scored:
            self.counters.end("dropped", reason)

    # --- on the background thread ---------------------------------------------------------------------------------

    def _deliver(self, batch: list[_Item], *, emitting: bool = True) -> None:
        cases: list[Case] = []
        sampled_out = broken = 0  # counted when nothing can fail any more, or a failure would count them again
        for served, assessment in batch:
            answer = self._redact(served, needed=assessment.case_id is not None or captures_content())
            ids = SpanIds()
            if emitting:
                ids = self._emit(answer, assessment)
                self._model = answer.model
                with self.guard("drift"):
                    self._compare(answer.model, assessment)
            if assessment.case_id is None:
                sampled_out += assessment.scored
                continue
            with self.guard("case") as guarded:
                cases.append(
                    make_case(
                        answer,
                        assessment,
                        server=self.server,
                        picture_mode=self.settings.pictures,
                        trace_id=ids.trace_id,
                        span_id=ids.span_id,
                        failed=lambda stage: self.counters.add("failed", stage),
                    )
                )
            broken += guarded.failed
        if not self._writer.pass_on(lambda: self._take(cases)):
            return  # `_rescue` has them
        for _ in batch:
            self._telemetry_queue(-1)
        self.counters.end("sampled_out", count=sampled_out)
        if broken:
            self._lose("case_error", broken)
        if cases and self._outbox is not None:
            self._outbox.deliver_taken(cases)

    def _emit(self, answer: Answer, assessment: Assessment) -> SpanIds:
        """Tell telemetry, unless it held up the cases behind it a moment ago: exporters may work in this thread."""
        ids = SpanIds()
        if not self._emitting.allows():
            self.counters.add("failed", "telemetry")
            return ids
        began = time.monotonic()
        with self.guard("telemetry"):
            ids = self._telemetry.emit(answer, assessment)
        if time.monotonic() - began < _SLOW_EMIT_SECONDS:
            self._emitting.succeeded()
        elif self._emitting.failed(at_once=True):
            logger.warning("fastrm-monitor: telemetry holds up the cases, so it is left out for a while")
        return ids

    def _take(self, cases: list[Case]) -> None:
        if self._outbox is not None:
            self._outbox.take(cases)

    def _compare(self, model: str, assessment: Assessment) -> None:
        """Whether the traffic still looks like its reference; says so once a window."""
        if assessment.confidence is None:
            return
        found = self._drift.add(comparable(assessment.features, assessment.confidence, assessment.calibrated))
        if not found:
            return
        self._telemetry.drifted(model, found)
        if self._drift_log is not None:
            self._drift_log.add(self.server, model, found, away=self.store_away)

    def _show_failures(self) -> None:
        with self.guard("telemetry"):
            counts = self.counters.snapshot()
            self._telemetry.failures({reason: n for (name, reason), n in counts.items() if name == "failed"})

    def _idle(self) -> None:
        self._show_failures()
        if self._outbox is not None:
            self._outbox.idle()
        if self._policies is not None and self._model is not None and not self.store_away:
            with self.guard("policy"):
                self._policies.turn(self._model)
        if self._retention is not None and not self.store_away and not self._writer.crowded:
            self._retention.turn()

    def _rescue(self, batch: list[_Item], until: float) -> list[_Item]:
        """At the end, when the background thread hangs: what is left goes to the spool, as far as the time allows.

        Flagged answers first, without telemetry, and without pictures where the time would not be enough for them.
        Rather than lose a flagged one, it takes up to twice the time.
        """
        if self._outbox is None:
            return batch
        self._outbox.rescue()
        latest = until + self.settings.flush_seconds
        batch.sort(key=lambda item: not item[1].flagged)
        each = 0.0  # seconds that an answer took, with its pictures
        while batch and (began := time.monotonic()) < (latest if batch[0][1].flagged else until):
            some, batch = batch[:8], batch[8:]
            hasty = began + each * (len(some) + len(batch)) > until
            if hasty:
                self.counters.add("failed", "picture", sum(len(answer.pictures) for answer, _ in some))
                some = [(replace(answer, pictures=()), assessment) for answer, assessment in some]
            self.counters.add("failed", "telemetry", len(some))
            self._deliver(some, emitting=False)
            if not hasty:
                each = (time.monotonic() - began) / len(some)
        for item in batch:
            self._dropped(item, "shutdown")
        if batch:
            logger.warning("fastrm-monitor: closed in haste, %d answers are lost", len(batch))
        self._outbox.save_traffic()
        return []

    def _hurry(self) -> None:
        if self._outbox is not None:
            self._outbox.hurry()
        if self._retention is not None:
            self._retention.stop()

    def _retained(self, name: str, count: int) -> None:
        self.counters.add(name, "retention", count)

    def _dropped(self, item: _Item, reason: str) -> None:
        self._telemetry_queue(-1)
        if item[1].scored:
            self._lose(reason)

    def _lose(self, reason: str, count: int = 1) -> None:
        self.counters.end("dropped", reason, count)
        with self.guard("telemetry"):
            self._telemetry.dropped(reason, count)

    def _telemetry_queue(self, delta: int) -> None:
        with self.guard("telemetry"):
            self._telemetry.queue_changed(delta)

    # --- ends -----------------------------------------------------------------------------------------------------

    def balance(self) -> Balance:
        """Where every answer is at this moment; `Balance.holds` is true whenever it is asked."""
        return self.counters.balance()

    @property
    def pending(self) -> int:
        """Answers that were scored and not yet stored, sampled out or dropped; what the spool has is among them."""
        return self.balance().pending

    @property
    def spooled(self) -> int:
        """Cases that wait on disk for the store."""
        return 0 if self._outbox is None else self._outbox.spooled

    @property
    def store_away(self) -> bool:
        """Whether the store failed so often that it is left alone for a while."""
        return self._outbox is not None and self._outbox.circuit_open

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was handed over is stored, spooled or dropped; False when `timeout` seconds were too few."""
        done = self._writer.flush(timeout)
        if done and self._outbox is not None:  # else the store does not answer, and would hold up the caller once more
            self._outbox.write_traffic()
        with self.guard("telemetry"):
            self._telemetry.flush()
        return done

    def close(self) -> None:
        """Flush within `FASTRM_FLUSH_SECONDS`, then let go of store and telemetry; idempotent."""
        self._writer.close()
        if self._outbox is not None and not self._writer.pending:  # see `flush`
            with self.guard("store"):
                self._outbox.close()
        self._show_failures()
        with self.guard("telemetry"):
            self._telemetry.close()
        if self._store is not None:
            with self.guard("store"):
                self._store.close()
