"""States in, assessment out: the scorer without any engine."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrm_monitor.errors import ModelError, ProxyError
from fastrm_monitor.scoring.checkpoint import save_proxy
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.patches import FixedGridLayout, PatchGrid, PictureInput
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy
from fastrm_monitor.scoring.scorer import Scorer, answer_features
from tests.tiny import tiny_scorer

WIDTH, SIDE = 8, 2
GRID = FixedGridLayout(4, SIDE, SIDE)


def fitted(probe: tuple[float, ...] = ()) -> LogisticConfidence:
    return LogisticConfidence(("p_ik",), (0.0,), (1.0,), (2.0,), 0.5, threshold=0.5, probe=probe, probe_bias=-0.25)


def prompt(length: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    states = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))
    image = torch.zeros(length, dtype=torch.bool)
    image[1:5] = True
    return states, image


def test_score() -> None:
    """One prompt's states become a map in 0..1 of the right shape and place, features and a confidence."""
    states, image = prompt()
    one = tiny_scorer()
    score = one.score(
        states, image, GRID.grids(4, [PictureInput((200, 100))]), [math.log(0.5), math.log(0.125)], [2, 1]
    )
    (own,) = score.maps
    expected = torch.sigmoid(one.folder.proxy(states[None], image[None], image[None]))[0][image].view(SIDE, SIDE)
    assert own.values == pytest.approx(expected.numpy(), abs=1e-6)
    assert own.values.dtype == np.float32
    assert own.region == (0.25, 0.0, 0.75, 1.0)
    assert score.features["token_probability"] == pytest.approx(0.25)
    assert score.features["token_entropy"] == 1.5
    assert score.features["map_max"] == pytest.approx(float(expected.max()))
    assert (score.confidence, score.calibrated) == (pytest.approx(0.25), False)


def test_without_token_probabilities() -> None:
    """An engine that gives none gets 1 - map entropy, called uncalibrated."""
    states, image = prompt()
    score = tiny_scorer().score(states, image, GRID.grids(4, []))
    assert score.confidence == pytest.approx(1 - score.features["map_entropy"])
    assert not score.calibrated
    assert "token_probability" not in score.features


def test_calibrated_with_probe() -> None:
    """The probe reads the last state, and its output enters the calibrated confidence."""
    probe = tuple(0.1 * n for n in range(WIDTH))
    states, image = prompt()
    score = tiny_scorer(fitted(probe)).score(states, image, GRID.grids(4, []))
    logit = sum(weight * float(value) for weight, value in zip(probe, states[-1], strict=True)) - 0.25
    assert score.features["p_ik"] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
    assert score.confidence == pytest.approx(1 / (1 + math.exp(-(0.5 + 2 * logit))), abs=1e-4)
    assert score.calibrated


@pytest.mark.parametrize("form", ["query-row", "self-attention"])
def test_batch_equals_single(form: str) -> None:
    """A left-padded batch gives, row by row, what each prompt gives alone."""
    one = tiny_scorer(fitted(tuple(0.1 for _ in range(WIDTH))), form)
    prompts = [prompt(7, 1), prompt(10, 2), prompt(8, 3)]
    states, image, valid = torch.full((3, 10, WIDTH), 5.0), *(torch.zeros(3, 10, dtype=torch.bool) for _ in range(2))
    for row, (own, where) in enumerate(prompts):
        states[row, -len(own) :], image[row, -len(own) :], valid[row, -len(own) :] = own, where, True
    rows = one.measure(states, image, valid).rows()
    for (relevance, signals), (own, where) in zip(rows, prompts, strict=True):
        assert relevance.shape == (4,)
        alone = one.score(own, where, GRID.grids(4, []))
        assert relevance.reshape(SIDE, SIDE) == pytest.approx(alone.maps[0].values, abs=1e-6)
        assert set(signals) == ({"p_ik", "grounding", "evidence"} if form == "query-row" else {"p_ik"})
        assert signals == pytest.approx({name: alone.features[name] for name in signals}, abs=1e-6)


def test_prompts_with_different_numbers_of_pictures() -> None:
    """A batch may mix prompts without, with one and with two pictures; each row has its own tokens, in order."""
    one = tiny_scorer()
    states = torch.randn(3, 10, WIDTH)
    image = torch.zeros(3, 10, dtype=torch.bool)
    image[1, 2:6] = True
    image[2, :4] = image[2, 5:9] = True
    measured = one.measure(states, image, torch.ones_like(image))
    rows = [relevance for relevance, _ in measured.rows()]
    assert [len(row) for row in rows] == [0, 4, 8]
    assert rows[2] == pytest.approx(torch.cat([measured.relevance[2, :4], measured.relevance[2, 5:9]]).numpy())
    first, second = one.conclude(rows[2], GRID.grids(8, [])).maps
    assert first.values.ravel().tolist() == rows[2][:4].tolist()
    assert second.values.ravel().tolist() == rows[2][4:].tolist()


def test_measuring_leaves_no_graph() -> None:
    """Measuring inside a caller's training step tracks no gradients."""
    states, image = prompt()
    measured = tiny_scorer().measure(states[None].requires_grad_(True), image[None], torch.ones_like(image)[None])
    assert not measured.relevance.requires_grad


@pytest.mark.parametrize("tokens", [0, 4, 12])
def test_grids_of_another_length(tokens: int) -> None:
    """Grids that do not take exactly the prompt's image tokens are an error, not a shifted map."""
    with pytest.raises(ModelError, match=f"grids have {tokens} image tokens and the prompt has 8"):
        tiny_scorer().conclude(np.full(8, 0.5), GRID.grids(tokens, []))


def test_states_that_are_no_numbers() -> None:
    """A model that overflowed has no map: an error says so."""
    states, image = prompt()
    states[-1, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        tiny_scorer().score(states, image, GRID.grids(4, []))


def test_answer_features() -> None:
    """The probability is the geometric mean over tokens, the entropy the mean; nothing comes of nothing."""
    assert answer_features([], []) == {}
    assert answer_features([math.log(0.9), math.log(0.4)], []) == {"token_probability": pytest.approx(0.6)}
    assert answer_features([], [0.5, 1.5]) == {"token_entropy": 1.0}


def test_folder_by_path(tmp_path: Path) -> None:
    """A scorer is made from a folder's path; one that is not there is refused."""
    torch.manual_seed(0)
    save_proxy(tmp_path, build_proxy(ProxyConfig(WIDTH, key_size=4)), torch.ones(WIDTH))
    states, image = prompt()
    grid = [PatchGrid(np.arange(4).reshape(2, 2), 4)]
    read = Scorer(str(tmp_path)).to(torch.device("cpu")).score(states, image, grid)
    assert read.maps[0].values == pytest.approx(tiny_scorer().score(states, image, grid).maps[0].values)
    with pytest.raises(ProxyError, match="no proxy folder"):
        Scorer(tmp_path / "nowhere")
