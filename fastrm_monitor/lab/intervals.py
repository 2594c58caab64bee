"""95 % intervals by bootstrap over pictures: questions about one picture are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000


def over_pictures(
    statistic: Callable[[np.ndarray], float], pictures: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> list[float] | None:
    """The 2.5 and 97.5 percentiles of a statistic when pictures are drawn with replacement.

    Args:
        statistic: of an int array of row numbers; may return NaN where it is undefined, such draws are left out.
        pictures: picture id of each row.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        [low, high]; None when no draw gave a number.
    """
    if not len(pictures):
        return None
    _, group = np.unique(np.asarray(pictures), return_inverse=True)
    order = np.argsort(group, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(group))[:-1])
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = rng.integers(len(rows), size=len(rows))
        drawn.append(statistic(np.concatenate([rows[n] for n in chosen])))
    finite = np.array(drawn)[np.isfinite(drawn)]
    return [float(x) for x in np.percentile(finite, [2.5, 97.5])] if len(finite) else None
