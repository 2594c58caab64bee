"""What the sections that ask the model again say: cost, perturbation, layers.

Pure functions of the report; each gives a verdict and the sentence with the numbers that decided it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastrm_monitor.lab.report.decisions import (
    FAILS,
    HOLDS,
    MARGIN,
    MISSING,
    OPEN,
    Found,
    Report,
    above,
    all_hold,
    opposite,
    signed,
    turned,
    valued,
)

_TIME, _MEMORY = 0.998, 0.444
"""What the paper says its proxy saves."""
_LEFT_OUT = "The section was left out."


def _unmeasured(found: Report | None) -> Found:
    return (MISSING, _LEFT_OUT) if found is None else (OPEN, str(found["too_few"]))


def time(report: Report) -> Found:
    """Whether the proxy saves as much time as the paper says, against the published teacher."""
    found = report["cost"]
    if found is None:
        return MISSING, _LEFT_OUT
    name = next(iter(report["proxies_compared"]))
    saved, row = found["less_time_than_published"][name], found["less_time_than_row"][name]
    seconds = {
        variant: 1000 * found["seconds"][variant]["median"] for variant in ("teacher_published", "teacher_row", name)
    }
    said = (
        f"{_percent(saved)} less: {seconds[name]:.3f} ms by the proxy, {seconds['teacher_published']:.1f} ms by the "
        f"published teacher; {_percent(row)} less than the {seconds['teacher_row']:.1f} ms of the teacher by row "
        f"({found['device']}, {found['prompt_tokens']} tokens)."
    )
    return above(saved["ci95"], _TIME), said


def memory(report: Report) -> Found:
    """Whether it saves as much memory, weights included, at the peak of answering and explaining."""
    found = report["cost"]
    if found is None:
        return MISSING, _LEFT_OUT
    name = next(iter(report["proxies_compared"]))
    weights, alive = found["memory"]["weights"], found["memory"]["alive"]
    ours = weights + alive["forward"] + found["extra_memory_of_forward"][name]["bytes"]
    theirs = weights + alive["teacher_published"]
    saved = 1 - ours / theirs
    said = (
        f"{saved:.1%} less at the peak, weights included: {ours / 2**20:.1f} MiB for answer and map with the proxy, "
        f"{theirs / 2**20:.1f} MiB with the published teacher ({found['device']}, {found['prompt_tokens']} tokens)."
    )
    return HOLDS if saved >= _MEMORY else FAILS, said


def _percent(saved: Mapping[str, Any]) -> str:
    low, high = saved["ci95"]
    return f"{saved['value']:.2%} [{low:.2%}, {high:.2%}]"


def perturbation(report: Report) -> Found:
    """Whether masking by the proxy's order costs more accuracy than masking at random."""
    found = report["perturbation"]
    if found is None or "too_few" in found:
        return _unmeasured(found)
    apart, area = found["difference"]["proxy - random"], found["area"]
    teacher = found["difference"]["teacher - random"]
    said = (
        f"Area under the accuracy over {found['questions']} questions: "
        f"{valued(area['proxy']['mean'], area['proxy']['ci95'])} by the proxy's order, "
        f"{valued(area['random']['mean'], area['random']['ci95'])} at random, a difference of "
        f"{signed(apart['difference'], apart['ci95'])} (by the teacher's order "
        f"{signed(teacher['difference'], teacher['ci95'])}; below 0 the order finds what answers rest on)."
    )
    return above(turned(apart["ci95"], False), 0.0), said


def perturbation_fails(report: Report) -> Found:
    """The failure signature: it does not."""
    verdict, said = perturbation(report)
    return opposite(verdict), said


def perturbation_shifted(report: Report) -> Found:
    """Whether masking by the proxy's order costs more than at random on every other data set."""
    masked = {name: part["perturbation"] for name, part in report["shifts"].items() if part["perturbation"] is not None}
    if not masked:
        return MISSING, _LEFT_OUT if report["shifts"] else "Only one data set was judged."
    decided, said = [], []
    for name, found in masked.items():
        if "too_few" in found:
            decided.append(OPEN)
            said.append(f"{name}: {found['too_few'].rstrip('.')}")
            continue
        apart = found["difference"]["proxy - random"]
        decided.append(above(turned(apart["ci95"], False), 0.0))
        said.append(f"{name} {signed(apart['difference'], apart['ci95'])}")
    return all_hold(decided), f"Area under the accuracy by the proxy's order less that at random: {'; '.join(said)}."


def failure_modes(report: Report) -> Found:
    """Whether the map lies less on what was asked about where the answer is wrong, in each known way.

    A way of which nothing can be said leaves the claim open: it is about each of them.
    """
    found = report["perturbation"]
    if found is None or "too_few" in found:
        return _unmeasured(found)
    decided, said = [], []
    for mode, own in found["failures"].items():
        apart = own["difference"]["on_boxes"]["proxy"]
        changed = [own[side]["changed"] for side in ("wrong", "right")]
        decided.append(above(turned(apart["ci95"], False), 0.0))
        said.append(f"{mode} ({own['wrong']['answers']} wrong answers): {_less_on_boxes(own, apart)}")
        if changed[0]["n"] and changed[1]["n"]:
            shares = " of these and ".join(valued(one["rate"], one["ci95"]) for one in changed)
            said[-1] += f", masking the most relevant quarter changes {shares} of right ones"
    return all_hold(decided), f"{'; '.join(said)}."


def _less_on_boxes(own: Mapping[str, Any], apart: Mapping[str, Any]) -> str:
    """What one failure mode says, or why it says nothing."""
    if not own["wrong"]["answers"]:
        return "not seen here"
    without = [side for side in ("wrong", "right") if not own[side]["on_boxes"]["proxy"]["n"]]
    if without:
        return f"cannot be measured, since no box is known for the {without[0]} answers (what is not there has none)"
    return (
        f"{signed(apart['difference'], apart['ci95'])} of the relevance on what was asked about against right answers"
    )


def layers(report: Report) -> Found:
    """Whether no other layer is better than the final states by more than the margin."""
    found = report["layers"]
    if found is None or "too_few" in found:
        return _unmeasured(found)
    final = found["choices"]["final"]["auprc_within"]
    decided, said = [], []
    for name, own in found["choices"].items():
        if "difference" in own:
            apart = own["difference"]["auprc_within"]
            decided.append(above(turned(apart["ci95"], False), -MARGIN))
            said.append(f"{name} {signed(apart['difference'], apart['ci95'])}")
    return all_hold(decided), (
        f"AUPRC within questions {valued(final['value'], final['ci95'])} from the final states on {found['questions']} "
        f"questions; above that (a gain of {MARGIN} counts as none): {'; '.join(said) or 'no other layer'}."
    )
