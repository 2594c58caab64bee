"""What `fastrm-monitor calibrate` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.calibration.choice import HALF_WIDTH, Outcome
from fastrm_monitor.calibration.fitting import Estimate


def print_outcome(answers: Answers, outcome: Outcome, console: Console) -> None:
    """Numbers with their intervals, then the warnings."""
    fit, chosen = outcome.fit, outcome.chosen
    sampled = int((answers.labelled & answers.sampled).sum())
    console.print(
        f"{outcome.model}, proxy {outcome.proxy_version}: {len(answers)} answers, {fit.n} labelled about "
        f"{fit.pictures} pictures, {sampled} of them in the random sample; not grounded counts as wrong, unsure is out",
        markup=False,
    )
    table = Table(
        title=f"Recalibration ({fit.method}), held out by picture, weighted to the traffic", title_justify="left"
    )
    for name in ("", "before", "after"):
        table.add_column(name)
    for name in ("ece", "brier"):
        before, after = getattr(fit.before, name), getattr(fit.after, name)
        table.add_row({"ece": "ECE", "brier": "Brier"}[name], _shown(before), _shown(after))
    console.print(table)
    needed = outcome.labels_needed
    if needed is not None:
        console.print(f"labels needed for ECE within {HALF_WIDTH}: about {max(needed, fit.n)}")
    low, high = chosen["flagged_share_ci95"]
    console.print(
        f"threshold {outcome.threshold:.4f} ({chosen['method']} {chosen['target']:.3g}); it would have flagged "
        f"{chosen['flagged_share']:.1%} [{low:.1%}, {high:.1%}] of the sampled traffic"
    )
    if "bound" in chosen:
        what = "wrong among those not flagged" if chosen["method"] == "risk" else "right among the flagged"
        console.print(
            f"{what}: {chosen['bad']} of {chosen['n']} labels, at most {chosen['bound']:.3f} with a confidence of "
            f"{chosen['confidence']:.3g}; of {chosen['answers']} labels about {chosen['pictures']} pictures, each of "
            "which counts once"
        )
    for warning in outcome.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)


def _shown(estimate: Estimate) -> str:
    if estimate.ci95 is None:
        return f"{estimate.value:.4f}"
    return f"{estimate.value:.4f} [{estimate.ci95[0]:.4f}, {estimate.ci95[1]:.4f}]".replace("[", "\\[")
