"""The whole of it: labelled answers in, a policy out that can be published, with what it rests on and what is doubtful.

Used by the command line; knows no terminal and no page.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.calibration.fitting import Fit, fit, labels_needed
from fastrm_monitor.calibration.thresholds import by_flag_rate, by_precision, by_risk, interval
from fastrm_monitor.drift.statistics import kolmogorov_smirnov
from fastrm_monitor.errors import DataError
from fastrm_monitor.records.policies import publish
from fastrm_monitor.records.store import Store

Method = Literal["flag-rate", "precision", "risk"]
METHODS: tuple[Method, ...] = get_args(Method)

_LEAST_UNFLAGGED = 10
_DOUBT = 0.01  # p value below which labelled answers are not taken for a random part
_COMPARED = 20  # answers on each side that such a comparison needs
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
        chosen: method, target, confidence, n, bad, bound, flagged share of the sample with its interval, warnings.
        warnings: sentences that whoever publishes must read.
    """

    model: str
    proxy_version: str
    fit: Fit
    threshold: float
    chosen: dict[str, Any]
    warnings: tuple[str, ...]

    def publish(self, store: Store, author: str, note: str = "") -> int:
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


def calibrate(answers: Answers, method: str, target: float, confidence: float = 0.95) -> Outcome:
    """Recalibrate, then choose a threshold.

    Args:
        answers: of one model and proxy.
        method: one of `METHODS`.
        target: share of the traffic to flag, share of wrong answers among the flagged, or share of wrong answers among
            the others; above 0 and below 1.
        confidence: of the last two.

    Raises:
        DataError: too few labels, none of the random sample, or a target that cannot be shown to hold.
    """
    if method not in METHODS:
        raise DataError(f"There is no way '{method}' to choose a threshold: choose {', '.join(METHODS)}.")
    if not (0 < target < 1 and 0.5 <= confidence < 1):
        raise DataError("The target lies between 0 and 1, and the confidence from 0.5 up to, but not including, 1.")
    refuse_biased(answers)
    made, doubts = fit(answers), warnings(answers)
    sample = answers.where(answers.sampled)
    chosen: dict[str, Any] = {"method": method, "target": target}
    if method == "flag-rate":
        score = by_flag_rate(sample.score, 1 / sample.rate, target)
        chosen["n"] = len(sample)
    else:
        part = random_part(answers)
        choose = by_risk if method == "risk" else by_precision
        found = choose(part.score, part.right, target, confidence)
        if found is None:
            wrong = "answers that are not flagged are wrong" if method == "risk" else "flagged answers are wrong"
            bound = "at most" if method == "risk" else "at least"
            raise DataError(
                f'With {len(part)} labels of the random sample no threshold can be shown to hold "{bound} {target:.3g} '
                f'of the {wrong}" with a confidence of {confidence:.3g}: label more of it, or ask for less.'
            )
        score = found.threshold
        chosen |= {"confidence": confidence, "n": found.n, "bad": found.bad, "bound": found.bound}
    share, low, high = flagged_share(sample, score)
    chosen |= {"flagged_share": share, "flagged_share_ci95": [low, high], "warnings": list(doubts)}
    threshold = made.recalibration(score)
    return Outcome(answers.model, answers.proxy_version, made, threshold, chosen, doubts)


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

    Unequal weights count as (sum w)^2 / sum w^2 answers (Kish 1965).
    """
    weight = 1 / sample.rate
    share = float(weight[sample.score < score].sum() / weight.sum())
    effective = int(weight.sum() ** 2 / (weight**2).sum())
    return share, *interval(round(share * effective), effective)


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
        labelled = answers.score[part & answers.labelled]
        others = answers.score[part & ~answers.labelled]
        if min(len(labelled), len(others)) < _COMPARED:
            continue
        if kolmogorov_smirnov(np.sort(others), labelled)[1] < _DOUBT:
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
    return tuple(found)
