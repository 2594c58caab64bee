"""The whole loop, again and again: does the bound that calibration promises hold, and is a shift noticed: `make loop`.

    python benchmarks/loop.py --output docs/results/loop.md      # some minutes on two cores
    python benchmarks/loop.py --quick                            # a minute, to see that it runs

Once for real: the embedded model serves drawn scenes, monitored by its shipped proxy; the scenes' truth labels what the
store has, through the store's own reviews; `calibrate` chooses a threshold and publishes it; the server that runs takes
it over and serves new scenes of the same and of other kinds. Then 200 times from the answers that were served: pictures
are drawn from them with replacement, so that what was served is the whole population, whose risk is known exactly.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))  # where tests load it from
import likeness
from report import Report, with_interval
from served import MODEL, Served, Server, parts

from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.calibration.choice import Outcome, calibrate
from fastrm_monitor.calibration.fitting import Estimate, quality
from fastrm_monitor.calibration.thresholds import interval
from fastrm_monitor.drift.reference import SIZE, Reference
from fastrm_monitor.drift.watch import DriftWatch
from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.scene_set import TEST_SEED, SceneSet
from fastrm_monitor.lab.intervals import Draws, rate

TRAFFIC, SHIFTS = "natural", ("counter_prior", "noise")
QUESTIONS = 4
CONFIDENCE = 0.95
ALARM = 0.001
"""Of a window's corrected p value, as in docs/alerting/rules.yml."""


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        pictures: that are calibrated on, and as many new ones of each kind.
        more: pictures of the traffic beside them, for the population.
        window: answers in a window of drift.
        repetitions: of the loop.
        risk: that is asked for.
    """

    pictures: int = 505  # a few of them have fewer questions: at least 2,000 answers
    more: int = 500
    window: int = SIZE
    repetitions: int = 200
    risk: float = 0.05

    @property
    def answers(self) -> int:
        """About these pictures."""
        return self.pictures * QUESTIONS


QUICK = Plan(120, 60, 200, 10, 0.12)


# --- again and again ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repetition:
    """What one choice was worth.

    Attributes:
        found: whether there was a threshold.
        risk: share of wrong answers among the unflagged of the whole population; 0 where all is flagged.
        flagged: share of the population that it flags.
        seen: share of wrong answers among the unflagged of newly drawn answers.
        labels: labelled answers.
        pictures: that they are about.
        shifted: the risk in each shifted population.
    """

    found: bool
    risk: float
    flagged: float
    seen: float
    labels: int
    pictures: int
    shifted: dict[str, float]


@dataclass(frozen=True)
class Design:
    """What is labelled: about that many answers served, at most so many a picture, each drawn with that rate."""

    name: str
    answers: int
    questions: int | None = None
    rate: float = 1.0


def repeat(
    traffic: Served,
    shifted: Mapping[str, Served],
    design: Design,
    threshold: float,
    rng: np.random.Generator,
    risk: float,
) -> Repetition:
    """Label, calibrate, serve: with answers drawn from those that were served.

    Args:
        traffic: the population.
        shifted: others, by name.
        design: what is labelled.
        threshold: of the proxy folder, by which answers are flagged before.
        rng: draws.
        risk: that is asked for.
    """
    rows, picture = traffic.draw(design.answers, rng, design.questions)
    score = traffic.score[rows]
    flagged, sampled = score < threshold, rng.random(len(rows)) < design.rate
    rates = np.full(len(rows), design.rate)
    answers = Answers(
        score, score, traffic.right[rows], flagged, sampled, rates, picture, MODEL, "", "calibrated"
    ).where(flagged | sampled)
    count = (len(answers), len(set(answers.picture)))
    try:
        made = calibrate(answers, "risk", risk, CONFIDENCE)
    except DataError:
        return Repetition(False, 0.0, 1.0, 0.0, *count, dict.fromkeys(shifted, 0.0))
    new, _ = traffic.draw(design.answers, rng, design.questions)
    kept = unflagged(made, traffic)
    return Repetition(
        True,
        wrong(traffic.right[kept]),
        1 - float(kept.mean()),
        wrong(traffic.right[new][kept[new]]),
        *count,
        {name: wrong(one.right[unflagged(made, one)]) for name, one in shifted.items()},
    )


def unflagged(made: Outcome, served: Served) -> np.ndarray:
    """Bool (S,): which answers the policy does not flag. A recalibration rises strictly, so that one score decides."""
    ordered = np.sort(served.score)
    place = bisect_left(ordered.tolist(), made.threshold, key=made.fit.recalibration)
    return served.score >= (ordered[place] if place < len(ordered) else np.inf)


def wrong(right: np.ndarray) -> float:
    """Share of wrong answers; 0 of none."""
    return float(1 - right.mean()) if len(right) else 0.0


def alarms(reference: Reference, served: Served, rows: np.ndarray, window: int = SIZE) -> tuple[bool, bool]:
    """Whether any feature of a window differs from the reference, and whether the confidence of all windows does.

    The first is what "drift" means on the health page, the second the alert `FastRMConfidenceDrift` with windows of ten
    minutes.
    """
    watch = DriftWatch(reference, size=window, minimum=window, period=0)
    found = [drift for row in rows if (drift := watch.add(served.rows[row]))]
    values = [{one.feature: one.ks_p for one in drift} for drift in found]
    return any(min(one.values()) < ALARM for one in values), bool(values) and all(
        one["confidence"] < ALARM for one in values
    )


# --- what is printed ----------------------------------------------------------------------------------------------


def main() -> None:
    """Serve, repeat, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few answers and repetitions, to see that it runs")
    parser.add_argument("--output", type=Path, help="write the same as markdown")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    report = Report(190, "# The loop: labels, a threshold, new answers")
    report.line(
        f"Printed by `make loop{' QUICK=1' * arguments.quick}` on {platform.machine()}, {torch.get_num_threads()} "
        f'threads. The embedded model and its proxy; asked for is "at most {plan.risk:.0%} of the answers that are not '
        f'flagged are wrong" with a confidence of {CONFIDENCE:.0%}. Pictures are drawn scenes with {QUESTIONS} '
        "questions each."
    )
    with tempfile.TemporaryDirectory() as folder:
        traffic, shifted, threshold = once(report, plan, f"sqlite:///{folder}/store.db")
    many(report, plan, traffic, shifted, threshold)
    drifting(report, plan, traffic, shifted)
    likeness.tell(report, plan.repetitions)
    report.end(arguments.output)


