"""Confidence: one number for "this answer is right", from everything that the same pass gives.

With labels it is a logistic model over named features, calibrated on questions whose right answers are known. Without
labels nothing is a probability of being right: the token probability is shown instead (1 - E_spatial where the engine
gives none) and called uncalibrated. Plain numbers in and out; it does not know how features are made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fastrm_monitor.errors import ProxyError

ANSWER_FEATURES = ("token_probability", "token_entropy")
"""exp of the mean log probability, and mean entropy in nats, of the answer's tokens without the end token."""


_PROBABILITIES = {"token_probability", "p_ik", "evidence"}


class Confidence(Protocol):
    """Anything that turns features into a confidence."""

    def __call__(self, features: Mapping[str, float]) -> tuple[float, bool]:
        """The confidence in 0..1 and whether it is calibrated."""


@dataclass(frozen=True)
class Uncalibrated:
    """The score shown when there is nothing to calibrate on."""

    def __call__(self, features: Mapping[str, float]) -> tuple[float, bool]:
        """The token probability, else 1 - E_spatial."""
        if "token_probability" in features:
            return features["token_probability"], False
        return 1.0 - features["map_entropy"], False


@dataclass(frozen=True)
class LogisticConfidence:
    """P(right) = sigmoid(w . (x - mean) / scale + b) over named features; `confidence.json` of a proxy folder.

    Attributes:
        features: names, in the order of the other lists.
        mean: subtracted from each feature.
        scale: each feature is divided by it.
        weights: w.
        intercept: b.
        threshold: confidence below which answers are flagged, unless the user sets another.
        probe: weights of the P(IK) probe on the state h_t (d values); empty when there is none.
        probe_bias: its bias.
        fitted_on: data set, number of answers and pictures, accuracy, calibration error on held-out pictures.
    """

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    threshold: float
    probe: tuple[float, ...] = ()
    probe_bias: float = 0.0
    fitted_on: dict[str, Any] = field(default_factory=dict)

    def __call__(self, features: Mapping[str, float]) -> tuple[float, bool]:
        """P(right); falls back to `Uncalibrated` when the engine did not give every feature."""
        if any(name not in features for name in self.features):
            return Uncalibrated()(features)
        return logistic(self.intercept + sum(self.contributions(features).values())), True

    def contributions(self, features: Mapping[str, float]) -> dict[str, float]:
        """What each feature adds to the log odds of being right, against its mean; exact, because the model is linear.

        Args:
            features: every feature by name; others are left out.
        """
        rows = zip(self.features, self.mean, self.scale, self.weights, strict=True)
        return {name: (transform(name, features[name]) - m) / s * w for name, m, s, w in rows}

    def save(self, folder: Path) -> None:
        """Write `confidence.json`."""
        (folder / "confidence.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def log_odds(probability: float) -> float:
    """The log odds; probabilities nearer to 0 or 1 than a millionth are taken for that far."""
    p = min(max(probability, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def logistic(logit: float) -> float:
    """The probability of log odds."""
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def transform(name: str, value: float) -> float:
    """Probabilities enter the logistic model as log odds, everything else as it is."""
    if name in _PROBABILITIES:
        return log_odds(value)
    return value


def load_confidence(folder: Path) -> LogisticConfidence | None:
    """The confidence of a proxy folder; None when it was never calibrated.

    Raises:
        ProxyError: the file cannot be understood.
    """
    path = folder / "confidence.json"
    if not path.exists():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is not a JSON object")
        lists = ("features", "mean", "scale", "weights", "probe")
        known: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in raw.items()}
        made = LogisticConfidence(**known)
        sizes = {len(getattr(made, name)) for name in ("features", "mean", "scale", "weights")}
        numbers = [*made.mean, *made.scale, *made.weights, *made.probe]
        numbers += [made.intercept, made.threshold, made.probe_bias]
        if any(isinstance(number, bool) for number in numbers) or not all(
            isinstance(raw.get(n, []), list) for n in lists
        ):
            raise ValueError("values of another type than the documented one")
        if len(sizes) != 1 or not all(math.isfinite(number) for number in numbers) or 0 in made.scale:
            raise ValueError("lists of unequal length or numbers that are not finite")
        if not 0 <= made.threshold <= 1:
            raise ValueError(f"threshold is {made.threshold}, which is not between 0 and 1")
        if not all(isinstance(name, str) for name in made.features):
            raise ValueError("features are not names")
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ProxyError(
            f"{path} cannot be read ({reason}): distil again, or delete it to serve uncalibrated."
        ) from None
    return made
