"""One call of `generate`, how long it takes, and the memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

Generate = Callable[..., Tensor]


class Clock(StoppingCriteria):
    """Stops nothing; marks when the first and the last token are chosen, on a GPU by events, which wait for nothing."""

    def __init__(self, device: torch.device, batch: int, tokens: int) -> None:
        self._on_gpu = device.type == "cuda"
        self._never = torch.zeros(batch, dtype=torch.bool, device=device)
        self._tokens, self._seen = tokens, 0
        self.marks = [self._mark()]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Called by `generate` after each token."""
        self._seen += 1
        if self._seen in (1, self._tokens):
            self.marks.append(self._mark())
        return self._never

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self) -> tuple[float, float]:
        """To the first token, and of each step behind it; the device has nothing left to do."""
        if len(self.marks) != 3:
            raise SystemExit(f"generate made {self._seen} tokens in place of {self._tokens}.")
        start, first, last = self.marks
        spans = [a.elapsed_time(b) if self._on_gpu else 1000 * (b - a) for a, b in ((start, first), (first, last))]
        return spans[0], spans[1] / (self._tokens - 1)


@dataclass(frozen=True)
class Load:
    """What is generated.

    Attributes:
        inputs: of the prompts.
        tokens: of each answer.
        cache: a static KV cache; None for the one that `generate` makes.
    """

    inputs: dict[str, Tensor]
    tokens: int
    cache: StaticCache | None = None

    @property
    def batch(self) -> int:
        """B."""
        return len(self.inputs["input_ids"])

    def fresh(self) -> Load:
        """Itself, with an empty cache."""
        if self.cache is not None:
            self.cache.reset()
        return self

    def run(self, generate: Generate, tokens: int | None = None, clock: Clock | None = None) -> Tensor:
        """One call of `generate`; the end token is forbidden, so that every answer has its length."""
        more: dict[str, Any] = {}
        if self.cache is not None:
            more = {"past_key_values": self.cache, "disable_compile": True}
        if clock is not None:
            more["stopping_criteria"] = StoppingCriteriaList([clock])
        count = tokens or self.tokens
        return generate(**self.inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, **more)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(load: Load, generate: Generate) -> int:
    """Most bytes allocated on the GPU during one call."""
    load.run(generate, tokens=2)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    load.run(generate)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