def once(report: Report, plan: Plan, url: str) -> tuple[Served, dict[str, Served], float]:
    """The loop for real; the traffic that was served, what was shifted, and the threshold of the proxy folder."""
    data = SceneSet([TRAFFIC], 2 * plan.pictures + plan.more, TEST_SEED, QUESTIONS)
    first, second, rest = parts(data, plan.pictures, plan.pictures, plan.more)
    with Server(url, plan.window) as server:
        before = server.serve(data, first)
        labelled = server.label()
        try:
            answers, outcome, version = server.calibrate(plan.risk, CONFIDENCE)
        except DataError as error:
            risk = server.least_risk(CONFIDENCE)
            report.line(f"{error} So this one loop asks for {risk:.1%}.")
            answers, outcome, version = server.calibrate(risk, CONFIDENCE)
        began = time.monotonic()
        late = server.take_over(version, data, rest)
        took = time.monotonic() - began
        own = server.windows()
        new = {f"{TRAFFIC}, new": (server.serve(data, second), server.windows()[len(own) :])}
        for kind in SHIFTS:
            own, other = server.windows(), SceneSet([kind], plan.pictures, TEST_SEED, QUESTIONS)
            new[kind] = (server.serve(other, list(other)), server.windows()[len(own) :])
        beside = server.serve(data, rest)
        stored, failed = server.stored(version), server.failed
        threshold = server.threshold
    chosen = outcome.chosen
    low, high = chosen["flagged_share_ci95"]
    report.line(
        f"Served {len(before):,} answers about {len(before.groups)} pictures, of which {wrong(before.right):.1%} are "
        f"wrong; {len(answers):,} stored, {labelled:,} labelled by script through the store's reviews. Calibrated "
        f"({outcome.fit.method}) and published as policy {version}. Of the {chosen['n']:,} labelled answers "
        f"that it does not flag {chosen['bad']} are wrong, at most {chosen['bound']:.3f}. "
        f"Expected to flag {chosen['flagged_share']:.1%} [{low:.1%}, {high:.1%}]."
    )
    report.line(
        f"The running server had it in force {took:.1f} s and {late} answers later, without a restart; {stored:,} "
        f"stored answers carry it. Failures that the monitor counted: {failed}."
    )
    rows, calibrated = [], []
    for name, (served, windows) in new.items():
        if served.policies != {version}:
            raise SystemExit(f"Not all answers of {name} were decided by policy {version}: {served.policies}.")
        draws = Draws(served.picture.tolist())
        kept, caught = rate(1 - served.right, draws, ~served.flagged), rate(served.flagged, draws)
        rows.append(
            [
                name,
                f"{len(served):,}",
                f"{wrong(served.right):.3f}",
                with_interval(caught["rate"], caught["ci95"]),
                with_interval(kept["rate"], kept["ci95"]),
                f"{sum(min(p.values()) < ALARM for p in windows)} of {len(windows)}",
                f"{sum(p['confidence'] < ALARM for p in windows)} of {len(windows)}",
            ]
        )
        even = np.ones(len(served))
        old, made = (quality(stated, served.right, even, served.picture) for stated in (served.score, served.shown))
        calibrated.append([name, *map(_estimate, (old.ece, made.ece, old.brier, made.brier))])
    heads = ("answers", "number", "wrong", "flagged", "wrong of the unflagged", "windows that drift", "in confidence")
    report.table("One loop: new answers, served under the published policy", heads, rows)
    report.line(
        f"A window is {plan.window:,} answers, the reference is the first {plan.window:,}; a window drifts when the "
        f"corrected p value of a feature is below {ALARM}."
    )
    heads = ("answers", "ECE before", "ECE after", "Brier before", "Brier after")
    report.table("Calibration on these answers, none of which was calibrated on", heads, calibrated)
    report.line("Intervals: 95 %, bootstrap over pictures.")
    natural = before + new[f"{TRAFFIC}, new"][0] + beside
    return natural, {kind: new[kind][0] for kind in SHIFTS}, threshold


