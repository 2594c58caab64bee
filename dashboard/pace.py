"""How fast this session labels, and when the queue will be done at that pace. Plain numbers; knows no clock."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_RECENT = 20  # intervals that the pace is made of
_FEWEST = 5  # before so many it is no pace yet
_PAUSE = 300.0  # seconds; a longer interval is not work


def per_hour(times: Sequence[float]) -> float | None:
    """Verdicts an hour over the last ones, pauses of more than five minutes left out; None while there are too few.

    Args:
        times: seconds at which verdicts were given, on any clock, oldest first.
    """
    intervals = [later - earlier for earlier, later in pairwise(times)]
    working = [interval for interval in intervals if interval <= _PAUSE][-_RECENT:]
    if len(working) < _FEWEST or not sum(working):
        return None
    return 3600 * len(working) / sum(working)


def line(times: Sequence[float], left: int | None, most: int) -> str:
    """What a reviewer is told; "" before the first verdict.

    Args:
        times: as for `per_hour`.
        left: cases that wait in the queue, above `most` more than can be told; None when it holds other cases.
        most: to which they are counted.
    """
    if not times:
        return ""
    rate = per_hour(times)
    said = [f"{len(times):,} labelled in this session"]
    if rate is not None:
        said.append(f"about {_rounded(rate):,} an hour")
    if left is not None:
        known = left <= most
        waiting = f"{left:,} left" if known else f"more than {most:,} left"
        said.append(f"{waiting}, {_duration(left / rate)} at this pace" if rate and known and left else waiting)
    return " · ".join(said)


def _rounded(rate: float) -> int:
    """To two digits: more would claim to be exact."""
    step: int = 10 ** max(len(str(int(rate))) - 2, 0)
    return max(int(rate / step + 0.5) * step, 1)


def _duration(hours: float) -> str:
    minutes = round(60 * hours)
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return f"about {minutes} min"
    return f"about {minutes // 60} h {minutes % 60:02} min" if hours < 10 else f"about {round(hours)} h"
