"""From the confidence that the proxy folder gives to P(right) as labelled traffic has it; part of a published policy.

Strictly increasing, whatever it was fitted on: it changes no order, so a threshold chosen by rank holds after it.
Plain numbers in and out; how it is fitted is `calibration.fitting`'s.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from fastrm_monitor.errors import DataError
from fastrm_monitor.scoring.confidence import log_odds, logistic

Source = Literal["calibrated", "token_probability", "map_entropy"]
"""What a score is: the proxy folder's calibrated confidence, or what stands in for it where there is none."""
SOURCES: tuple[Source, ...] = get_args(Source)

_TILT = 1e-3  # of the score itself in the steps, so that they are strictly increasing
_MOST_KNOTS = 10_000


def kept_as(source: Source) -> str:
    """Name of the feature that keeps the score before recalibration."""
    return f"{source}_score"


def score_of(features: Mapping[str, float], confidence: float, calibrated: bool) -> tuple[float, Source]:
    """The score that an answer had before any recalibration, and what it is."""
    for source in SOURCES:
        if kept_as(source) in features:
            return features[kept_as(source)], source
    if calibrated:
        return confidence, "calibrated"
    return confidence, "token_probability" if "token_probability" in features else "map_entropy"


@dataclass(frozen=True)
class Recalibration:
    """P(right) of a score in 0..1.

    Attributes:
        source: the scores that it is for; others are left as they are.
        slope: of the log odds (Platt 1999), above 0; used without knots.
        intercept: likewise.
        knots: (score, probability), both rising, between which lines are drawn (isotonic regression); empty for Platt.
    """

    source: Source = "calibrated"
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def __call__(self, score: float) -> float:
        """The probability of being right."""
        if not self.knots:
            return logistic(self.slope * log_odds(score) + self.intercept)
        return (1 - _TILT) * self._between(score) + _TILT * min(max(score, 0.0), 1.0)

    def _between(self, score: float) -> float:
        place = bisect_right(self.knots, score, key=lambda knot: knot[0])
        if place == 0 or place == len(self.knots):
            return self.knots[min(place, len(self.knots) - 1)][1]
        (x0, y0), (x1, y1) = self.knots[place - 1], self.knots[place]
        return y0 + (y1 - y0) * (score - x0) / (x1 - x0)

    def as_json(self) -> dict[str, Any]:
        """As the store keeps it."""
        if self.knots:
            return {"source": self.source, "knots": [list(knot) for knot in self.knots]}
        return {"source": self.source, "slope": self.slope, "intercept": self.intercept}

    @classmethod
    def from_json(cls, raw: Any) -> Recalibration:
        """What `as_json` gave.

        Raises:
            DataError: it is none of its, or not increasing.
        """
        try:
            knots = tuple((float(x), float(y)) for x, y in raw.get("knots", ()))
            made = cls(raw["source"], float(raw.get("slope", 1.0)), float(raw.get("intercept", 0.0)), knots)
            numbers = [made.slope, made.intercept, *(value for knot in knots for value in knot)]
            rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))
            inside = all(0 <= y <= 1 for _, y in knots)
            right = made.source in SOURCES and made.slope > 0 and len(knots) <= _MOST_KNOTS
            if not (right and rising and inside and all(map(math.isfinite, numbers))):
                raise ValueError("its numbers are out of range")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"The recalibration of a policy cannot be read ({error}): publish another policy."
            ) from None
        return made
