"""The confidence: a number that was worked out on paper, and never called calibrated when it is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fastrm_monitor.scoring.confidence import LogisticConfidence, Uncalibrated, load_confidence, transform

FITTED = LogisticConfidence(
    features=("token_probability", "map_entropy"),
    mean=(0.0, 0.4),
    scale=(2.0, 0.1),
    weights=(1.0, -0.5),
    intercept=0.25,
    threshold=0.6,
)


def test_by_hand() -> None:
    """Log odds of 0.8 are ln 4: 0.25 + (ln 4 - 0) / 2 - 0.5 (0.5 - 0.4) / 0.1 = ln 2 - 0.25."""
    confidence, calibrated = FITTED({"token_probability": 0.8, "map_entropy": 0.5, "map_mass": 99.0})
    odds = 2 * math.exp(-0.25)
    assert confidence == pytest.approx(odds / (1 + odds), abs=1e-12)
    assert calibrated


def test_contributions_by_hand() -> None:
    """Each feature adds its own part to the log odds, nothing where it is average, and other features none."""
    parts = FITTED.contributions({"token_probability": 0.8, "map_entropy": 0.4, "map_mass": 99.0})
    assert parts == {"token_probability": pytest.approx(math.log(4) / 2), "map_entropy": 0.0}


def test_feature_missing() -> None:
    """Without all its features nothing is calibrated: the uncalibrated score is shown and called so."""
    assert FITTED({"token_probability": 0.8}) == (0.8, False)
    assert FITTED({"map_entropy": 0.3}) == (pytest.approx(0.7), False)


def test_uncalibrated() -> None:
    """The token probability, whatever the map says; 1 - E_spatial where the engine gives none."""
    assert Uncalibrated()({"token_probability": 0.35, "map_entropy": 0.1}) == (0.35, False)
    assert Uncalibrated()({"map_entropy": 0.25, "p_ik": 0.9}) == (0.75, False)


@pytest.mark.parametrize("name", ["token_probability", "p_ik"])
def test_certain_probabilities(name: str) -> None:
    """Probabilities of exactly 0 and 1 have finite log odds, in order."""
    assert transform(name, 0.5) == 0.0
    assert -20 < transform(name, 0.0) < transform(name, 1e-3) < transform(name, 1.0) < 20


def test_other_features_enter_as_they_are() -> None:
    """Only probabilities become log odds."""
    assert transform("map_entropy", 0.8) == 0.8
    assert transform("token_entropy", 3.5) == 3.5


@pytest.mark.parametrize(("intercept", "expected"), [(-1e6, 0.0), (1e6, 1.0)])
def test_extreme_logits(intercept: float, expected: float) -> None:
    """However far the logit, the confidence is a probability and nothing overflows."""
    extreme = LogisticConfidence(("map_entropy",), (0.0,), (1.0,), (1.0,), intercept, threshold=0.5)
    assert extreme({"map_entropy": 0.5}) == (expected, True)


def test_round_trip(tmp_path: Path) -> None:
    """`confidence.json` is plain JSON and reads back the same; without the file there is no confidence."""
    assert load_confidence(tmp_path) is None
    full = LogisticConfidence(**{**vars(FITTED), "probe": (0.1, -0.2), "probe_bias": 0.3, "fitted_on": {"answers": 7}})
    full.save(tmp_path)
    assert json.loads((tmp_path / "confidence.json").read_text())["features"] == ["token_probability", "map_entropy"]
    assert load_confidence(tmp_path) == full
