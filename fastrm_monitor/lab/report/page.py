"""`report.html`: the report as one page that stands alone, readable without scripts, network or colour vision.

Everything that comes from data goes through the template's escaping; only the plots are put in as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastrm_monitor.errors import MissingExtraError
from fastrm_monitor.lab.report import plots
from fastrm_monitor.lab.report.notes import notes

_TEMPLATE = "page.html"


def page(report: Mapping[str, Any], examples: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of a report.

    Args:
        report: as `assemble` gives it.
        examples: answers with pictures, as `examples.gather` gives them.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError:
        raise MissingExtraError("report.html", "lab") from None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, rate, signed, whole, milliseconds, percent, fidelities, gain)
    environment.filters.update({one.__name__: one for one in filters})
    parts = [report, *report["shifts"].values()]
    drawn = {name: [Markup(one) for one in many] for name, many in _plots(report, parts).items()}  # noqa: S704
    made: str = environment.get_template(_TEMPLATE).render(
        report=report, parts=parts, plots=drawn, examples=examples, kinds=_kinds(report), notes=notes(report)
    )
    return made


def _plots(report: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    titles = {
        "auprc": "AUPRC of patches",
        "auprc_within": "AUPRC within questions",
        "f1": "F1 of patches",
        "auroc": "AUROC of the confidence",
    }
    changes, masked = report["generalisation"], report["perturbation"]
    measures = {"accuracy": "share right", "changed": "share of answers changed"}
    return {
        "fidelity": [plots.precision_recall(parts), plots.thresholds(report)],
        "generalisation": [plots.degradation(changes, name, title) for name, title in titles.items()]
        if changes
        else [],
        "perturbation": [plots.perturbation(masked, *one) for one in measures.items()] if _known(masked) else [],
        "entropy": [plots.entropies(part) for part in parts if "entropy_histogram" in part["curves"]],
        "forest": [plots.forest(part) for part in parts],
        "risk": [plots.risk_coverage(part) for part in parts],
        "reliability": [plots.reliability(part) for part in parts],
    }


def _known(section: Mapping[str, Any] | None) -> bool:
    return section is not None and "too_few" not in section


def _kinds(report: Mapping[str, Any]) -> list[str]:
    """The kinds of verdicts, in the order in which they come."""
    return list(dict.fromkeys(one["kind"] for one in report["verdicts"]))


def fidelities(part: Mapping[str, Any], report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and fidelity of every proxy on one data set, the product's first."""
    first = next(iter(report["proxies_compared"]))
    return [(first, part["fidelity"]), *((name, own["fidelity"]) for name, own in part["proxies"].items())]


def gain(one: Mapping[str, Any]) -> float | None:
    """What a fidelity's AUPRC within questions has above that of a random order of the patches."""
    return None if one["auprc_within"] is None else one["auprc_within"] - one["chance_within"]


def number(value: float | None, digits: int = 3) -> str:
    """A number to three digits; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def rate(value: float | None, bounds: Sequence[float] | None) -> str:
    """A number with its interval, or the plain statement that it is too little to conclude from."""
    if value is None:
        return "–"
    return f"{value:.3f} " + (f"[{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "(cannot conclude)")


def signed(value: float | None, bounds: Sequence[float] | None) -> str:
    """A difference with its sign and interval."""
    if value is None:
        return "–"
    return f"{value:+.3f} " + (f"[{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else "(cannot conclude)")


def whole(value: float | int | None) -> str:
    """A count with its thousands apart."""
    return "–" if value is None else f"{value:,.0f}".replace(",", " ")


def milliseconds(value: float, bounds: Sequence[float] | None = None) -> str:
    """Seconds in milliseconds, with their interval."""
    return f"{1000 * value:.3g}" + (f" [{1000 * bounds[0]:.3g}, {1000 * bounds[1]:.3g}]" if bounds else "")


def percent(value: float, bounds: Sequence[float] | None = None) -> str:
    """A ratio in percent, with its interval."""
    return f"{value:.2%}" + (f" [{bounds[0]:.2%}, {bounds[1]:.2%}]" if bounds else "")
