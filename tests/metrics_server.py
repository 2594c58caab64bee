"""What the metrics of a serving process look like: answers all the time, of a kind that a line on stdin chooses.

Run by test_alerting in a process of its own, because the page that Prometheus scrapes lives as long as its process.
Lines: `ordinary`, `shifted` (less confident, more flagged), `unscored` (nothing can be scored), `drop`, `fail`.
"""

from __future__ import annotations

import sys
import threading
import time

import numpy as np

from fastrm_monitor.drift.watch import DriftWatch
from fastrm_monitor.telemetry.setup import telemetry_from_environment
from fastrm_monitor.types import Answer, Assessment

ANSWERS_A_TURN, SECONDS_A_TURN = 4, 0.04


def answer() -> Answer:
    now = time.time_ns()
    return Answer("r", "llava", "what colour?", "red", (), now, now, input_tokens=70, output_tokens=1)


def assessment(confidence: float, entropy: float) -> Assessment:
    return Assessment(
        request_id="r",
        maps=(),
        entropy=entropy,
        features={"map_entropy": entropy},
        confidence=confidence,
        calibrated=True,
        flagged=confidence < 0.4,
        reason="low_confidence" if confidence < 0.4 else None,
        threshold=0.4,
        proxy_version="abc",
        scoring_seconds=0.002,
    )


def main() -> None:
    telemetry = telemetry_from_environment("http://dash", "transformers")
    watch = DriftWatch(size=100, minimum=100, period=0.2, seed=0)
    rng = np.random.default_rng(0)
    lines = ["ordinary"]
    threading.Thread(target=lambda: lines.extend(line.strip() for line in sys.stdin), daemon=True).start()
    print("ready", flush=True)  # noqa: T201 - read by the test
    done = 1
    while True:
        for line in lines[done:]:
            if line == "drop":
                telemetry.dropped("queue_full", 3)
            elif line == "fail":
                telemetry.failures({"score": 1.0})
        done = len(lines)
        kind = [line for line in lines if line not in ("drop", "fail")][-1]
        for _ in range(ANSWERS_A_TURN):
            if kind == "unscored":
                telemetry.skipped("partial_prefill")
                continue
            one = assessment(rng.beta(2, 4) if kind == "shifted" else rng.beta(8, 2), rng.beta(5, 3))
            telemetry.emit(answer(), one)
            telemetry.drifted("llava", watch.add({"confidence": one.confidence or 0, **one.features}))
        time.sleep(SECONDS_A_TURN)


if __name__ == "__main__":
    main()
