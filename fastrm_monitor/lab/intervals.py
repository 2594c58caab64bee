"""95 % intervals by bootstrap over pictures: questions about one picture are not independent.

`Draws` is the fast way: how often each picture is drawn is settled once, and every statistic of these answers is then
computed from the same draws, which pairs them. `over_pictures` takes any function of row numbers and is slow.

How often a picture is drawn follows from its name alone: a Poisson number, of mean 1, as in sampling with replacement
from many. So two sets that share some pictures are paired on those, and independent on the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

RESAMPLES = 1000
LEAST = 20
"""Pictures, right answers and wrong answers below which nothing is concluded."""
_AT_ONCE = 2_000_000
"""Weights held in memory at a time."""


class Draws:
    """The draws of one set of rows.

    Args:
        pictures: picture id of each of S rows.
        resamples: number of draws, B.
        seed: of the draws; two sets with different seeds are drawn independently, with one seed they are paired on the
            pictures of the same name.
    """

    def __init__(self, pictures: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._names, self._group = np.unique(np.asarray(pictures, str), return_inverse=True)
        self.pictures = len(self._names)
        self._resamples, self._seed = resamples, seed

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each picture is in each draw, float (B, pictures)."""
        drawn = np.empty((self._resamples, self.pictures))
        for place, name in enumerate(self._names):
            drawn[:, place] = _generator(self._seed, str(name)).poisson(1, self._resamples)
        return drawn

    @property
    def enough(self) -> bool:
        """Whether there are pictures enough for an interval that means something."""
        return self.pictures >= LEAST

    def pictures_of(self, rows: np.ndarray) -> int:
        """How many pictures some rows show; row numbers, or bool (S,)."""
        return len(np.unique(self._group[rows]))

    def enough_of(self, rows: np.ndarray) -> bool:
        """Whether these rows show pictures enough: many questions about one say no more than one."""
        return self.pictures_of(rows) >= LEAST

    def by_picture(self, values: np.ndarray) -> np.ndarray:
        """Sums of rows (S, ...) over each picture, float (pictures, ...)."""
        sums = np.zeros((self.pictures, *values.shape[1:]))
        np.add.at(sums, self._group, values)
        return sums

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of rows (S, ...) in each draw, float (B, ...)."""
        own = self.by_picture(values)
        drawn: np.ndarray = self.counts @ own.reshape(self.pictures, -1)
        return drawn.reshape(self._resamples, *own.shape[1:])

    def means(self, values: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """Means of rows (S,) in each draw, (B,), of the rows that `where` (S,) names; NaN where none is drawn."""
        chosen = np.ones(len(values)) if where is None else where.astype(float)
        with np.errstate(invalid="ignore"):
            found: np.ndarray = self.sums(np.where(chosen > 0, values, 0) * chosen) / self.sums(chosen)
        return found

    def weights(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """How often each of these rows is in each draw, float (b, rows): some draws at a time, all B in the end."""
        step = max(1, _AT_ONCE // max(1, len(rows)))
        for start in range(0, self._resamples, step):
            yield self.counts[start : start + step][:, self._group[rows]]


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed} {name}".encode(errors="surrogatepass"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def interval(drawn: np.ndarray) -> list[float] | None:
    """[low, high], the 2.5 and 97.5 percentiles of a statistic's draws; undefined ones (NaN) are left out."""
    finite = drawn[np.isfinite(drawn)]
    return [float(x) for x in np.percentile(finite, [2.5, 97.5])] if len(finite) else None


def significance(drawn: np.ndarray, nothing: float = 0.0) -> float | None:
    """Two-sided p value of "the statistic is `nothing`", from its draws: it is below 0.05 where their interval ends.

    Not below 2 / (B + 1): more draws would be needed to tell.
    """
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return None
    side = min(int((finite <= nothing).sum()), int((finite >= nothing).sum()))
    return min(1.0, 2 * (side + 1) / (len(finite) + 1))


def rate(values: np.ndarray, draws: Draws, where: np.ndarray | None = None) -> dict[str, Any]:
    """The share of yes among some rows: `n`, `rate`, `ci95`.

    A share of exactly 0 or 1 does not vary from draw to draw; its interval is then the exact one (Clopper-Pearson) of
    so many pictures.

    Args:
        values: (S,) of 0 and 1.
        draws: of these S rows.
        where: bool (S,), the rows that count; all when None.
    """
    chosen = np.ones(len(values), bool) if where is None else where
    own = values[chosen].astype(float)
    if not len(own):
        return {"n": 0, "rate": None, "ci95": None}
    share = float(own.mean())
    pictures = draws.pictures_of(chosen)
    bounds = None
    if pictures >= LEAST:
        tail = 0.025 ** (1 / pictures)
        edges = {0.0: [0.0, 1 - tail], 1.0: [tail, 1.0]}
        bounds = edges[share] if share in edges else interval(draws.means(values.astype(float), chosen))
    return {"n": len(own), "rate": share, "ci95": bounds}


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P values corrected for their number (Holm 1979), which holds whatever their dependence; None stays None."""
    order = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, place) in enumerate(order):
        highest = max(highest, min(1.0, value * (len(order) - rank)))
        corrected[place] = highest
    return corrected


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
    return interval(np.array(drawn))
