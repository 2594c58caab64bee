"""What the data sets of a report say on the claims about fidelity, generalisation, entropy and confidence.

Pure functions of the report; each gives a verdict and the sentence with the numbers that decided it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    between,
    opposite,
    signed,
    turned,
    valued,
)

WEAK = 0.55
"""An AUROC whose interval lies below this is as good as none."""
FLAGGED = (0.05, 0.2)
"""A threshold that flags 10 % carries over where it flags between half and twice as many."""
SIGNIFICANT = 0.05


# --- fidelity ------------------------------------------------------------------------------------------------------


def accuracy(report: Report) -> Found:
    """Whether the patches are called right more often than by calling none relevant."""
    one, at_half, bounds = _fidelity(report)
    said = (
        f"Accuracy {valued(at_half['accuracy'], bounds['accuracy'])} where calling every patch irrelevant has "
        f"{one['all_negative_accuracy']:.3f}: a gain of "
        f"{valued(at_half['accuracy'] - one['all_negative_accuracy'], bounds['accuracy_gain'])}, "
        f"with {one['base_rate']:.1%} of {one['patches']} patches relevant."
    )
    return above(bounds["accuracy_gain"], 0.0), said


def thresholds(report: Report) -> Found:
    """Whether the relevant patches of a question are found better than by chance, and by maps that do not know it.

    Pooled, a map would pass that is level in every question and only knows in which questions many are relevant; above
    chance, one that only knows where objects lie.
    """
    one, at_half, bounds = _fidelity(report)
    if one["auprc"] is None:
        return OPEN, "No patch is relevant to the teacher."
    if one["auprc_within"] is None:
        return OPEN, "No question has both relevant and irrelevant patches."
    best = max(own["f1"] for at in one["label_thresholds"].values() for own in at["thresholds"].values())
    gain = valued(one["auprc_within"] - one["chance_within"], bounds["auprc_within_gain"])
    said = (
        f"AUPRC within questions {_within(one, bounds)}, a gain of {gain}; over the patches of all questions "
        f"{valued(one['auprc'], bounds['auprc'])} where {one['base_rate']:.3f} are relevant, which also counts "
        f"knowing in which questions many are; F1 at decision 0.5 "
        f"{valued(at_half['f1'], bounds['f1'])}, best of the sweep {best:.3f}. Above maps that do not know the "
        f"question: {'; '.join(_above_blind(report))}."
    )
    return _finds(report), said


_BLIND = {"mean_map": "the mean map of other pictures", "other_questions": "that of the picture's other questions"}


def _finds(part: Report) -> str:
    """Better than chance, and than every map without the question; open where there is none to be better than."""
    blind = [above(own["ci95"], 0.0) for own in part["question_blind"].values()]
    return all_hold([above(part["fidelity"]["ci95"]["auprc_within_gain"], 0.0), *blind])


def _above_blind(part: Report) -> list[str]:
    return [
        f"{_BLIND[name]} {signed(own['difference'], own['ci95'])}" if own["n"] else f"{_BLIND[name]} does not exist"
        for name, own in part["question_blind"].items()
    ]


def trade_off(report: Report) -> Found:
    """Whether the larger of two proxies is the more faithful one."""
    if not report["proxies"]:
        return MISSING, "One proxy was judged: give --proxy several times."
    compared = report["proxies_compared"]
    sizes = {name: one["parameters"] for name, one in compared.items()}
    first, *_ = sizes
    decided, said = [], []
    for name, one in report["proxies"].items():
        apart = one["difference"]["auprc_within"]
        larger = sizes[first] > sizes[name]
        gain = turned(apart["ci95"], larger)
        decided.append(above(gain, 0.0) if sizes[first] != sizes[name] else OPEN)
        said.append(
            f"{first} ({compared[first]['form']}, {sizes[first]} parameters) has "
            f"{signed(apart['difference'], apart['ci95'])} AUPRC within questions above {name} "
            f"({compared[name]['form']}, {sizes[name]} parameters)"
        )
    return all_hold(decided), "; ".join(said) + ". The size of the LVLM does not vary within a report."


# --- generalisation ------------------------------------------------------------------------------------------------


def no_loss(report: Report) -> Found:
    """The paper's generalisation: no accuracy and no F1 is lost on other data."""
    return _kept(report, ("patch_accuracy", "f1"), 0.0, "Accuracy and F1 of patches")


def still_finds(report: Report) -> Found:
    """Whether the relevant patches are found on every other data set."""
    if not report["shifts"]:
        return MISSING, "Only one data set was judged."
    decided, said = [], []
    for name, part in report["shifts"].items():
        one, _, bounds = _fidelity(part)
        decided.append(_finds(part))
        said.append(f"{name} {_within(one, bounds)}, above {', '.join(_above_blind(part))}")
    return all_hold(decided), f"AUPRC within questions on {'; '.join(said)}."


def small_loss(report: Report) -> Found:
    """Whether no other data set loses more AUPRC than the margin."""
    return _kept(report, ("auprc_within",), MARGIN, "AUPRC within questions")


def falls(report: Report) -> Found:
    """The failure signature: some data set does."""
    verdict, said = small_loss(report)
    return opposite(verdict), said


def _kept(report: Report, metrics: Sequence[str], margin: float, title: str) -> Found:
    """Whether no metric loses more than `margin` on any other data set."""
    if not report["generalisation"]:
        return MISSING, "Only one data set was judged."
    decided, said = [], []
    for name, own in report["generalisation"].items():
        changes = [own[metric] for metric in metrics]
        decided += [above(change["ci95"], -margin) for change in changes]
        said.append(f"{name} {' and '.join(signed(one['difference'], one['ci95']) for one in changes)}")
    allowed = f" (a loss of {margin} counts as none)" if margin else ""
    return all_hold(decided), f"{title} against {report['data']}{allowed}: {'; '.join(said)}."


