"""Calibration: the confidence is honest about itself, and ranks by more than the traffic teaches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastrm_monitor.lab.calibration import CONFIDENCE_FEATURES, Held, Probe, features, fit_confidence, fit_probe
from fastrm_monitor.lab.distill import last_states
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.scoring.checkpoint import ProxyFolder
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.patches import FixedGridLayout
from fastrm_monitor.scoring.proxy import Proxy, ProxyConfig, build_proxy
from fastrm_monitor.scoring.scorer import Scorer
from tests.tiny import made_up_labels, with_right

GRID = FixedGridLayout(4, 3, 3)


def proxy_of(width: int = 16) -> Proxy:
    torch.manual_seed(0)
    return build_proxy(ProxyConfig(width, "query-row", 4, grounding=True, evidence=True)).eval().requires_grad_(False)


def rows_of(labels: Labels) -> list[int]:
    return list(range(len(labels)))


def fit(labels: Labels, *beside: Labels, flag_rate: float = 0.2, probe: Probe | None = None, width: int = 16):
    held = [Held(one, rows_of(one)) for one in (labels, *beside)]
    return fit_confidence(proxy_of(width), probe, held, GRID, flag_rate=flag_rate, data="made up")


def auroc(score: np.ndarray, right: np.ndarray) -> float:
    return float(np.mean(score[right][:, None] > score[~right][None, :]))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return made_up_labels(tmp_path_factory.mktemp("taught") / "labels.safetensors", pictures=80, questions=5, seed=1)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return made_up_labels(tmp_path_factory.mktemp("labels") / "labels.safetensors", pictures=80, questions=5)


def test_exported_probe_is_sklearns(taught: Labels) -> None:
    """The probe's weights give, on raw states, the probabilities of the scaled sklearn model they came from."""
    probe = fit_probe(taught, rows_of(taught))
    assert probe is not None
    states, right = last_states(taught, rows_of(taught)), np.array([one.right for one in taught.facts])
    own = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(states, right)
    assert probe(torch.from_numpy(states)).numpy() == pytest.approx(own.predict_proba(states)[:, 1], abs=1e-4)


def test_no_probe_without_errors(taught: Labels) -> None:
    """A model that is always right teaches no probe."""
    assert fit_probe(with_right(taught, lambda row: True), rows_of(taught)) is None


def test_features_are_those_of_serving(made_up: Labels, taught: Labels) -> None:
    """What the confidence is fitted on is what the scorer gives the same states when serving."""
    proxy, probe = proxy_of(), fit_probe(taught, rows_of(taught))
    assert probe is not None
    weights = tuple(float(value) for value in probe.weights)
    fitted = LogisticConfidence(("p_ik",), (0.0,), (1.0,), (1.0,), 0.0, 0.5, weights, probe.bias)
    scorer = Scorer(ProxyFolder(proxy, proxy.config, "abc", torch.ones(16), fitted, Path("nowhere")))
    rows = [3, 0, 250]
    maps, numbers = features(proxy, probe, made_up, rows, GRID)
    for row, own, found in zip(rows, maps, numbers, strict=True):
        one = made_up.batch([row])
        ((relevance, signals),) = scorer.measure(one.states, one.image, one.valid).rows()
        score = scorer.conclude(relevance, GRID.grids(9, []), signals, made_up.facts[row].numbers)
        assert set(found) == set(score.features) >= set(CONFIDENCE_FEATURES)
        assert found == pytest.approx(score.features, abs=1e-5)
        assert own.values == pytest.approx(score.maps[0].values, abs=1e-6)


def test_confidence_is_calibrated(made_up: Labels, taught: Labels, tmp_path: Path) -> None:
    """On other pictures the fitted confidence is near the share of right answers, and tells right from wrong."""
    probe = fit_probe(taught, rows_of(taught))
    fitted = fit(made_up, probe=probe)
    assert fitted is not None
    other = made_up_labels(tmp_path / "other.safetensors", pictures=200, questions=4, seed=9)
    said = np.array([fitted(one)[0] for one in features(proxy_of(), probe, other, rows_of(other), GRID)[1]])
    right = np.array([facts.right for facts in other.facts])
    assert said.mean() == pytest.approx(right.mean(), abs=0.08)
    assert np.mean(said < fitted.threshold) == pytest.approx(0.2, abs=0.06)
    high, low = right[said >= np.median(said)], right[said < np.median(said)]
    assert high.mean() > low.mean() + 0.3
    assert fitted.fitted_on["held_out_auroc"] == pytest.approx(auroc(said, right), abs=0.08)


