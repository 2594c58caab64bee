"""Fits a recalibration to labelled answers, and says with intervals what it is worth on pictures not seen before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.intervals import Draws, interval
from fastrm_monitor.scoring.confidence import log_odds
from fastrm_monitor.scoring.recalibration import Recalibration

LEAST = 50
"""Labelled answers below which nothing is fitted."""
LEAST_EACH = 10
"""Right ones, and wrong ones, that are needed."""
MANY = 1000
"""Labelled answers from which isotonic regression is fitted in place of Platt's line; with fewer it overfits."""
BINS = 10
_FOLDS = 5
_STEEPNESS = 1e-3  # least slope of Platt's line: the order of the scores is not the labels' to turn


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over pictures; None where there are too few pictures."""

    value: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Bin:
    """One point of the reliability diagram: mean stated probability, share of right answers, and answers."""

    stated: float
    right: float
    n: int


@dataclass(frozen=True)
class Quality:
    """How well stated probabilities fit what came."""

    ece: Estimate
    brier: Estimate
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Fit:
    """A recalibration and its worth.

    Attributes:
        recalibration: fitted on all labelled answers.
        method: "platt" or "isotonic".
        n: labelled answers.
        pictures: that they are about.
        before: of the scores as they are, on all of them.
        after: out of fold: each answer's probability comes from a fit without its picture.
    """

    recalibration: Recalibration
    method: str
    n: int
    pictures: int
    before: Quality
    after: Quality


def fit(answers: Answers) -> Fit:
    """Recalibrate on the labelled ones of these answers, each with its weight.

    Raises:
        DataError: there are too few; the sentence says how many are needed.
    """
    own, weight = answers.where(answers.labelled), answers.weights[answers.labelled]
    right = int(own.right.sum())
    wrong = len(own) - right
    if len(own) < LEAST or min(right, wrong) < LEAST_EACH:
        raise DataError(
            f"There are {len(own)} labelled answers, {right} right and {wrong} wrong: calibration needs {LEAST}, and "
            f"{LEAST_EACH} of each kind."
        )
    groups = np.unique(own.picture, return_inverse=True)[1]
    if groups.max() + 1 < 2 * _FOLDS:
        raise DataError(f"The labelled answers are about {groups.max() + 1} pictures: label some of {2 * _FOLDS}.")
    for name, part in (("right", own.right == 1), ("wrong", own.right == 0)):
        about = len(np.unique(groups[part]))
        if about < _FOLDS:
            raise DataError(
                f"The {int(part.sum())} {name} answers are about only {about} picture{'s' if about > 1 else ''}: "
                f"calibration needs {name} ones about {_FOLDS}, so label answers about other pictures."
            )
    method = "isotonic" if len(own) >= MANY else "platt"
    fold = _folds(groups, own.right)
    out = np.empty(len(own))
    for number in range(_FOLDS):
        learnt, asked = fold != number, fold == number
        made = _fit(own.score[learnt], own.right[learnt], weight[learnt], method)
        out[asked] = [made(float(score)) for score in own.score[asked]]
    line = _fit(own.score, own.right, weight, method)
    return Fit(
        recalibration=Recalibration(own.source, line.slope, line.intercept, line.knots),  # type: ignore[arg-type]
        method=method,
        n=len(own),
        pictures=int(groups.max() + 1),
        before=quality(own.score, own.right, weight, own.picture),
        after=quality(out, own.right, weight, own.picture),
    )


def quality(stated: np.ndarray, right: np.ndarray, weight: np.ndarray, picture: np.ndarray) -> Quality:
    """Expected calibration error over bins of equal weight, Brier score, and the bins.

    The error of a bin is the gap of its weighted means, so few answers have a large one by chance; the intervals show
    how large.

    Args:
        stated: float (S,) in 0..1.
        right: (S,) 1 or 0.
        weight: (S,) answers of the traffic that each stands for.
        picture: S ids.
    """
    order = np.argsort(stated, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(weight[order])[:-1]]) / weight.sum()
    place = np.empty(len(stated))
    place[order] = before
    first = np.searchsorted(stated[order], stated, side="left")  # equal probabilities share a bin
    of = np.minimum((before[first] * BINS + 1e-9).astype(int), BINS - 1)
    member = (of[:, None] == np.arange(BINS)) * weight[:, None]  # (S, BINS)
    squares = weight * (stated - right) ** 2
    draws = Draws(picture.tolist())
    gaps = np.abs(draws.sums(member * (stated - right)[:, None])).sum(1)  # (B,)
    total = draws.sums(weight)
    bins = []
    for column in member.T:
        if column.sum() > 0:
            bins.append(
                Bin(
                    float(column @ stated / column.sum()), float(column @ right / column.sum()), int((column > 0).sum())
                )
            )
    ece = float(np.abs((member * (stated - right)[:, None]).sum(0)).sum() / weight.sum())
    return Quality(
        ece=Estimate(ece, _interval(gaps / total, draws)),
        brier=Estimate(float(squares.sum() / weight.sum()), _interval(draws.sums(squares) / total, draws)),
        bins=tuple(bins),
    )


def labels_needed(estimate: Estimate, n: int, half_width: float) -> int | None:
    """About how many labels make the interval that narrow: its width falls with the square root of their number."""
    if estimate.ci95 is None:
        return None
    now = (estimate.ci95[1] - estimate.ci95[0]) / 2
    return int(np.ceil(n * (now / half_width) ** 2))


def _interval(drawn: np.ndarray, draws: Draws) -> tuple[float, float] | None:
    found = interval(drawn) if draws.enough else None
    return None if found is None else (found[0], found[1])


def _folds(groups: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A fold for each answer, whole pictures together, so that there are both kinds of answers outside each fold."""
    rng = np.random.default_rng(0)
    while True:  # a draw that puts all pictures of a kind into one fold is rare, as there are _FOLDS of each
        fold = np.asarray(rng.permutation(groups.max() + 1)[groups] % _FOLDS)
        if all(len(np.unique(fold[right == kind])) > 1 for kind in (0, 1)):
            return fold


def _fit(score: np.ndarray, right: np.ndarray, weight: np.ndarray, method: str) -> Recalibration:
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, right, sample_weight=weight)
        xs, ys = model.X_thresholds_, np.maximum.accumulate(model.y_thresholds_)
        knots = {float(x): float(y) for x, y in zip(xs, ys, strict=True)}
        return Recalibration(knots=tuple(sorted(knots.items())))
    from sklearn.linear_model import LogisticRegression

    odds = np.array([log_odds(float(one)) for one in score])
    line = LogisticRegression(C=1e6, max_iter=2000).fit(odds[:, None], right, sample_weight=weight / weight.mean())
    slope, intercept = float(line.coef_[0, 0]), float(line.intercept_[0])
    if slope < _STEEPNESS:
        slope, intercept = _STEEPNESS, _intercept(_STEEPNESS * odds, float(np.average(right, weights=weight)), weight)
    return Recalibration(slope=slope, intercept=intercept)


def _intercept(logit: np.ndarray, mean: float, weight: np.ndarray) -> float:
    """What to add to these log odds so that the weighted mean of the probabilities is the wanted one."""
    low, high = (log_odds(mean) - float(end) for end in (logit.max(), logit.min()))
    for _ in range(60):  # halvings, beyond what a float can tell apart
        middle = (low + high) / 2
        if np.average(1 / (1 + np.exp(-logit - middle)), weights=weight) < mean:
            low = middle
        else:
            high = middle
    return (low + high) / 2
