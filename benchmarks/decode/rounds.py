"""Alone, alone again and watched, side by side."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.decode.load import Clock, Generate, Load, wait

ALONE, AGAIN, WATCHED = "alone", "again", "watched"


@dataclass
class Rounds:
    """What the rounds of one batch size took; milliseconds by variant, a row for each round.

    Attributes:
        mode: how a step ran.
        batch: B.
        times: (rounds, 3) of each variant: first token, step, whole call.
        same: whether watched answers were those made alone.
        claimed: `scoring_seconds` of the watched answers, in milliseconds.
    """

    mode: str
    batch: int
    times: dict[str, np.ndarray] = field(default_factory=dict)
    same: bool = True
    claimed: list[float] = field(default_factory=list)

    def ratios(self, variant: str, figure: int) -> np.ndarray:
        """Of a variant to alone, round by round."""
        return self.times[variant][:, figure] / self.times[ALONE][:, figure]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Median and the ends of its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(values, (4000, len(values))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def side_by_side(handle: Any, load: Load, rounds: int, mode: str) -> Rounds:
    """The rounds of one batch size."""
    device = load.inputs["input_ids"].device
    now = time.perf_counter if device.type == "cuda" else time.process_time
    dice = random.Random(0)  # noqa: S311 - an order, not a secret
    functions: dict[str, Generate] = {
        ALONE: handle._generate,
        AGAIN: handle._generate,
        WATCHED: handle._model.generate,
    }
    result = Rounds(mode, load.batch)
    times: dict[str, list[tuple[float, float, float]]] = {variant: [] for variant in functions}
    for number in range(rounds + 1):
        answers: dict[str, Tensor] = {}
        for variant in dice.sample(list(functions), len(functions)):
            generate = functions[variant]
            handle.flush()
            load.fresh().run(generate, tokens=2)
            load.fresh()
            wait(device)
            began = now()
            clock = Clock(device, load.batch, load.tokens)
            answers[variant] = load.run(generate, clock=clock)
            wait(device)
            whole = 1000 * (now() - began)
            if number:  # the first round warms up
                times[variant].append((*clock.milliseconds(), whole))
        result.claimed += taken(handle, 2 * load.batch)[load.batch :]
        result.same &= torch.equal(answers[WATCHED], answers[ALONE])
    result.times = {variant: np.array(rows) for variant, rows in times.items()}
    return result


def taken(handle: Any, answers: int) -> list[float]:
    """Take the assessments of the watched calls: all scored, by every feature. Their scoring times in milliseconds."""
    assessments = handle.pop()
    reasons = Counter(one.reason or "not calibrated" for one in assessments if not (one.scored and one.calibrated))
    failed = {
        key: count for key, count in handle.monitor.counters.snapshot().items() if key[0] in ("failed", "dropped")
    }
    if len(assessments) != answers or reasons or failed:
        raise SystemExit(f"{len(assessments)} of {answers} answers were seen; not scored: {dict(reasons)}; {failed}.")
    return [1000 * one.scoring_seconds for one in assessments]
