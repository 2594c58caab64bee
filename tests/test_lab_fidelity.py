"""Fidelity and the pointing game: numbers that were worked out on paper."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fastrm_monitor.lab.fidelity import (
    LABEL_THRESHOLDS,
    THRESHOLDS,
    FidelityDraws,
    auprc,
    fidelity,
    inside,
    overlaps,
    pointing,
    precisions,
    question_blind,
    swept,
)
from fastrm_monitor.lab.intervals import Draws, over_pictures
from fastrm_monitor.types import RelevanceMap


def arrays(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in rows]


def test_one_map_by_hand() -> None:
    """Four patches, relevant the first and the third; the proxy calls the first two."""
    found = fidelity(arrays([0.9, 0.6, 0.2, 0.1]), arrays([0.8, 0.1, 0.4, 0.0]), label_threshold=0.3)
    assert (found["questions"], found["patches"], found["label_threshold"]) == (1, 4, 0.3)
    assert (found["base_rate"], found["all_negative_accuracy"]) == (0.5, 0.5)
    assert found["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["iou"] == pytest.approx(1 / 3)
    assert found["rank_correlation"] == pytest.approx(0.8)  # ranks 4 3 2 1 and 4 2 3 1: 1 - 6 x 2 / (4 x 15)
    assert found["thresholds"]["0.5"] == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert found["thresholds"]["0.7"] == {
        "accuracy": 0.75,
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
    }
    assert list(found["thresholds"]) == [str(bound) for bound in THRESHOLDS]


def test_several_maps() -> None:
    """Patches of all questions are pooled for the confusion; IoU and rank correlation are means over questions."""
    proxy = arrays([0.9, 0.1], [0.9, 0.8, 0.1, 0.2])
    teacher = arrays([1.0, 0.0], [0.0, 0.0, 0.9, 1.0])
    found = fidelity(proxy, teacher)
    assert found["base_rate"] == pytest.approx(3 / 6)
    assert found["thresholds"]["0.5"]["accuracy"] == pytest.approx(2 / 6)
    assert found["iou"] == pytest.approx((1 + 0) / 2)
    # The teacher's two zeros tie: ranks 1.5 1.5 3 4 against 4 3 1 2 correlate by -0.7379.
    assert found["rank_correlation"] == pytest.approx((1 - 0.73786) / 2, abs=1e-4)


def test_a_level_map_gains_nothing_within_questions() -> None:
    """A map that only knows how much of each picture is relevant has an AUPRC, but none within the questions."""
    teacher = arrays([1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0])
    level = [np.full(4, one.mean(), np.float32) for one in teacher]
    found = fidelity(level, teacher)
    assert found["auprc"] == pytest.approx(0.75 * 0.75 + 0.25 * 0.5)  # recall 3/4 at precision 3/4, all at 4/8
    assert found["auprc"] > found["base_rate"]
    assert found["auprc_within"] == found["base_rate_within"] == pytest.approx((0.75 + 0.25) / 2)
    assert fidelity(teacher, teacher)["auprc_within"] == 1
    draws = Draws([str(number % 30) for number in range(90)], resamples=200)
    bounds = FidelityDraws(level * 30, teacher * 30, 0.3, draws).intervals()
    assert bounds["auprc_within_gain"][1] < 0
    assert bounds["auprc_gain"][0] > 0.05


def test_shuffled_maps_gain_nothing_within_questions() -> None:
    """Chance is the mean over all orders of the patches, above the share that is relevant: not even luck counts."""
    teacher = np.array([1, 0, 0, 1, 0])
    orders = [np.array(order, float) for order in permutations(range(5))]
    _, (share, *_), (chance, *_) = precisions([orders[0]], [teacher], 0.3)
    assert (share, chance) == (0.4, pytest.approx(np.mean([auprc([order], [teacher], 0.3) for order in orders])))
    rng = np.random.default_rng(0)
    truth = [(np.arange(36) < rng.integers(1, 6)).astype(float) for _ in range(200)]
    shuffled = [rng.permutation(36).astype(float) for _ in truth]
    low, high = FidelityDraws(shuffled, truth, 0.3, Draws([str(n) for n in range(200)])).intervals()[
        "auprc_within_gain"
    ]
    assert low < 0 < high


def test_figures_within_questions_need_pictures() -> None:
    """Where all but a few questions have no relevant patch, there is a number and no interval."""
    teacher = arrays(*[[1, 0]] * 19, *[[0, 0]] * 200)
    proxy = arrays(*[[0.9, 0.1]] * 219)
    bounds = FidelityDraws(proxy, teacher, 0.3, Draws([str(n) for n in range(219)])).intervals()
    assert fidelity(proxy, teacher)["auprc_within"] == 1
    assert bounds["auprc_within"] is bounds["auprc_within_gain"] is bounds["rank_correlation"] is None
    assert bounds["auprc"] is not None


def test_maps_that_do_not_know_the_question_are_told_apart() -> None:
    """A map of where objects lie as a rule is no better than the mean map, one of all objects than another question's.

    Both are above chance.
    """
    rng = np.random.default_rng(0)
    proxies: dict[str, list[np.ndarray]] = {"place": [], "objects": [], "asked": []}
    teacher, pictures = [], []
    for picture in range(60):
        objects = rng.choice(10, 6, replace=False)  # among the first of 36 patches
        for question in range(3):
            pictures.append(f"picture-{picture}")
            asked = objects[2 * question : 2 * question + 2]
            teacher.append(np.isin(np.arange(36), asked).astype(float))
            noise = rng.uniform(0, 0.1, 36)
            proxies["place"].append((np.arange(36) < 10) * 0.5)
            proxies["objects"].append(np.isin(np.arange(36), objects) * 0.5 + noise)
            proxies["asked"].append(teacher[-1] * 0.5 + noise)
    draws = Draws(pictures, resamples=300)
    found = {name: question_blind(maps, teacher, 0.3, pictures, draws) for name, maps in proxies.items()}
    for name, maps in proxies.items():
        assert FidelityDraws(maps, teacher, 0.3, draws).intervals()["auprc_within_gain"][0] > 0.01, name
        assert {own["n"] for own in found[name].values()} == {180}
    assert found["place"]["mean_map"]["difference"] == pytest.approx(0, abs=1e-9)
    low, high = found["objects"]["other_questions"]["ci95"]
    assert low < 0 < high
    assert found["objects"]["mean_map"]["ci95"][0] > 0.1
    assert found["asked"]["mean_map"]["ci95"][0] > 0.3
    assert found["asked"]["other_questions"]["ci95"][0] > 0.5
    # Another question's map, by hand: its two patches come first, then noise and the asked ones among it.
    assert found["asked"]["other_questions"]["auprc_within"] < 0.15
    alone = [f"{name}-{number}" for number, name in enumerate(pictures)]
    assert question_blind(teacher, teacher, 0.3, alone, Draws(alone))["other_questions"] == {
        "n": 0,
        "auprc_within": None,
        "difference": None,
        "ci95": None,
    }


def test_label_threshold_is_inclusive_and_swept() -> None:
    """A teacher relevance at the threshold counts as relevant; another threshold gives another base rate."""
    teacher = arrays([0.25, 0.5, 0.75, 0.0])
    proxy = arrays([0.1, 0.2, 0.3, 0.4])
    assert fidelity(proxy, teacher, 0.5)["base_rate"] == 0.5
    assert fidelity(proxy, teacher, 0.2)["base_rate"] == 0.75


def test_nothing_relevant() -> None:
    """Without a positive patch there is no AUPRC; calling none is then a perfect overlap, calling one is none."""
    found = fidelity(arrays([0.1, 0.2], [0.9, 0.2]), arrays([0.0, 0.0], [0.0, 0.0]))
    assert (found["auprc"], found["rank_correlation"], found["base_rate"]) == (None, None, 0.0)
    assert found["iou"] == 0.5
    assert found["thresholds"]["0.5"] == {"accuracy": 0.75, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_even_maps_have_no_rank_correlation() -> None:
    """A map without an order is left out of the mean instead of making it NaN."""
    found = fidelity(arrays([0.5, 0.5], [0.1, 0.9]), arrays([0.2, 0.9], [0.2, 0.9]))
    assert found["rank_correlation"] == pytest.approx(1.0)


def test_inside_undoes_the_crop() -> None:
    """A patch is inside a box when its centre, as a fraction of the whole picture, is."""
    cropped = RelevanceMap(np.zeros((2, 2)), (0.25, 0.0, 0.75, 1.0))  # centres at x 0.375, 0.625 and y 0.25, 0.75
    assert inside(cropped, [(0.6, 0.2, 0.7, 0.3)]).tolist() == [[False, True], [False, False]]
    assert inside(cropped, [(0.3, 0.0, 0.4, 1.0)]).tolist() == [[True, False], [True, False]]
    assert inside(cropped, [(0.0, 0.0, 0.3, 1.0), (0.375, 0.25, 0.6, 0.75)]).tolist() == [[True, False], [False, False]]
    assert inside(cropped, [(0.25, 0.0, 0.375, 1.0)]).sum() == 0  # boxes end before their right and lower edges
    assert inside(cropped, [(0.25, 0.0, 1.0, 0.25)]).sum() == 0
    assert not inside(cropped, []).any()


def test_pointing_by_hand() -> None:
    """Two of three maps have their highest patch in a box; a question without boxes does not play."""
    corner = RelevanceMap(np.array([[0.9, 0.1], [0.2, 0.3]]))
    boxes = [[(0.0, 0.0, 0.5, 0.5)], [(0.0, 0.0, 1.0, 0.5)], [(0.5, 0.5, 1.0, 1.0)], []]
    found = pointing([corner] * 4, boxes, Draws(["a", "b", "c", "d"]))
    assert (found["n"], found["hit_rate"], found["ci95"]) == (3, pytest.approx(2 / 3), None)
    assert found["chance"] == pytest.approx((1 / 4 + 2 / 4 + 1 / 4) / 3)
    many = pointing([corner] * 160, boxes * 40, Draws([str(n) for n in range(160)]))
    low, high = many["ci95"]
    assert 0.5 < low < 2 / 3 < high < 0.8


def test_pointing_without_boxes() -> None:
    """Where no question has a box nothing is claimed."""
    found = pointing([RelevanceMap(np.ones((2, 2)))], [[]], Draws(["a"]))
    assert found == {"n": 0, "hit_rate": None, "ci95": None, "chance": None}


def test_sweep() -> None:
    """Every label threshold with every decision threshold; a higher label threshold leaves fewer patches relevant."""
    rng = np.random.default_rng(0)
    teacher = [rng.random(16).astype(np.float32) for _ in range(10)]
    found = swept(teacher, teacher)
    assert list(found) == [str(label) for label in LABEL_THRESHOLDS]
    rates = [at["base_rate"] for at in found.values()]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == len(rates)
    assert all(list(at["thresholds"]) == [str(bound) for bound in THRESHOLDS] for at in found.values())
    assert found["0.5"]["thresholds"]["0.5"]["f1"] == found["0.3"]["thresholds"]["0.3"]["f1"] == 1.0
    assert found["0.3"] == {name: fidelity(teacher, teacher, 0.3)[name] for name in found["0.3"]}


def maps(pictures: int, noise: float, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """Proxy and teacher maps of 36 patches, two questions a picture, some pictures far easier than others."""
    rng = np.random.default_rng(seed)
    teacher, proxy, names = [], [], []
    for picture in range(pictures):
        own = noise * rng.uniform(0.2, 2.0)
        for _ in range(2):
            truth = np.where(rng.random(36) < 0.15, 0.9, 0.05)
            teacher.append(truth.astype(np.float32))
            proxy.append(np.clip(truth + rng.normal(0, own, 36), 0, 1).astype(np.float32))
            names.append(str(picture))
    return proxy, teacher, names


def test_intervals_are_those_of_the_slow_way() -> None:
    """Draws from counts in bins give the intervals that judging drawn pictures over and over gives."""
    proxy, teacher, names = maps(60, 0.4)
    found = FidelityDraws(proxy, teacher, 0.3, Draws(names)).intervals()

    def called(maps: list[np.ndarray], rows: np.ndarray, bound: float) -> np.ndarray:
        found: np.ndarray = np.concatenate([maps[row] for row in rows]) >= bound
        return found

    slow: dict[str, Callable[[np.ndarray], float]] = {
        "auprc": lambda rows: auprc([proxy[row] for row in rows], [teacher[row] for row in rows], 0.3) or 0.0,
        "f1": lambda rows: float(f1_score(called(teacher, rows, 0.3), called(proxy, rows, 0.5))),
        "iou": lambda rows: float(shared[rows].mean()),
    }
    shared = overlaps(proxy, teacher, 0.3)
    for name, statistic in slow.items():
        bounds = over_pictures(statistic, names, resamples=150, seed=1)
        assert bounds is not None
        assert found[name] == pytest.approx(bounds, abs=0.25 * (bounds[1] - bounds[0])), name


def test_shuffled_patches_gain_nothing() -> None:
    """The same probabilities on other patches: below all-negative in accuracy, at the base rate in AUPRC."""
    proxy, teacher, names = maps(80, 0.1)
    rng = np.random.default_rng(1)
    shuffled = [rng.permutation(one) for one in proxy]
    good, bad = (FidelityDraws(one, teacher, 0.3, Draws(names)).intervals() for one in (proxy, shuffled))
    assert good["accuracy_gain"][0] > 0.05
    assert good["auprc_gain"][0] > 0.5
    assert bad["accuracy_gain"][1] < 0
    low, high = bad["auprc_gain"]
    assert low < 0.01
    assert high < 0.05


def test_two_proxies_are_paired() -> None:
    """On the same draws a proxy differs from itself by 0 and from a noisier one by little noise."""
    proxy, teacher, names = maps(60, 0.3)
    draws = Draws(names)
    own = FidelityDraws(proxy, teacher, 0.3, draws).by_name["auprc"]
    assert (own - FidelityDraws(proxy, teacher, 0.3, draws).by_name["auprc"] == 0).all()
    worse = [np.clip(one + 0.02 * np.sin(np.arange(36)), 0, 1) for one in proxy]
    apart = own - FidelityDraws(worse, teacher, 0.3, draws).by_name["auprc"]
    assert np.std(apart) < 0.5 * np.std(own)


def test_few_pictures_have_no_interval() -> None:
    """Three pictures have numbers and no interval."""
    proxy, teacher, names = maps(3, 0.3)
    assert set(FidelityDraws(proxy, teacher, 0.3, Draws(names)).intervals().values()) == {None}


def test_nothing_relevant_has_no_auprc_interval() -> None:
    """Without a relevant patch an AUPRC is undefined in every draw, and the rest is still there."""
    proxy, _, names = maps(30, 0.3)
    found = FidelityDraws(proxy, [np.zeros(36)] * 60, 0.3, Draws(names)).intervals()
    assert found["auprc"] is found["auprc_gain"] is found["rank_correlation"] is None
    assert found["f1"] == [0.0, 0.0]
    assert found["base_rate"] == [0.0, 0.0]
