"""Numbers of a map: worked out by hand, and within 0..1 whatever the map."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fastrm_monitor.scoring.entropy import MAP_FEATURES, map_features, patch_entropy, spatial_entropy, spread
from fastrm_monitor.types import RelevanceMap

MAPS = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1))


@pytest.mark.parametrize(
    ("relevance", "expected"),
    [
        ([0.4, 0.4, 0.4, 0.4], 1.0),
        ([0.0, 0.9, 0.0, 0.0], 0.0),
        ([0.3, 0.3, 0.0, 0.0], 0.5),  # ln 2 / ln 4
        ([0.5, 0.25, 0.25], 1.5 * math.log(2) / math.log(3)),
        ([0.0, 0.0, 0.0], 1.0),
        ([0.7], 0.0),
        ([0.0], 1.0),
        ([1e-300, 1.0], 0.0),
        ([5e-324, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.5),  # ln 3 / ln 9; the first share underflows to 0
    ],
)
def test_spatial_entropy(relevance: list[float], expected: float) -> None:
    """-sum q log q / log N: 1 when even or empty, 0 on one patch or of one patch, and scale does not matter."""
    assert spatial_entropy(np.array(relevance)) == pytest.approx(expected, abs=1e-9)
    assert spatial_entropy(np.array(relevance)[None] * 0.5) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("relevance", "expected"),
    [
        ([0.5, 0.5], 1.0),
        ([0.0, 1.0, 1.0], 0.0),
        ([0.5, 1.0, 0.0, 0.5], 0.5),
        ([0.25], 2 - 0.75 * math.log2(3)),  # 0.25 x 2 + 0.75 (2 - log2 3)
    ],
)
def test_patch_entropy(relevance: list[float], expected: float) -> None:
    """The mean binary entropy in bits: 1 where every patch is undecided, 0 where every patch is certain."""
    assert patch_entropy(np.array(relevance)) == pytest.approx(expected, abs=1e-12)


def test_spread() -> None:
    """Two equal patches two columns apart are one column from their centre, in diagonals of a 1 x 3 grid."""
    assert spread(np.array([[0.8, 0.0, 0.8]])) == pytest.approx(1 / math.sqrt(10))
    assert spread(np.array([[0.0, 0.3], [0.0, 0.0]])) == pytest.approx(0.0)
    assert spread(np.zeros((3, 3))) == 0.0
    # Mass 1 at row 0 and 3 at row 4: centre at 3, variance (9 + 3) / 4 = 3.
    assert spread(np.array([[0.2], [0], [0], [0], [0.6]])) == pytest.approx(math.sqrt(3) / math.sqrt(26))


def test_map_features_of_two_pictures() -> None:
    """All patches of a request count together; the spread is the pictures' mean, weighted by their mass."""
    one = RelevanceMap(np.array([[0.8, 0.0, 0.8]], np.float32))
    other = RelevanceMap(np.array([[0.4]], np.float32))
    features = map_features([one, other])
    assert tuple(features) == MAP_FEATURES
    q = np.array([0.4, 0.4, 0.2])
    assert features["map_entropy"] == pytest.approx(-(q * np.log(q)).sum() / math.log(4), abs=1e-6)
    assert features["map_mass"] == pytest.approx(0.5)
    assert features["map_max"] == pytest.approx(0.8)
    assert features["map_area"] == pytest.approx(0.5)
    assert features["map_spread"] == pytest.approx(1.6 / 2.0 / math.sqrt(10), abs=1e-6)


def test_area_counts_from_one_half() -> None:
    """A patch at exactly 0.5 is relevant."""
    assert map_features([RelevanceMap(np.array([[0.5, 0.4999]], np.float32))])["map_area"] == 0.5


def test_map_of_zeros() -> None:
    """A map without mass has the documented values, none of them NaN."""
    assert map_features([RelevanceMap(np.zeros((2, 2), np.float32))]) == {
        "map_entropy": 1.0,
        "patch_entropy": 0.0,
        "map_mass": 0.0,
        "map_max": 0.0,
        "map_area": 0.0,
        "map_spread": 0.0,
    }


@settings(deadline=None)  # a busy machine is no failure
@given(MAPS)
def test_bounds(values: np.ndarray) -> None:
    """Every feature of every map lies in 0..1."""
    features = map_features([RelevanceMap(values)])
    assert all(0.0 <= value <= 1.0 for value in features.values())


@settings(deadline=None)
@given(MAPS, st.randoms(use_true_random=False))
def test_entropies_do_not_know_places(values: np.ndarray, random: object) -> None:
    """The entropies are of the values alone: where they lie changes nothing."""
    shuffled = values.ravel().copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert spatial_entropy(shuffled) == pytest.approx(spatial_entropy(values), abs=1e-9)
    assert patch_entropy(shuffled) == pytest.approx(patch_entropy(values), abs=1e-9)
