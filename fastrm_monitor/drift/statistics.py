"""How far two samples of one number are apart. Pure functions of float arrays; no scipy, which a server need not have.

All of them take the reference sorted, because it is compared again and again.
"""

from __future__ import annotations

import numpy as np

PSI_BINS = 10
"""Bins of the population stability index: the reference's deciles, as is usual."""


def kolmogorov_smirnov(reference: np.ndarray, window: np.ndarray) -> tuple[float, float]:
    """D = sup |F - G| of the two empirical distributions, and its two-sided p value.

    The p value is asymptotic with Stephens's correction for finite samples (Journal of the Royal Statistical Society B
    32, 1970); ties make it too large, never too small. It is meant for some tens of values a side and more.

    Args:
        reference: (n,) sorted.
        window: (m,) in any order.

    Raises:
        ValueError: a sample is empty.
    """
    ordered = _sorted_pair(reference, window)
    everything = np.concatenate([reference, ordered])
    everything.sort()
    below = np.searchsorted(reference, everything, side="right") / len(reference)
    d = float(np.abs(below - np.searchsorted(ordered, everything, side="right") / len(ordered)).max())
    root = np.sqrt(len(reference) * len(ordered) / (len(reference) + len(ordered)))
    return d, kolmogorov_tail(float((root + 0.12 + 0.11 / root) * d))


def kolmogorov_tail(value: float) -> float:
    """P(K > value) of Kolmogorov's distribution: 2 sum over k >= 1 of (-1)^(k-1) exp(-2 k^2 value^2)."""
    if value < 0.2:  # the series converges slowly there, and the probability is 1 to twelve digits
        return 1.0
    k = np.arange(1, 101)
    signs = np.where(k % 2 == 1, 1.0, -1.0)
    return float(np.clip(2 * (signs * np.exp(-2 * (k * value) ** 2)).sum(), 0.0, 1.0))


def population_stability(reference: np.ndarray, window: np.ndarray) -> float:
    """PSI = sum (q - p) ln(q / p) over the bins between the reference's deciles.

    p and q are the shares of reference and window, with half a case added to every bin: an empty one would make it
    infinite. Without any drift its mean is about (bins - 1) (1/n + 1/m), so a small window has a large PSI by chance.

    Args:
        reference: (n,) sorted.
        window: (m,) in any order.

    Raises:
        ValueError: a sample is empty.
    """
    ordered = _sorted_pair(reference, window)
    places = np.arange(1, PSI_BINS) * len(reference) // PSI_BINS
    edges = np.unique(reference[places])  # many equal values make fewer bins
    p, q = (_shares(values, edges) for values in (reference, ordered))
    return float(((q - p) * np.log(q / p)).sum())


def wasserstein(reference: np.ndarray, window: np.ndarray) -> float:
    """W1 = integral of |F - G|: how far the values moved on average, in their own unit.

    Args:
        reference: (n,) sorted.
        window: (m,) in any order.

    Raises:
        ValueError: a sample is empty.
    """
    ordered = _sorted_pair(reference, window)
    everything = np.concatenate([reference, ordered])
    everything.sort()
    left = everything[:-1]
    f, g = (np.searchsorted(values, left, side="right") / len(values) for values in (reference, ordered))
    return float((np.abs(f - g) * np.diff(everything)).sum())


def _sorted_pair(reference: np.ndarray, window: np.ndarray) -> np.ndarray:
    if not len(reference) or not len(window):
        raise ValueError("An empty sample cannot be compared.")
    return np.sort(window)


def _shares(ordered: np.ndarray, edges: np.ndarray) -> np.ndarray:
    ends = np.searchsorted(ordered, edges, side="right")
    counts = np.diff(np.concatenate([[0], ends, [len(ordered)]])) + 0.5
    shares: np.ndarray = counts / counts.sum()
    return shares