# --- entropy and confidence ----------------------------------------------------------------------------------------


def entropy(report: Report) -> Found:
    """Whether low map entropy goes with right answers on the first data set."""
    own = report["confidence"].get("map_entropy")
    if own is None:
        return MISSING, "The map entropy was not judged."
    return _ranks(own, "auroc", "auroc_ci95", own), _entropy_said(report["data"], own)


def entropy_fails(report: Report) -> Found:
    """The failure signature: it does not."""
    verdict, said = entropy(report)
    return opposite(verdict), said


def entropy_everywhere(report: Report) -> Found:
    """Whether it does so within families of questions on every data set."""
    parts = [part for part in _parts(report) if "map_entropy" in part["confidence"]]
    if not parts:
        return MISSING, "The map entropy was not judged."
    entropies = [(part["data"], part["confidence"]["map_entropy"]) for part in parts]
    decided = [_ranks(own["within"], "auroc", "ci95", own) for _, own in entropies]
    said = " ".join(_entropy_said(name, own) for name, own in entropies)
    count = sum(one == HOLDS for one in decided)
    return all_hold(decided), f"Within families of questions it holds on {count} of {len(decided)} data sets. {said}"


def _ranks(own: Mapping[str, Any], value: str, bounds: str, tested: Mapping[str, Any]) -> str:
    if own[bounds] is None or tested["p_holm"] is None:
        return OPEN
    low, high = own[bounds]
    if high < WEAK:
        return FAILS
    return HOLDS if low > 0.5 and tested["p_holm"] < SIGNIFICANT else OPEN


def _entropy_said(name: str, own: Mapping[str, Any]) -> str:
    p = f"p {own['p_holm']:.3f} after Holm" if own["p_holm"] is not None else "too few answers for a test"
    spearman = f"{own['spearman']:.3f}" if own["spearman"] is not None else "undefined"
    within = valued(own["within"]["auroc"], own["within"]["ci95"])
    return (
        f"On {name} ({own['wrong']} of {own['n']} wrong) low entropy goes with right answers by AUROC "
        f"{valued(own['auroc'], own['auroc_ci95'])}, within families {within}, rank correlation {spearman}, {p}."
    )


def carries_over(report: Report) -> Found:
    """Whether the first entropy threshold flags about as many answers on the others, and more of the wrong ones."""
    others = [part for part in report["shifts"].values() if "map_entropy" in part["threshold"]]
    if not others:
        return MISSING, "Only one data set was judged."
    decided, said = [], []
    for part in others:
        own = part["threshold"]["map_entropy"]
        flagged, precision = own["flag_rate"], own["precision"]
        decided += [between(flagged["ci95"], *FLAGGED), above(own["lift"]["ci95"], 0.0)]
        base = 1 - part["accuracy"]["all"]["rate"]
        said.append(
            f"{part['data']} flags {valued(flagged['rate'], flagged['ci95'])} of n = {flagged['n']}, "
            f"{valued(precision['rate'], precision['ci95'])} of those wrong (all answers: {base:.3f}; "
            f"{signed(own['lift']['difference'], own['lift']['ci95'])})"
        )
    bound = report["threshold"]["map_entropy"]["threshold"]
    return all_hold(decided), f"The entropy {bound:.4f}, which flags 10 % on {report['data']}: {'; '.join(said)}."


def confidence(report: Report) -> Found:
    """Whether our confidence is not below any other score on the first data set."""
    return _against_all(report["auroc_difference"], report["data"], MARGIN / 5)


def _against_all(differences: Mapping[str, Any], name: str, margin: float) -> Found:
    """Whether our confidence is not more than `margin` below any other score."""
    if not differences:
        return MISSING, "There is no other score to compare with."
    decided = [above(own["ci95"], -margin) for own in differences.values()]
    said = "; ".join(f"{other} {signed(own['difference'], own['ci95'])}" for other, own in differences.items())
    return all_hold(decided), f"AUROC on {name} above each other score (a loss of {margin:.2f} counts as none): {said}."


def confidence_shifted(report: Report) -> Found:
    """Whether our confidence is above the token probability on every other data set."""
    others = [part for part in report["shifts"].values() if "token_probability" in part["auroc_difference"]]
    if not others:
        return MISSING, "Only one data set was judged."
    decided, said = [], []
    for part in others:
        own = part["auroc_difference"]["token_probability"]
        ours = part["confidence"]["fastrm"]
        decided.append(above(own["ci95"], 0.0))
        said.append(
            f"{part['data']} {valued(ours['auroc'], ours['auroc_ci95'])}, "
            f"{signed(own['difference'], own['ci95'])} above the token probability"
        )
    return all_hold(decided), f"AUROC on {'; '.join(said)}."


def _parts(report: Report) -> list[Report]:
    return [report, *report["shifts"].values()]


def _within(one: Mapping[str, Any], bounds: Mapping[str, Any]) -> str:
    if one["auprc_within"] is None:
        return "undefined"
    chance = f"where a random order of the patches has {one['chance_within']:.3f}"
    return f"{valued(one['auprc_within'], bounds['auprc_within'])} {chance}"


def _fidelity(part: Report) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    one = part["fidelity"]
    return one, one["thresholds"]["0.5"], one["ci95"]
