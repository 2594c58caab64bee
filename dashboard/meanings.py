"""What the numbers of a case mean, in sentences, and which of them pulled its confidence down or up.

Plain functions of a case; they know neither Streamlit nor a store. Nothing is said that does not follow from the case's
own numbers: the pulls are shown only when the proxy folder at hand gives this very confidence for these features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrm_monitor.dashboard.queries import CaseView, PictureView
from fastrm_monitor.errors import DataError, ProxyError
from fastrm_monitor.records.images import unpack_map
from fastrm_monitor.scoring.confidence import LogisticConfidence, load_confidence, logistic
from fastrm_monitor.types import Region

_SAME = 1e-6  # of two confidences that were computed from the same numbers
_NAMED = 2  # features that a sentence names

_Say = Callable[[float, int], str]  # of the value and the number of patches


def _spread_over(entropy: float, patches: int) -> str:
    if patches < 2:
        return "How evenly the relevance is spread: 0 on one patch, 1 even."
    return f"The relevance is spread as if it lay evenly on {patches**entropy:.0f} of {patches} patches."


_MEANINGS: dict[str, tuple[str, _Say]] = {
    "token_probability": (
        "Token probability",
        lambda v, n: f"The model gave each token of its answer {v:.0%} (geometric mean).",
    ),
    "token_entropy": (
        "Token entropy",
        lambda v, n: f"At each token it wavered as between {math.exp(min(v, 50)):.1f} equally likely ones.",
    ),
    "p_ik": ("P(I know)", lambda v, n: f"A probe of the model's last state says {v:.0%} that it knows the answer."),
    "evidence": ("Evidence", lambda v, n: f"The evidence head says {v:.0%} that the answer fits what it looked at."),
    "grounding": (
        "Grounding",
        lambda v, n: f"{v:.0%} of the relevance lies on what the question asks about, as the grounding head sees it.",
    ),
    "map_entropy": ("Map entropy", _spread_over),
    "patch_entropy": (
        "Patch entropy",
        lambda v, n: f"The proxy is {v:.2f} bit undecided about a patch: 0 is certain, 1 a coin toss.",
    ),
    "map_mass": ("Map mass", lambda v, n: f"{v * n:.1f} of {n} patches are relevant, as the proxy expects."),
    "map_max": (
        "Map maximum",
        lambda v, n: f"The answer rests on the most relevant patch with a probability of {v:.0%}.",
    ),
    "map_area": ("Map area", lambda v, n: f"{round(v * n)} of {n} patches have a relevance of 0.5 or more."),
    "map_spread": (
        "Map spread",
        lambda v, n: f"The relevance lies {v:.0%} of the grid's diagonal from its centre; an even map has 29%.",
    ),
}
"""Name and sentence of each feature, in the order in which they are shown."""


@dataclass(frozen=True)
class Feature:
    """One feature of a case.

    Attributes:
        name: the feature's name; may be a foreign one.
        title: in words; the name itself when there are none.
        value: of the case.
        meaning: a sentence; "" when the feature is not known here.
        pull: what it adds to the log odds of being right, against an average answer; None when that is not known.
    """

    name: str
    title: str
    value: float
    meaning: str
    pull: float | None


def features(view: CaseView, fitted: LogisticConfidence | None = None) -> list[Feature]:
    """The case's features, those with the strongest pull first, else in a fixed order.

    Args:
        view: the case.
        fitted: the model that its confidence came from, see `fitted_for`.
    """
    patches = sum(one.rows * one.columns for one in view.pictures)
    pulls: Mapping[str, float] = {} if fitted is None else fitted.contributions(view.features)
    known = [name for name in _MEANINGS if name in view.features]
    rows = []
    for name in [*known, *sorted(set(view.features) - set(known))]:
        title, say = _MEANINGS.get(name, (name, None))
        value = view.features[name]
        needs_patches = name in ("map_mass", "map_area") and not patches
        meaning = "" if say is None or needs_patches else say(value, patches)
        rows.append(Feature(name, title, value, meaning, pulls.get(name)))
    return sorted(rows, key=lambda row: -abs(row.pull or 0.0))


def fitted_for(view: CaseView, proxy: str | None) -> tuple[LogisticConfidence | None, str]:
    """The logistic model that gave this case its confidence, and why there is none ("" when there is one).

    Args:
        view: the case.
        proxy: the proxy folder that the dashboard knows; None when it knows none.
    """
    if view.confidence is None or not view.features:
        return None, ""
    if not view.calibrated:
        return None, _uncalibrated(view)
    if proxy is None:
        return (
            None,
            "Which of them pulled the confidence down or up is shown where FASTRM_PROXY names the proxy folder.",
        )
    try:
        fitted = load_confidence(Path(proxy).expanduser())
    except (ProxyError, RuntimeError) as error:
        return None, str(error)
    if fitted is None or any(name not in view.features for name in fitted.features):
        return (
            None,
            "The proxy folder here (FASTRM_PROXY) is not the one that gave this confidence, so no pulls are shown.",
        )
    value, _ = fitted(view.features)
    if abs(value - view.confidence) > _SAME:
        return None, (
            f"The proxy folder here (FASTRM_PROXY) makes {value:.2f} of these features, so it is not the one that gave "
            "this confidence, and no pulls are shown."
        )
    return fitted, ""


def _uncalibrated(view: CaseView) -> str:
    token, entropy = view.features.get("token_probability"), view.features.get("map_entropy")
    if token is not None and view.confidence == token:
        return "Nothing is calibrated: the number shown is the token probability as it is."
    if token is None and entropy is not None and view.confidence == 1.0 - entropy:
        return "Nothing is calibrated: the number shown is 1 less the map entropy."
    return "Nothing is calibrated, so no feature pulls the number down or up."


def pulls(rows: Sequence[Feature], fitted: LogisticConfidence) -> str:
    """Which features pulled the confidence most, as one sentence.

    Args:
        rows: the case's features, strongest pull first.
        fitted: the model that its confidence came from.
    """
    down = [f"{row.title} ({row.pull:+.2f})" for row in rows if row.pull is not None and row.pull < 0][:_NAMED]
    up = [f"{row.title} ({row.pull:+.2f})" for row in rows if row.pull is not None and row.pull > 0][:_NAMED]
    parts = [f"down {' and '.join(down)}" if down else "", f"up {' and '.join(up)}" if up else ""]
    pulled = ", ".join(part for part in parts if part)
    base = f"An answer with average features has {logistic(fitted.intercept):.0%}"
    return f"{base}; this one was pulled {pulled}." if pulled else f"{base}, and so has this one."


def coverage(pictures: Sequence[PictureView]) -> str:
    """How much of the relevance lies on the pictures and not on padding, and what the model did not see of them.

    Returns:
        One or two sentences; "" without a readable map.
    """
    on, mass, least = 0.0, 0.0, 1.0
    for picture in pictures:
        try:
            values = unpack_map(picture.relevance, picture.rows, picture.columns)
        except DataError:
            return ""
        on += float((values * _on_picture(picture.region, picture.rows, picture.columns)).sum())
        mass += float(values.sum())
        least = min(least, _seen(picture.region))
    if not pictures or mass <= 0:
        return ""
    padded = any(_reaches_beyond(picture.region) for picture in pictures)
    which = "picture" if len(pictures) == 1 else "pictures"
    said = f"{on / mass:.0%} of the relevance lies on the {which}, the rest on padding." if padded else ""
    if least < 0.995:
        cut = f"The model saw {least:.0%} of the {'picture' if len(pictures) == 1 else 'most cropped picture'}."
        said = f"{said} {cut}".strip()
    return said or f"All of the relevance lies on the {which}: the model saw all of it and no padding."


def _on_picture(region: Region, rows: int, columns: int) -> np.ndarray:
    """Which share of each patch's area shows something of the picture, float (gh, gw)."""
    left, top, right, bottom = region
    x, y = np.linspace(left, right, columns + 1), np.linspace(top, bottom, rows + 1)
    across = np.diff(x.clip(0, 1)) / np.diff(x)
    down = np.diff(y.clip(0, 1)) / np.diff(y)
    share: np.ndarray = down[:, None] * across[None, :]
    return share


def _seen(region: Region) -> float:
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in region)
    return (right - left) * (bottom - top)


def _reaches_beyond(region: Region) -> bool:
    return min(region) < -1e-6 or max(region) > 1 + 1e-6