def many(report: Report, plan: Plan, traffic: Served, shifted: Mapping[str, Served], threshold: float) -> None:
    """How often the bound held."""
    designs = (
        Design(f"{QUESTIONS} questions a picture", plan.answers),
        Design(f"{QUESTIONS} a picture, half drawn", plan.answers, rate=0.5),
        Design("1 question a picture", plan.answers, questions=1),
    )
    rows, under = [], []
    for design in designs:
        rng = np.random.default_rng(0)
        made = [repeat(traffic, shifted, design, threshold, rng, plan.risk) for _ in range(plan.repetitions)]
        found = [one for one in made if one.found]
        held, seen = sum(one.risk <= plan.risk for one in made), sum(one.seen <= plan.risk for one in made)
        rows.append(
            [
                design.name,
                f"{np.mean([one.labels for one in made]):,.0f} / {np.mean([one.pictures for one in made]):,.0f}",
                f"{len(found)} of {len(made)}",
                f"{held} of {len(made)}: " + _share(held, len(made)),
                _mean_and_range([one.risk for one in found]),
                f"{seen} of {len(made)}",
                _mean_and_range([one.flagged for one in found]),
            ]
        )
        under.append([design.name, *(_mean_and_range([one.shifted[kind] for one in found]) for kind in shifted)])
    heads = (
        "labelled",
        "answers / pictures",
        "threshold found",
        "bound held [95 %]",
        "true risk",
        "held in new answers",
        "flagged",
    )
    report.table(f"{plan.repetitions} loops, promised to hold in {CONFIDENCE:.0%} of them", heads, rows)
    report.line(
        f"Each draws about {plan.answers:,} answers to label and as many new ones: pictures with replacement, with "
        f"their questions, from the {len(traffic):,} answers about {len(traffic.groups):,} pictures of the traffic "
        "that were served. These are the population, so the true risk of a threshold is known, and the promise is "
        "about it; the share in new answers varies around it by chance. Half drawn: stored are the flagged ones and a "
        "random half, and all of them are labelled. Without a threshold all is flagged, and the bound counts as held. "
        "Means, with lowest and highest. Whoever knew all verdicts would flag "
        f"{_least_flagged(traffic, plan.risk):.1%}."
    )
    report.table("The same thresholds on shifted answers: wrong of the unflagged", ("labelled", *shifted), under)
    report.line("Nothing is promised of these; that they are others is what the drift alarm has to say.")


def drifting(report: Report, plan: Plan, traffic: Served, shifted: Mapping[str, Served]) -> None:
    """How often the alarm is raised, with and without a shift."""
    rng = np.random.default_rng(1)
    counts = {name: np.zeros(2, int) for name in (TRAFFIC, *shifted)}
    for _ in range(plan.repetitions):
        known = traffic.draw(plan.window, rng)[0][: plan.window]
        reference = Reference.of((traffic.rows[row] for row in known), "")
        for name, one in ((TRAFFIC, traffic), *shifted.items()):
            counts[name] += alarms(reference, one, one.draw(plan.answers, rng)[0], plan.window)
    rows = [
        [name, *(f"{n} of {plan.repetitions}: " + _share(int(n), plan.repetitions) for n in each)]
        for name, each in counts.items()
    ]
    heads = ("new answers", "any feature in any window", "the confidence in all windows (the alert)")
    report.table("Drift alarms over the repetitions", heads, rows)
    report.line(
        f"Reference: {plan.window:,} answers of the traffic. New answers: {plan.answers:,}, in windows of "
        f"{plan.window:,}. Shares with their exact 95 % interval."
    )


def _least_flagged(served: Served, risk: float) -> float:
    """The least share that must be flagged, by score, so that the risk among the others is not larger."""
    bad = np.cumsum(1 - served.right[np.argsort(-served.score, kind="stable")])
    fine = np.flatnonzero(bad <= risk * np.arange(1, len(bad) + 1))
    return 1 - float(fine[-1] + 1) / len(bad) if len(fine) else 1.0


def _share(n: int, of: int) -> str:
    return with_interval(n / of, interval(n, of))


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "-"


def _estimate(one: Estimate) -> str:
    return with_interval(one.value, one.ci95)


if __name__ == "__main__":
    main()
