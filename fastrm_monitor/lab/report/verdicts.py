"""A verdict on each claim, experiment, open question, failure signature and next check of the FastRM paper's summary.

Intervals decide: a claim holds where its interval lies on the right side, does not hold where it lies on the other, and
otherwise nothing is concluded. This is the list; `findings` and `measurements` decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastrm_monitor.lab.report import findings, measurements
from fastrm_monitor.lab.report.decisions import Found, Report


@dataclass(frozen=True)
class _Item:
    kind: str
    claim: str
    section: str
    judge: Callable[[Report], Found]
    welcome: bool = True


def verdicts(report: Report) -> list[dict[str, Any]]:
    """One for each item: `id`, `kind`, `claim`, `section` of the page, `verdict`, `because`, and `welcome`.

    `welcome` is False where the claim is a failure, which is good news when it does not hold.
    """
    found = []
    for item in _ITEMS:
        verdict, because = item.judge(report)
        found.append(
            {
                "id": item.judge.__name__,
                "kind": item.kind,
                "claim": item.claim,
                "section": item.section,
                "verdict": verdict,
                "because": because,
                "welcome": item.welcome,
            }
        )
    return found


_CLAIMS, _EXPERIMENTS, _QUESTIONS = "Headline claims", "First experiments", "Open questions"
_SIGNATURES, _CHECKS, _OURS = "Failure signatures", "Next checks", "Beyond the paper"

_ITEMS = (
    _Item(_CLAIMS, "A map takes 99.8 % less time than the published teacher", "cost", measurements.time),
    _Item(_CLAIMS, "A map takes 44.4 % less memory than the published teacher", "cost", measurements.memory),
    _Item(
        _CLAIMS, "The proxy calls patches right more often than no patch relevant would", "fidelity", findings.accuracy
    ),
    _Item(_CLAIMS, "Accuracy and F1 on other data are not below those on its own", "generalisation", findings.no_loss),
    _Item(_CLAIMS, "Low map entropy goes with right answers", "entropy", findings.entropy),
    _Item(
        _EXPERIMENTS,
        "Within a question the proxy finds the teacher's relevant patches, better than chance or without the question",
        "fidelity",
        findings.thresholds,
    ),
    _Item(_EXPERIMENTS, "It still finds them on other data", "generalisation", findings.still_finds),
    _Item(
        _EXPERIMENTS,
        "Masking the patches it calls relevant costs more accuracy than masking any",
        "perturbation",
        measurements.perturbation,
    ),
    _Item(_QUESTIONS, "One entropy threshold carries over", "threshold", findings.carries_over),
    _Item(_QUESTIONS, "A larger proxy is a more faithful one", "fidelity", findings.trade_off),
    _Item(
        _QUESTIONS,
        "In each known way of failing the map lies less on what was asked about",
        "perturbation",
        measurements.failure_modes,
    ),
    _Item(
        _SIGNATURES,
        "Perturbation does not find what the answers rest on",
        "perturbation",
        measurements.perturbation_fails,
        welcome=False,
    ),
    _Item(_SIGNATURES, "Low entropy does not go with right answers", "entropy", findings.entropy_fails, welcome=False),
    _Item(_SIGNATURES, "Fidelity falls on other data", "generalisation", findings.falls, welcome=False),
    _Item(_CHECKS, "Shift analysis: AUPRC loses nearly nothing under any shift", "generalisation", findings.small_loss),
    _Item(
        _CHECKS,
        "Entropy study: the correlation is there within kinds of question, on all data",
        "entropy",
        findings.entropy_everywhere,
    ),
    _Item(_CHECKS, "Layer ablation: the final states suffice", "layers", measurements.layers),
    _Item(
        _OURS,
        "Masking what it calls relevant costs more than masking any on other data too",
        "perturbation",
        measurements.perturbation_shifted,
    ),
    _Item(_OURS, "The confidence is not below any other score", "confidence", findings.confidence),
    _Item(
        _OURS, "The confidence is above the token probability on other data", "confidence", findings.confidence_shifted
    ),
)
