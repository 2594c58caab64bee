"""Decisions: what is flagged, why, how often, and that deciding disturbs nobody else's random numbers."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastrm_monitor.scoring.policy import REASONS, Decision, Policy, RunningQuantile

NOTHING = {"token_probability": 0.5, "map_entropy": 0.5}


def test_threshold() -> None:
    """A calibrated confidence below the threshold is flagged, one at it is not."""
    policy = Policy(threshold=0.6, sample_rate=0.0)
    assert policy.decide(NOTHING, 0.59, True) == Decision(True, "low_confidence", 0.6, False)
    assert policy.decide(NOTHING, 0.6, True) == Decision(False, None, 0.6, False)


@pytest.mark.parametrize(("threshold", "calibrated"), [(0.6, False), (None, True)])
def test_threshold_needs_calibration(threshold: float | None, calibrated: bool) -> None:
    """An uncalibrated number is not held against the threshold, nor anything against none."""
    policy = Policy(threshold=threshold, sample_rate=0.0)
    assert policy.decide(NOTHING, 0.01, calibrated) == Decision(False, None, None, False)


def test_warm_up() -> None:
    """Nothing is flagged before 20 scores; then the lowest are, with the bound they were held against."""
    policy = Policy(threshold=None, flag_rate=0.25, sample_rate=0.0)
    for number in range(20):
        low = policy.decide({"token_probability": 0.5 - 0.01 * number, "map_entropy": 0.5}, 0.5, False)
        assert low == Decision(False, None, None, False)
    # 0.31 .. 0.50 in steps of 0.01: a quarter of the way from the lowest is 0.31 + 0.25 x 0.19.
    flagged = policy.decide({"token_probability": 0.3, "map_entropy": 0.5}, 0.5, False)
    assert (flagged.flagged, flagged.reason) == (True, "low_token_probability")
    assert flagged.threshold == pytest.approx(0.3575)
    assert not policy.decide({"token_probability": 0.45, "map_entropy": 0.5}, 0.5, False).flagged


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_flag_rate(rate: float) -> None:
    """Over much traffic the share of flagged answers is the rate."""
    low, scores = RunningQuantile(rate), np.random.default_rng(0).normal(size=4000)
    share = np.mean([low(float(score))[0] for score in scores])
    assert share == pytest.approx(rate, abs=0.015)


def test_running_window() -> None:
    """The rate follows the traffic: after a drift, what is usual now is no longer flagged."""
    low, rng = RunningQuantile(0.1, window=200), np.random.default_rng(0)
    for score in rng.uniform(0.8, 1.0, 200):
        low(float(score))
    assert low(0.5)[0]
    flagged = [low(float(score))[0] for score in rng.uniform(0.4, 0.6, 400)]
    assert np.mean(flagged[:20]) == 1.0
    assert np.mean(flagged[200:]) < 0.2


def test_map_entropy_is_flagged_when_high() -> None:
    """Of the map entropy the highest are flagged, and the bound is an entropy."""
    policy = Policy(threshold=None, flag_score="map_entropy", sample_rate=0.0)
    for number in range(50):
        policy.decide({"token_probability": 0.5, "map_entropy": 0.4 + 0.001 * number}, 0.5, False)
    high = policy.decide({"token_probability": 0.9, "map_entropy": 0.9}, 0.5, False)
    assert (high.flagged, high.reason) == (True, "high_map_entropy")
    assert 0.4 < (high.threshold or 0) < 0.45
    assert not policy.decide({"token_probability": 0.1, "map_entropy": 0.1}, 0.5, False).flagged


def test_no_token_probability() -> None:
    """An engine without token probabilities is judged by its maps, and the two scores are never mixed."""
    policy = Policy(threshold=None, sample_rate=0.0)
    for number in range(60):
        policy.decide({"token_probability": 0.5 + 0.001 * number, "map_entropy": 0.5}, 0.5, False)
        assert not policy.decide({"map_entropy": 0.5}, 0.5, False).flagged
    assert policy.decide({"map_entropy": 0.6}, 0.5, False).reason == "high_map_entropy"
    assert policy.decide({"token_probability": 0.4, "map_entropy": 0.5}, 0.5, False).reason == "low_token_probability"


def test_score_that_is_no_number() -> None:
    """A NaN is not flagged and does not blind the quantile for what follows."""
    low = RunningQuantile(0.1)
    for number in range(40):
        low(0.5 + 0.01 * number)
    assert not low(float("nan"))[0]
    assert low(0.1)[0]


def test_sample_rate() -> None:
    """The share of sampled answers is the rate, flagged or not; rates 0 and 1 are never and always."""
    policy = Policy(threshold=0.5, sample_rate=0.1, seed=0)
    for confidence in (0.1, 0.9):
        share = np.mean([policy.decide(NOTHING, confidence, True).sampled for _ in range(4000)])
        assert share == pytest.approx(0.1, abs=0.02)
    for rate in (0, 1):
        policy = Policy(threshold=0.5, sample_rate=rate)
        assert {policy.decide(NOTHING, 0.9, True).sampled for _ in range(100)} == {bool(rate)}


def test_own_random_state() -> None:
    """Sampling moves neither Python's nor numpy's global random numbers, and a seed repeats the draw."""
    random.seed(3)
    np.random.seed(3)
    before = (random.getstate(), np.random.get_state()[1].tolist())
    draws = []
    for _ in range(2):
        policy = Policy(threshold=0.5, sample_rate=0.5, seed=1)
        draws.append([policy.decide(NOTHING, 0.9, True).sampled for _ in range(50)])
    assert draws[0] == draws[1]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_several_threads() -> None:
    """Several threads may decide at once; none fails and every score is taken in."""
    low = RunningQuantile(0.1, window=5000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: low(n / 4000), range(4000)))
    assert low(-1.0)[1] == pytest.approx(np.quantile(np.arange(4000) / 4000, 0.1))


def test_every_reason_has_words() -> None:
    """The reasons that decisions give are the documented ones."""
    assert set(REASONS) == {"low_confidence", "low_token_probability", "high_map_entropy"}


def test_unknown_score() -> None:
    """A flag score that does not exist is refused when the policy is made, not at the first answer."""
    with pytest.raises(ValueError, match="unknown flag score 'p_ik', expected one of token_probability, map_entropy"):
        Policy(threshold=None, flag_score="p_ik")
