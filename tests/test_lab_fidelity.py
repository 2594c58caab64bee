"""Fidelity and the pointing game: numbers that were worked out on paper."""

from __future__ import annotations

import numpy as np
import pytest

from fastrm_monitor.lab.fidelity import THRESHOLDS, fidelity, inside, pointing
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
    found = pointing([corner] * 4, boxes, ["a", "b", "c", "d"])
    assert (found["n"], found["hit_rate"]) == (3, pytest.approx(2 / 3))
    assert found["chance"] == pytest.approx((1 / 4 + 2 / 4 + 1 / 4) / 3)
    low, high = found["ci95"]
    assert 0.0 <= low < 2 / 3 < high <= 1.0


def test_pointing_without_boxes() -> None:
    """Where no question has a box nothing is claimed."""
    found = pointing([RelevanceMap(np.ones((2, 2)))], [[]], ["a"])
    assert found == {"n": 0, "hit_rate": None, "ci95": None, "chance": None}