def test_questions_beside_the_traffic_teach_the_order(made_up: Labels, tmp_path: Path) -> None:
    """A score that says something beside the traffic only enters the order; the traffic alone sets the level."""
    rng = np.random.default_rng(3)

    def with_probability(labels: Labels, apart: float) -> Labels:
        """Token probabilities that differ by `apart` between right and wrong answers."""
        made = with_right(labels, lambda row: labels.facts[row].right)
        made.facts = [
            replace(one, numbers={**one.numbers, "token_probability": 0.5 + (apart if one.right else 0) + value})
            for one, value in zip(made.facts, rng.uniform(-0.05, 0.05, len(made.facts)), strict=True)
        ]
        return made

    plain = with_probability(made_up, 0.0)
    seed = made_up_labels(tmp_path / "beside.safetensors", pictures=80, questions=5, seed=5)
    beside = with_probability(with_right(seed, lambda row: row % 5 == 0), 0.2)
    alone, both = fit(plain), fit(plain, beside)
    assert alone is not None
    assert both is not None
    place = both.features.index("token_probability")
    assert abs(alone.weights[place]) < 0.5 < both.weights[place]
    right = np.array([one.right for one in plain.facts])
    numbers = features(proxy_of(), None, plain, rows_of(plain), GRID)[1]
    assert np.mean([both(one)[0] for one in numbers]) == pytest.approx(right.mean(), abs=0.02)
    assert (both.fitted_on["answers"], both.fitted_on["answers_beside_the_traffic"]) == (400, 400)
    assert both.fitted_on["accuracy"] == pytest.approx(right.mean())


def test_confidence_is_judged_out_of_fold(tmp_path: Path) -> None:
    """Where right and wrong are drawn by lot, the stated AUROC is that of guessing, however well it was learnt."""
    labels = made_up_labels(tmp_path / "few.safetensors", pictures=10, questions=6)
    rng = np.random.default_rng(4)
    labels = with_right(labels, lambda row: bool(rng.random() < 0.5))
    fitted = fit(labels)
    assert fitted is not None
    right = np.array([one.right for one in labels.facts])
    by_heart = np.array([fitted(one)[0] for one in features(proxy_of(), None, labels, rows_of(labels), GRID)[1]])
    assert auroc(by_heart, right) > 0.6 > 0.55 > fitted.fitted_on["held_out_auroc"]


def test_what_the_confidence_says_of_itself(made_up: Labels, taught: Labels) -> None:
    """Counts, accuracy and the flag rate are stated, and it rests on every feature that there is."""
    fitted = fit(made_up, flag_rate=0.3, probe=fit_probe(taught, rows_of(taught)))
    assert fitted is not None
    stated = fitted.fitted_on
    right = [facts.right for facts in made_up.facts]
    assert (stated["data"], stated["answers"], stated["pictures"]) == ("made up", 400, 80)
    assert stated["answers_beside_the_traffic"] == 0
    assert stated["accuracy"] == pytest.approx(np.mean(right))
    assert stated["flag_rate"] == 0.3
    assert fitted.features == CONFIDENCE_FEATURES
    assert 0.0 <= stated["held_out_ece"] < 0.15
    json.dumps(stated, allow_nan=False)


@pytest.mark.parametrize(
    "wrong",
    [set(), set(range(19)), set(range(400)), set(range(381))],
    ids=["none wrong", "19 wrong", "all wrong", "19 right"],
)
def test_too_few_to_calibrate(made_up: Labels, wrong: set[int]) -> None:
    """With fewer than 20 right or wrong answers nothing is calibrated."""
    assert fit(with_right(made_up, lambda row: row not in wrong)) is None


def test_wrong_answers_on_one_picture(tmp_path: Path) -> None:
    """When all wrong answers are about one picture, none can be held out: nothing is calibrated, nothing fails."""
    labels = made_up_labels(tmp_path / "labels.safetensors", pictures=6, questions=25)
    assert fit(with_right(labels, lambda row: row >= 25)) is None
