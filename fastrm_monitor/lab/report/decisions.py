"""How an interval decides a claim, and how the numbers that decided are said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
Found = tuple[str, str]
"""A verdict and the sentence that gives its reason."""

HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "cannot conclude", "not measured"
MARGIN = 0.05
"""A loss or gain of AUPRC that still counts as none."""


def above(bounds: Sequence[float] | None, middle: float) -> str:
    """Whether a number lies above `middle`, by its interval."""
    if bounds is None:
        return OPEN
    low, high = bounds
    return HOLDS if low > middle else FAILS if high <= middle else OPEN


def between(bounds: Sequence[float] | None, least: float, most: float) -> str:
    """Whether a number lies between two bounds, by its interval."""
    if bounds is None:
        return OPEN
    low, high = bounds
    return HOLDS if low >= least and high <= most else FAILS if high < least or low > most else OPEN


def turned(bounds: Sequence[float] | None, as_it_is: bool) -> Sequence[float] | None:
    """The interval of a difference, or that of the difference the other way round."""
    return bounds if as_it_is or bounds is None else [-bounds[1], -bounds[0]]


def all_hold(decided: Sequence[str]) -> str:
    """A claim about all of them: one that fails is enough against it."""
    if FAILS in decided:
        return FAILS
    return HOLDS if decided and all(one == HOLDS for one in decided) else OPEN


def valued(value: float | None, bounds: Sequence[float] | None) -> str:
    """A number with its interval, for a sentence."""
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else " (too few to conclude)")


def signed(value: float | None, bounds: Sequence[float] | None) -> str:
    """A difference with its sign and interval, for a sentence."""
    if value is None:
        return "undefined"
    return f"{value:+.3f}" + (f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else " (too few to conclude)")


def opposite(verdict: str) -> str:
    """The verdict on the claim that the other does not hold."""
    return {HOLDS: FAILS, FAILS: HOLDS}.get(verdict, verdict)
