"""The decision: which answers a reviewer should see, and which are stored whatever they look like.

With a calibrated confidence the threshold is a number that can be justified. Without, a share of the running traffic is
flagged, lowest scores first. A random sample of all answers is drawn beside that: labels of flagged answers alone say
nothing about the rest.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np

REASONS = {
    "low_confidence": "the calibrated confidence is below the threshold",
    "low_token_probability": "its token probability is among the lowest of the recent traffic",
    "high_map_entropy": "its relevance is among the most scattered of the recent traffic",
}
"""Why an answer is flagged, in words; the keys are the reason labels."""

_REASON_OF_SCORE = {"token_probability": "low_token_probability", "map_entropy": "high_map_entropy"}


@dataclass(frozen=True)
class Decision:
    """Flagged or not, why, and the threshold it was held against; sampled or not."""

    flagged: bool
    reason: str | None
    threshold: float | None
    sampled: bool


class RunningQuantile:
    """Whether a score is among the lowest `rate` of the last `window` ones; nothing is, before `warm_up` scores."""

    def __init__(self, rate: float, window: int = 1000, warm_up: int = 20) -> None:
        self._rate, self._warm_up = rate, warm_up
        self._scores: deque[float] = deque(maxlen=window)
        self.after_fork()

    def after_fork(self) -> None:
        """In a child process: a lock that nobody holds; the scores so far are the child's too."""
        self._lock = Lock()

    def __call__(self, score: float) -> tuple[bool, float | None]:
        """Take `score` in; returns whether it is low and the quantile it was held against."""
        with self._lock:
            known = np.fromiter(self._scores, float)
            if math.isfinite(score):  # one that is not would silence the quantile for a whole window
                self._scores.append(score)
        if len(known) < self._warm_up:
            return False, None
        bound = _quantile(known, self._rate)
        return score < bound, bound


def _quantile(values: np.ndarray, rate: float) -> float:
    """The quantile with linear interpolation; numpy's imports modules at its first call, which a fork may interrupt."""
    ordered = np.sort(values)
    place = rate * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


class Policy:
    """Decides for one served model; safe to call from several threads.

    Args:
        threshold: flag calibrated confidences below; needed when confidence is calibrated.
        flag_rate: share of the running traffic to flag while it is not.
        flag_score: "token_probability" or "map_entropy", the score that the rate applies to.
        sample_rate: probability of storing an answer whatever its decision.
        seed: of the sample; None draws from the system. Its own generator: the caller's random state is not touched.

    Raises:
        ValueError: the flag score is unknown.
    """

    def __init__(
        self,
        *,
        threshold: float | None,
        flag_rate: float = 0.1,
        flag_score: str = "token_probability",
        sample_rate: float = 0.05,
        seed: int | None = None,
    ) -> None:
        if flag_score not in _REASON_OF_SCORE:
            raise ValueError(f"unknown flag score {flag_score!r}, expected one of {', '.join(_REASON_OF_SCORE)}")
        self.threshold, self.flag_score, self.sample_rate = threshold, flag_score, sample_rate
        # Two scores share no scale, and an engine may give the token probability of some answers only.
        self._low = {score: RunningQuantile(flag_rate) for score in _REASON_OF_SCORE}
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret

    def after_fork(self) -> None:
        """In a child process: see `RunningQuantile.after_fork`."""
        for low in self._low.values():
            low.after_fork()

    def decide(
        self, features: Mapping[str, float], confidence: float, calibrated: bool, threshold: float | None = None
    ) -> Decision:
        """The decision on one answer; `threshold` is the one of a published policy, in place of the policy's own."""
        sampled = self._random.random() < self.sample_rate
        bar = self.threshold if threshold is None else threshold
        if calibrated and bar is not None:
            flagged = confidence < bar
            return Decision(flagged, "low_confidence" if flagged else None, bar, sampled)
        # An engine may give no token probability; the map is always there.
        score = self.flag_score if self.flag_score in features else "map_entropy"
        flagged, bound = self._low[score](-features[score] if score == "map_entropy" else features[score])
        if bound is not None and score == "map_entropy":
            bound = -bound
        return Decision(flagged, _REASON_OF_SCORE[score] if flagged else None, bound, sampled)
