"""In the process that the answers leave from: what the worker found out + question, answer, pictures -> assessment.

One `Desk` for each engine front end (`LLM`, `AsyncLLM`). It judges an answer in the call that completes it, so that
the assessment leaves with the answer; telemetry and store follow in the background.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fastrm_monitor.integrations.prompts import question_of
from fastrm_monitor.integrations.vllm.pictures import PictureShelf
from fastrm_monitor.monitor import Monitor
from fastrm_monitor.scoring.patches import PatchLayout, PictureInput
from fastrm_monitor.scoring.scorer import answer_features
from fastrm_monitor.types import Answer, Assessment

_UNSERVED = {"abort": "aborted", "error": "engine_error"}
"""Ends of a request that are no answer, and the reason that they are skipped with."""


@dataclass(eq=False)
class Served:
    """A request in flight. `prompt`, `pictures` and `headers` are the engine's own objects, not copies.

    Attributes:
        request_id: as the caller knows it; with several answers to a request, theirs too.
        prompt: the prompt's tokens; None where it came as embeddings.
        pictures: the engine's hash of each picture, in prompt order.
        image_tokens: how many of the prompt's tokens are patches.
        headers: trace headers of the caller.
        context: the caller's OpenTelemetry context.
        started_ns: time the request came, in nanoseconds since the epoch.
    """

    request_id: str
    prompt: Sequence[int] | None
    pictures: Sequence[str]
    image_tokens: int
    headers: Mapping[str, str] | None = None
    context: Any = field(default_factory=otel_context.get_current)
    started_ns: int = field(default_factory=time.time_ns)
    relevance: bytes | None = None
    signals: Mapping[str, float] | None = None
    reason: str | None = None
    log_probabilities: bytes = b""
    entropies: bytes = b""


class Desk:
    """Judges the answers of one front end.

    Args:
        monitor: scores, decides, records.
        layout: the model's patch geometry.
        tokenizer: the model's.
        model_name: name of the model in telemetry and records.
        shelf: where the front end's pictures are kept.
    """

    def __init__(
        self, monitor: Monitor, layout: PatchLayout, tokenizer: Any, model_name: str, shelf: PictureShelf
    ) -> None:
        self.monitor, self.shelf = monitor, shelf
        self._layout, self._tokenizer, self._name = layout, tokenizer, model_name
        self._silence = "capture_failed"  # why the worker has nothing to say, unless it says why

    def admit(self, served: Served) -> Served:
        """A request is in flight; `finish` or `drop` ends that."""
        self.shelf.claim(served.pictures)
        return served

    def receive(self, served: Served | None, parts: Mapping[str, Any]) -> None:
        """Take in what the engine sent (`ledger.parts_of`): of a request, if it is watched, and of itself."""
        if served is not None:
            served.log_probabilities += parts.get("log_probabilities", b"")
            served.entropies += parts.get("entropies", b"")
            if "reason" in parts:
                served.relevance, served.signals, served.reason = parts["relevance"], parts["signals"], parts["reason"]
        for stage, times in parts.get("failed", {}).items():
            self.monitor.counters.add("failed", stage, times)
        if parts.get("about"):
            self.monitor.counters.add("engine", parts["about"])
            self._silence = "proxy_refused" if parts.get("refused") else "capture_failed"

    def finish(
        self, served: Served, *, tokens: Sequence[int], text: Callable[[], str], reason: str, at_end_token: bool
    ) -> Assessment:
        """Judge a complete answer and hand it over.

        Args:
            served: its request.
            tokens: of the answer, the end token included.
            text: makes the answer's text.
            reason: why it ended: "stop", "length", "abort", "error".
            at_end_token: whether the last token is an end token and no part of the answer.
        """
        began = time.perf_counter()
        assessment = None
        length = max(len(tokens) - (1 if at_end_token else 0), 0)
        with self.monitor.guard("score"):
            assessment = self._judge(served, tokens, length, reason, began)
        if assessment is None:
            assessment = self.monitor.skip(served.request_id, "scorer_error")
        with self.monitor.guard("record") as guarded:
            self.monitor.record(self._answer(served, length, text, reason, assessment), assessment)
        if guarded.failed:
            self.monitor.lost(assessment, "record_error")
        self.shelf.release(served.pictures)
        return assessment

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer whose request asked for tokens only."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def drop(self, served: Served, reason: str) -> Assessment:
        """A request that ends without an answer."""
        self.shelf.release(served.pictures)
        return self.monitor.skip(served.request_id, reason)

    def _judge(self, served: Served, tokens: Sequence[int], length: int, reason: str, began: float) -> Assessment:
        skip = _UNSERVED.get(reason)
        if skip is None and not served.image_tokens:
            skip = "no_image"
        if skip is None and served.relevance is None:
            skip = served.reason or self._silence
        if skip is not None:
            return self.monitor.skip(served.request_id, skip)
        relevance = np.frombuffer(served.relevance or b"", np.float32)
        if not np.isfinite(relevance).all():
            return self.monitor.skip(served.request_id, "states_not_finite")
        sizes = [self.shelf.get(identity) for identity in served.pictures]
        grids = self._layout.grids(
            served.image_tokens, [PictureInput(kept.size if kept is not None else None) for kept in sizes]
        )
        return self.monitor.assess(
            served.request_id,
            relevance,
            grids,
            signals=served.signals,
            answer=_numbers(served, len(tokens), length),
            seconds=time.perf_counter() - began,
        )

    def _answer(
        self, served: Served, length: int, text: Callable[[], str], reason: str, assessment: Assessment
    ) -> Answer:
        prompt = served.prompt if served.prompt is not None else ()
        kept = assessment.case_id is not None
        return Answer(
            request_id=served.request_id,
            model=self._name,
            question=question_of(self._tokenizer, prompt, self._layout.image_token_id),
            text=text().strip(),
            pictures=tuple(self.shelf.maker(identity) for identity in served.pictures) if kept else (),
            started_ns=served.started_ns,
            ended_ns=time.time_ns(),
            input_tokens=len(prompt),
            output_tokens=length,
            finish_reason=reason,
            context=_context(served),
        )


def _numbers(served: Served, count: int, length: int) -> dict[str, float]:
    """Token probability and entropy of the answer's `length` tokens; nothing unless all `count` were measured."""
    log_probabilities = np.frombuffer(served.log_probabilities, np.float32)
    entropies = np.frombuffer(served.entropies, np.float32)
    if not len(log_probabilities) == len(entropies) == count or not count:
        return {}
    if not (np.isfinite(log_probabilities).all() and np.isfinite(entropies).all()):
        return {}  # the model's logits were not finite
    # An empty answer is judged by its end token: that is what the model said.
    own = slice(0, max(length, 1))
    return answer_features(log_probabilities[own].tolist(), entropies[own].tolist())


def _context(served: Served) -> Any:
    """The caller's span: the one of an instrumented server, else the one that its `traceparent` names."""
    if served.headers and not trace.get_current_span(served.context).get_span_context().is_valid:
        return TraceContextTextMapPropagator().extract(served.headers, served.context)
    return served.context
