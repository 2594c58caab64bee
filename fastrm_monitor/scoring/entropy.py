"""Numbers that sum up a relevance map: entropies, mass, maximum, area, spread. Pure functions of float arrays.

Formulas: design of the project after FastRM (arXiv 2412.01487), which reads low map entropy as high confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastrm_monitor.types import RelevanceMap

DECISION_THRESHOLD = 0.5
"""A patch counts as relevant from this probability on."""

MAP_FEATURES = ("map_entropy", "patch_entropy", "map_mass", "map_max", "map_area", "map_spread")
"""What `map_features` returns, in this order."""


def spatial_entropy(relevance: np.ndarray) -> float:
    """E_spatial = -sum q log q / log N with q = p / sum p, in 0..1.

    Args:
        relevance: p, any shape, N values in 0..1.

    Returns:
        0 when all relevance lies on one patch, 1 when it is even; 1 where the mass is 0, and 0 where N is 1.
    """
    p = np.asarray(relevance, dtype=np.float64).ravel()
    mass = p.sum()
    if mass <= 0:
        return 1.0
    if p.size == 1:
        return 0.0
    q = p / mass
    q = q[q > 0]  # 0 log 0 is 0
    return float(np.clip(-(q * np.log(q)).sum() / np.log(p.size), 0.0, 1.0))


def patch_entropy(relevance: np.ndarray) -> float:
    """E_patch: mean binary entropy of the patches in bits, 0..1; 0 where every patch is certain."""
    p = np.clip(np.asarray(relevance, dtype=np.float64).ravel(), 0.0, 1.0)
    inside = p[(p > 0) & (p < 1)]
    bits = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
    return min(float(bits.sum()) / p.size, 1.0)


def spread(relevance: np.ndarray) -> float:
    """Root mean square distance of the relevance from its centre, in grid diagonals; 0 where the mass is 0.

    Args:
        relevance: (gh, gw).
    """
    p = np.asarray(relevance, dtype=np.float64)
    mass = p.sum()
    if mass <= 0:
        return 0.0
    rows, columns = np.indices(p.shape)
    y, x = (p * rows).sum() / mass, (p * columns).sum() / mass
    variance = (p * ((rows - y) ** 2 + (columns - x) ** 2)).sum() / mass
    return float(np.sqrt(variance) / np.hypot(*p.shape))


def map_features(maps: Sequence[RelevanceMap]) -> dict[str, float]:
    """Entropies and shape of a request's maps, all pictures together; spread is the mean over pictures by mass."""
    values = np.concatenate([one.values.ravel() for one in maps]).astype(np.float64)
    masses = np.array([one.values.sum() for one in maps], dtype=np.float64)
    spreads = np.array([spread(one.values) for one in maps])
    return {
        "map_entropy": spatial_entropy(values),
        "patch_entropy": patch_entropy(values),
        "map_mass": float(values.mean()),
        "map_max": float(values.max()),
        "map_area": float((values >= DECISION_THRESHOLD).mean()),
        "map_spread": float((spreads * masses).sum() / masses.sum()) if masses.sum() > 0 else 0.0,
    }
