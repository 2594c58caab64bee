"""The whole road of an answer: states -> map -> confidence -> decision -> {telemetry, store}.

    engine's states --Scorer.measure--> relevance --Scorer.conclude--> confidence --Policy--> decision
        --Assessment, to the caller at once--> queue --background thread--> telemetry, then store

An integration calls `assess` or `skip` for every finished answer and `record` to hand it over; both return at once.
The monitor knows no engine.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrm_monitor.config import Settings, load_settings
from fastrm_monitor.errors import MissingExtraError, ProxyError
from fastrm_monitor.guard import Guard, log_once
from fastrm_monitor.records.cases import make_case
from fastrm_monitor.records.counters import Counters
from fastrm_monitor.records.forks import renew_in_child
from fastrm_monitor.records.store import Store
from fastrm_monitor.records.writer import Writer
from fastrm_monitor.scoring.policy import Policy
from fastrm_monitor.telemetry.emit import Telemetry
from fastrm_monitor.telemetry.setup import telemetry_from_environment
from fastrm_monitor.types import Answer, Assessment

if TYPE_CHECKING:
    from fastrm_monitor.scoring.patches import PatchGrid
    from fastrm_monitor.scoring.scorer import Scorer

_Item = tuple[Answer, Assessment]


class Monitor:
    """Scores answers, decides, and hands them to telemetry and store; one for each served model.

    Args:
        scorer: scores with one proxy.
        settings: see `Settings`.
        store: where cases go; None stores nothing. The monitor closes it.
        telemetry: where spans, events and metrics go. The monitor closes it.
        policy: decides what is flagged; made from the settings when None.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        settings: Settings,
        store: Store | None,
        telemetry: Telemetry,
        policy: Policy | None = None,
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
        self._writer: Writer[_Item] = Writer(
            self._deliver,
            size=settings.queue_size,
            flush_seconds=settings.flush_seconds,
            dropped=self._dropped,
            idle=self._write_traffic,
        )

    @classmethod
    def open(
        cls, *, proxy: str | Path | None = None, store: str | None = None, provider: str = "custom", **settings: Any
    ) -> Monitor:
        """A monitor from a proxy folder and a store URL; what is not given comes from `FASTRM_*`.

        Args:
            proxy: the proxy folder.
            store: SQLAlchemy URL of the store.
            provider: `gen_ai.provider.name` of the telemetry.
            **settings: further fields of `Settings`.

        Raises:
            FastRMError: a setting, the proxy or the store cannot be used; the sentence says what to do.
        """
        chosen = load_settings(proxy=None if proxy is None else str(proxy), store=store, **settings)
        if chosen.proxy is None:
            raise ProxyError("No proxy is given: pass proxy=FOLDER or set FASTRM_PROXY.")
        try:
            from fastrm_monitor.scoring.scorer import Scorer
        except ModuleNotFoundError as error:
            raise MissingExtraError("Scoring answers", "hf") from error
        scorer = Scorer(chosen.proxy)
        opened = Store(chosen.store.get_secret_value()) if chosen.store is not None else None
        telemetry = telemetry_from_environment(chosen.dashboard_url, provider, chosen.flush_seconds)
        return cls(scorer, settings=chosen, store=opened, telemetry=telemetry)

    def after_fork(self) -> None:
        """A child process is a server of its own; `Counters`, `Writer` and `Store` renew themselves."""
        self.server = f"{socket.gethostname()}:{os.getpid()}"
        self._writing_traffic = threading.Lock()
        self.policy.after_fork()

    # --- in the caller's thread ---------------------------------------------------------------------------------

    def assess(
        self,
        request_id: str,
        relevance: np.ndarray,
        grids: Sequence[PatchGrid],
        *,
        p_ik: float | None = None,
        answer: Mapping[str, float] | None = None,
        seconds: float = 0.0,
    ) -> Assessment:
        """Judge one finished answer.

        Args:
            request_id: of the answer.
            relevance: float (N,), the proxy's output at the prompt's image tokens.
            grids: where these tokens lie, one grid a picture.
            p_ik: the probe's output, if the proxy folder has a probe.
            answer: `token_probability` and `token_entropy`, as far as known.
            seconds: wall time that measuring took.
        """
        score = self.scorer.conclude(relevance, grids, p_ik, answer)
        decision = self.policy.decide(score.features, score.confidence, score.calibrated)
        stored = self._store is not None and (decision.flagged or decision.sampled)
        self.counters.add("seen")
        self.counters.add("scored")
        self.counters.add("confidence_sum", value=score.confidence)
        if decision.flagged:
            self.counters.add("flagged", decision.reason or "")
        return Assessment(
            request_id=request_id,
            maps=score.maps,
            entropy=score.features["map_entropy"],
            features=score.features,
            confidence=score.confidence,
            calibrated=score.calibrated,
            flagged=decision.flagged,
            reason=decision.reason,
            threshold=decision.threshold,
            proxy_version=self.scorer.folder.version,
            scoring_seconds=seconds,
            sampled=decision.sampled,
            sample_rate=self.policy.sample_rate,
            case_id=str(uuid.uuid4()) if stored else None,
        )

    def skip(self, request_id: str, reason: str) -> Assessment:
        """The assessment of an answer that cannot be scored, counted by reason, e.g. "no_image"."""
        self.counters.add("seen")
        self.counters.add("skipped", reason)
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
        self._telemetry_queue(+1)
        self._writer.put((answer, assessment), keep=assessment.flagged)

    def lost(self, assessment: Assessment, reason: str) -> None:
        """Count an assessed answer that could not be handed over."""
        if assessment.scored:
            self.counters.add("dropped", reason)

    # --- on the background thread ---------------------------------------------------------------------------------

    def _deliver(self, batch: list[_Item]) -> None:
        cases = []
        for answer, assessment in batch:
            trace_id = span_id = None
            with self.guard("telemetry"):
                ids = self._telemetry.emit(answer, assessment)
                trace_id, span_id = ids.trace_id, ids.span_id
            self._telemetry_queue(-1)
            if assessment.case_id is None:
                if assessment.scored:
                    self.counters.add("sampled_out")
                continue
            with self.guard("case") as guarded:
                cases.append(
                    make_case(
                        answer,
                        assessment,
                        server=self.server,
                        picture_mode=self.settings.pictures,
                        trace_id=trace_id,
                        span_id=span_id,
                        failed=lambda stage: self.counters.add("failed", stage),
                    )
                )
            if guarded.failed:
                self.counters.add("dropped", "case_error")
        if cases and self._store is not None:
            try:
                self._store.add(cases)
                self.counters.add("stored", value=len(cases))
            except Exception as error:
                self.counters.add("failed", "store")
                self.counters.add("dropped", "store_error", len(cases))
                with self.guard("telemetry"):
                    self._telemetry.dropped("store_error", len(cases))
                log_once("fastrm-monitor: cases could not be stored: %s", "store", error)

    def _dropped(self, item: _Item, reason: str) -> None:
        self._telemetry_queue(-1)
        self.lost(item[1], reason)
        with self.guard("telemetry"):
            self._telemetry.dropped(reason)

    def _telemetry_queue(self, delta: int) -> None:
        with self.guard("telemetry"):
            self._telemetry.queue_changed(delta)

    def _write_traffic(self) -> None:
        if self._store is None:
            return
        with self._writing_traffic:  # whoever flushes waits for the counts that the background thread is writing
            rows = self.counters.drain()
            if not rows:
                return
            try:
                self._store.add_traffic(self.server, rows)
            except Exception as error:
                self.counters.restore(rows)
                log_once("fastrm-monitor: traffic counts could not be stored yet: %s", "traffic", error)

    # --- ends -----------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Answers handed over and not yet stored, sampled out or dropped."""
        return self._writer.pending

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over so far is stored or dropped; False when `timeout` seconds were too few."""
        done = self._writer.flush(timeout)
        if done:  # else the store does not answer, and would hold up the caller once more
            self._write_traffic()
        with self.guard("telemetry"):
            self._telemetry.flush()
        return done

    def close(self) -> None:
        """Flush within `FASTRM_FLUSH_SECONDS`, then let go of store and telemetry; idempotent."""
        self._writer.close()
        if not self.pending:  # see `flush`
            self._write_traffic()
        with self.guard("telemetry"):
            self._telemetry.close()
        if self._store is not None:
            with self.guard("store"):
                self._store.close()
