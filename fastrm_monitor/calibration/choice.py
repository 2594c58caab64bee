"""The whole of it: labelled answers in, a policy out that can be published, with what it rests on and what is doubtful.

Used by the command line; knows no terminal and no page.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.calibration.fitting import Fit, fit, labels_needed
from fastrm_monitor.calibration.thresholds import (
    Chosen,
    by_flag_rate,
    by_precision,
    by_risk,
    interval,
    least_risk,
    most_precision,
    one_a_picture,
)
from fastrm_monitor.drift.statistics import kolmogorov_smirnov
from fastrm_monitor.errors import DataError
from fastrm_monitor.records.policies import publish
from fastrm_monitor.records.store import Store

Method = Literal["flag-rate", "precision", "risk"]
METHODS: tuple[Method, ...] = get_args(Method)

_LEAST_UNFLAGGED = 10
_DOUBT = 0.01  # p value below which labelled answers are not taken for a random part
_COMPARED = 20  # pictures on each side that such a comparison needs
HALF_WIDTH = 0.02
"""Of the interval of the ECE that "labels needed" is said for."""


@dataclass(frozen=True)
class Outcome:
    """A policy that was not published yet.

    Attributes:
        model: name of the model.
        proxy_version: of its proxy.
        fit: the recalibration.
        threshold: on the recalibrated confidence.
        chosen: method, target, flagged share of the sample with its interval, warnings, and `n`, answers that this
            rests on. With a bound also its confidence, `bad` of these n, `bound`, and the labelled `answers` of the
            sample with the `pictures` that they are about.
        warnings: sentences that whoever publishes must read.
    """

    model: str
    proxy_version: str
    fit: Fit
    threshold: float
    chosen: dict[str, Any]
    warnings: tuple[str, ...]

    def publish(self, store: Store, author: str, note: str = "", expected: int | None = None) -> int:
        """Put the policy in force and return its version; see `records.policies.publish`."""
        return publish(
            store,
            model=self.model,
            proxy_version=self.proxy_version,
            threshold=self.threshold,
            recalibration=self.fit.recalibration,
            chosen=self.chosen,
            author=author,
            note=note,
            expected=expected,
        )

    @property
    def labels_needed(self) -> int | None:
        """About how many labels make the interval of the ECE so narrow; None where it has none."""
        return labels_needed(self.fit.after.ece, self.fit.n, HALF_WIDTH)

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            "model": self.model,
            "proxy_version": self.proxy_version,
            "threshold": self.threshold,
            "recalibration": self.fit.recalibration.as_json(),
            "method": self.fit.method,
            "labelled": self.fit.n,
            "pictures": self.fit.pictures,
            "before": asdict(self.fit.before),
            "after_held_out": asdict(self.fit.after),
            f"labels_needed_for_ece_within_{HALF_WIDTH}": self.labels_needed,
            "chosen": self.chosen,
        }


def calibrate(
    answers: Answers, method: str, target: float, confidence: float = 0.95, made: Fit | None = None
) -> Outcome:
    """Recalibrate, then choose a threshold.

    Answers about one picture are not independent, pictures are taken to be. What is promised is the share in which each
    picture counts once, however much is asked about it.

    Args:
        answers: of one model and proxy.
        method: one of `METHODS`.
        target: share of the traffic to flag, share of wrong answers among the flagged, or share of wrong answers among
            the others; above 0 and below 1.
        confidence: of the last two.
        made: the fit of these answers, where one looks at several targets.

    Raises:
        DataError: too few labels, none of the random sample, or a target that cannot be shown to hold.
    """
    if method not in METHODS:
        raise DataError(f"There is no way '{method}' to choose a threshold: choose {', '.join(METHODS)}.")
    if not (0 < target < 1 and 0.5 <= confidence < 1):
        raise DataError("The target lies between 0 and 1, and the confidence from 0.5 up to, but not including, 1.")
    refuse_biased(answers)
    made, doubts = made or fit(answers), warnings(answers)
    sample = answers.where(answers.sampled)
    chosen: dict[str, Any] = {"method": method, "target": target}
    if method == "flag-rate":
        score = by_flag_rate(sample.score, 1 / sample.rate, target)
        chosen["n"] = len(sample)
    else:
        part = random_part(answers)
        choose = by_risk if method == "risk" else by_precision
        found = choose(part.score, part.right, target, confidence, part.picture)
        pictures = len(set(part.picture))
        if found is None:
            raise DataError(_cannot_be_shown(part, pictures, method, target, confidence))
        score = found.threshold
        chosen |= {"confidence": confidence, "n": found.n, "bad": found.bad, "bound": found.bound}
        chosen |= {"answers": len(part), "pictures": pictures}
        doubts += _uneven(method, found)
    share, low, high = flagged_share(sample, score)
    chosen |= {"flagged_share": share, "flagged_share_ci95": [low, high], "warnings": list(doubts)}
    threshold = made.recalibration(score)
    return Outcome(answers.model, answers.proxy_version, made, threshold, chosen, doubts)


def _cannot_be_shown(part: Answers, pictures: int, method: str, target: float, confidence: float) -> str:
    labels = (part.score, part.right, confidence, part.picture)
    if method == "risk":
        wanted = f"at most {target:.3g} of the answers that are not flagged are wrong"
        nearest = math.ceil(1000 * least_risk(*labels)) / 1000  # rounded to the side on which it can be asked for
        least = f"at most {nearest:.3f}"
    else:
        wanted = f"at least {target:.3g} of the flagged answers are wrong"
        nearest = math.floor(1000 * most_precision(*labels)) / 1000
        least = f"at least {nearest:.3f}"
    return (
        f"With {len(part)} labels of the random sample, about {pictures} pictures, no threshold can be shown to hold "
        f'"{wanted}" with a confidence of {confidence:.3g}: label more of it, about other pictures'
        + (f", or ask for less ({least} can be shown)." if 0 < nearest < 1 else ".")
    )


def _uneven(method: str, found: Chosen) -> tuple[str, ...]:
    """A warning where the bound, in which each picture counts once, hides what is so of the answers."""
    share = found.bad / found.n
    if share <= found.bound:
        return ()
    what = "wrong among those not flagged" if method == "risk" else "right among the flagged"
    return (
        f"Pictures that are asked about often fare worse: {share:.3f} of all labelled answers are {what}, beyond the "
        f"bound of {found.bound:.3f}, in which each picture counts once.",
    )


def random_part(answers: Answers) -> Answers:
    """Labelled answers of the random sample that all stand for as many of the traffic.

    Where sample rates changed, or flagged answers were labelled more often, those that stand for fewer are thinned by
    chance: exact bounds are for equal weights.
    """
    sample = answers.where(answers.sampled)
    weight = 1 / np.maximum(sample.rate, 1e-9)
    for part in (sample.flagged, ~sample.flagged):
        if part.any():
            weight[part] /= max(sample.labelled[part].mean(), 1e-9)
    own, weight = sample.where(sample.labelled), weight[sample.labelled]
    if not len(own):
        return own
    return own.where(np.random.default_rng(0).random(len(own)) < weight / weight.max())


def flagged_share(sample: Answers, score: float) -> tuple[float, float, float]:
    """Share of the traffic that a threshold on the score flags, with its 95 % interval, from a random sample.

    The interval is Clopper and Pearson's of as many independent answers as would vary as much: unequal weights count as
    (sum w)^2 / sum w^2 (Kish 1965), and answers about one picture by how alike they are (Korn and Graubard 1998).
    """
    weight = 1 / sample.rate
    flags = sample.score < score
    share = float(weight[flags].sum() / weight.sum())
    own = np.unique(sample.picture, return_inverse=True)[1]
    sums = np.bincount(own, weights=weight * (flags - share))
    # What each answer, and what each picture, adds to the variance of the share.
    one, whole = float((weight**2).sum()) * share * (1 - share), float((sums**2).sum())
    effective = weight.sum() ** 2 / (weight**2).sum() * (min(1.0, one / whole) if whole > 0 else 1.0)
    if not 0 < share < 1:
        effective = min(effective, len(sums))
    return share, *interval(round(share * int(effective)), int(effective))


def refuse_biased(answers: Answers) -> None:
    """Nothing can be said of the traffic from flagged answers alone.

    Raises:
        DataError: there is no random sample, or nearly none of its unflagged answers is labelled.
    """
    if not answers.sampled.any():
        raise DataError(
            "There is no random sample among these answers, only flagged ones, which say nothing about the others: "
            "serve with FASTRM_SAMPLE_RATE above 0, and label some of the sample."
        )
    unflagged = int((answers.labelled & ~answers.flagged).sum())
    if unflagged < _LEAST_UNFLAGGED:
        raise DataError(
            f"Only {unflagged} answers that were not flagged are labelled, and flagged ones say nothing about the "
            f"others: label at least {_LEAST_UNFLAGGED} of the random sample."
        )


def warnings(answers: Answers) -> tuple[str, ...]:
    """What makes the numbers doubtful, as sentences."""
    found = []
    for name, part in (("flagged", answers.flagged), ("not flagged", ~answers.flagged & answers.sampled)):
        labelled, others = (answers.where(part & known) for known in (answers.labelled, ~answers.labelled))
        scores = [
            one.score[one_a_picture(one.picture)] for one in (labelled, others)
        ]  # the test is for independent ones
        if min(map(len, scores)) < _COMPARED:
            continue
        if kolmogorov_smirnov(np.sort(scores[1]), scores[0])[1] < _DOUBT:
            found.append(
                f"The labelled answers are not a random part of the {name} ones: their scores differ from those that "
                "are not labelled. The numbers are biased; label the sample in the order of its age."
            )
    rates = answers.rate[answers.sampled]
    if np.ptp(rates) > 1e-9:
        found.append(
            f"The sample rate changed, from {rates.min():.3g} to {rates.max():.3g}: bounds use as many answers as the "
            "lowest rate would have given."
        )
    if answers.pictures_unknown:
        found.append(
            f"Of {answers.pictures_unknown} answers nobody knows which picture they are about (FASTRM_PICTURES=none), "
            "and each counts as about one of its own: where several share one, bounds and intervals are too narrow."
        )
    return tuple(found)
