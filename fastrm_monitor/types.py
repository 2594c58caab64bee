"""The values that travel along the road: what is known of an answer, and what was found out about it.

Frozen, free of torch, and the only thing that scoring, records, telemetry and the dashboard need to share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Region = tuple[float, float, float, float]
"""(left, top, right, bottom) as fractions of a picture's width and height. The patch grid covers this part of the
picture: less than all of it after a centre crop, more (below 0 or above 1) after padding."""

WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class RelevanceMap:
    """The relevance of one picture's patches.

    Attributes:
        values: float32 (gh, gw), each in 0..1: probability that the answer rests on the patch.
        region: the part of the picture that the grid covers.
    """

    values: np.ndarray
    region: Region = WHOLE


@dataclass(frozen=True, eq=False)
class Assessment:
    """What monitoring found out about one answer.

    Attributes:
        request_id: the caller's id of the request, or one made up.
        maps: one relevance map for each picture of the request, in prompt order; empty when not scored.
        entropy: E_spatial over all patches of the request, 0..1; None when not scored.
        features: named numbers that the confidence rests on (see `scoring.entropy` and `scoring.confidence`).
        confidence: P(answer is correct) when `calibrated`, else the uncalibrated score; None when not scored.
        calibrated: whether `confidence` was calibrated on labelled answers.
        flagged: whether a reviewer should look.
        reason: why it was flagged, or why it was not scored; low cardinality, e.g. "low_confidence", "no_image".
        threshold: the threshold that `confidence` (or the map's entropy) was held against; None when there was none.
        proxy_version: identifies the proxy's weights.
        scoring_seconds: wall time that scoring took, shared evenly by the answers of a batch.
        scored: False when there is nothing to score (`reason` says why).
        sampled: drawn into the random sample of answers that are stored whether flagged or not.
        sample_rate: the probability of that draw.
        case_id: id of the stored case; None when the answer is neither flagged nor sampled.
        policy: version of the published policy that calibrated and decided; None where none was in force.
    """

    request_id: str
    maps: tuple[RelevanceMap, ...]
    entropy: float | None
    features: Mapping[str, float]
    confidence: float | None
    calibrated: bool
    flagged: bool
    reason: str | None
    threshold: float | None
    proxy_version: str
    scoring_seconds: float
    scored: bool = True
    sampled: bool = False
    sample_rate: float = 0.0
    case_id: str | None = None
    policy: int | None = None

    @property
    def relevance(self) -> np.ndarray | None:
        """Float32 (gh, gw) of the first picture; None when not scored. `maps` has all pictures."""
        return self.maps[0].values if self.maps else None


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer as it was served; with its `Assessment` it makes a case.

    Attributes:
        request_id: the caller's id of the request, or one made up.
        model: name of the model, as telemetry and records show it.
        question: the prompt's text without image placeholders.
        text: the answer's text.
        pictures: one function for each picture of the request that returns it as an RGB image. They run on the
            background thread, so that decoding never delays an answer.
        started_ns: time the request began, in nanoseconds since the epoch.
        ended_ns: time the answer was complete, likewise.
        input_tokens: prompt length, image tokens included.
        output_tokens: answer length.
        finish_reason: "stop" or "length", None when unknown.
        context: the caller's OpenTelemetry context, None when there was none.
        user_key: the caller's key of the user, for deletion on request; None when unknown.
    """

    request_id: str
    model: str
    question: str
    text: str
    pictures: tuple[Callable[[], Image], ...]
    started_ns: int
    ended_ns: int
    input_tokens: int
    output_tokens: int
    finish_reason: str | None = None
    context: Any = field(default=None, repr=False)
    user_key: str | None = None
