"""The report's plots, as SVG to stand in the page: no scripts, no fonts, one colour for the text of either scheme.

Colours are those of Okabe and Ito without black and yellow, which can be told apart without full colour vision and on
light and dark ground; lines differ in their dashes too. Each plot takes parts of the report and knows no files.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastrm_monitor.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F")
DASHES = ("-", "--", "-.", ":", (0, (6, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
SHOWN = ("fastrm", "token_probability", "p_ik", "grounding", "evidence", "sampling", "map_entropy")
"""Scores that get a curve; a dozen cannot be told apart."""
_INK = "#010203"
"""Stands for the page's text colour until the SVG is in the page."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastrm-monitor",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names come from data and may hold a dollar sign
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def drawn(plot: Any, alt: str, size: tuple[float, float] = (4.6, 3.2)) -> str:
    """One plot as an `<svg>` element with its text for those who cannot see it.

    Args:
        plot: called with the axes.
        alt: what the plot shows.
        size: width and height in inches of 72 units.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from html import escape

    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("The plots of report.html", "lab") from None
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts draw the text, not matplotlib's
        figure: Figure = Figure(figsize=size, layout="constrained")
        plot(figure.subplots())
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt, quote=True)}"', 1)


def forest(part: Mapping[str, Any]) -> str:
    """AUROC of every score with its interval, beside chance."""
    rows = [(name, own) for name, own in part["confidence"].items() if own["auroc"] is not None]
    alt = f"AUROC by score on {part['data']}: " + "; ".join(
        _said(name, own, "auroc", "auroc_ci95") for name, own in rows
    )

    def plot(axes: Axes) -> None:
        _points(axes, [(name, own["auroc"], own["auroc_ci95"]) for name, own in rows], middle=0.5)
        axes.set_xlabel("AUROC: a right answer scores above a wrong one")
        axes.set_title(part["data"])

    return drawn(plot, alt, (4.8, 1.2 + 0.24 * max(len(rows), 1)))


def degradation(generalisation: Mapping[str, Mapping[str, Any]], metric: str, title: str) -> str:
    """What a metric loses from the first data set to each other, with its interval."""
    rows = [(name, own[metric]) for name, own in generalisation.items() if own[metric]["difference"] is not None]
    alt = f"{title}, change by data set: " + "; ".join(_said(name, own, "difference", "ci95") for name, own in rows)

    def plot(axes: Axes) -> None:
        _points(axes, [(name, own["difference"], own["ci95"]) for name, own in rows], middle=0.0)
        axes.set_xlabel("change against the first data set")
        axes.set_title(title)

    return drawn(plot, alt, (4.6, 1.2 + 0.24 * max(len(rows), 1)))


def risk_coverage(part: Mapping[str, Any]) -> str:
    """Risk of the answers kept against the share kept; below the flat line of a useless score is better."""
    own = part["curves"]["risk_coverage"]
    shown = [name for name in SHOWN if name in own]
    base = 1 - part["accuracy"]["all"]["rate"]
    areas = "; ".join(f"{name} {part['confidence'][name]['aurc']:.3f}" for name in shown)
    alt = f"Risk against coverage on {part['data']}, {base:.3f} of all answers wrong. Area by score: {areas}"

    def plot(axes: Axes) -> None:
        axes.axhline(base, color=_INK, linewidth=0.8, alpha=0.5)
        _lines(axes, [(name, own[name]["coverage"], own[name]["risk"]) for name in shown])
        axes.set(xlabel="coverage: share of answers kept", ylabel="risk: share wrong among them", title=part["data"])
        axes.set_xlim(0, 1)
        axes.set_ylim(0)

    return drawn(plot, alt)


def reliability(part: Mapping[str, Any]) -> str:
    """Stated probability against the share that is right, in bins of equal count."""
    own = part["curves"]["reliability"]
    errors = "; ".join(f"{name} {part['confidence'][name]['ece']:.3f}" for name in own)
    alt = f"Reliability diagram on {part['data']}. Calibration error: {errors}"

    def plot(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, alpha=0.5)
        series = [
            (name, [bin_["stated"] for bin_ in bins], [bin_["right"] for bin_ in bins]) for name, bins in own.items()
        ]
        _lines(axes, series, marker="o")
        axes.set(xlabel="stated probability", ylabel="share right", title=part["data"], xlim=(0, 1), ylim=(0, 1))

    return drawn(plot, alt)


def precision_recall(parts: Sequence[Mapping[str, Any]]) -> str:
    """Precision against recall of the patches called relevant, a curve for each data set."""
    shown = [part for part in parts if part["curves"]["precision_recall"]][: len(COLORS)]
    areas = "; ".join(f"{part['data']} {part['fidelity']['auprc']:.3f}" for part in shown)
    base = ", ".join(f"{part['fidelity']['base_rate']:.3f}" for part in shown)
    alt = f"Precision against recall of relevant patches. Area: {areas}. Share of relevant patches: {base}"

    def plot(axes: Axes) -> None:
        series = [
            (
                part["data"],
                part["curves"]["precision_recall"]["recall"],
                part["curves"]["precision_recall"]["precision"],
            )
            for part in shown
        ]
        _lines(axes, series)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1), title="Patches against the teacher")

    return drawn(plot, alt)


def thresholds(part: Mapping[str, Any]) -> str:
    """F1 of the patches over decision thresholds, a curve for each label threshold."""
    own = part["fidelity"]["label_thresholds"]
    series = [
        (
            f"label {label}",
            [float(bound) for bound in at["thresholds"]],
            [one["f1"] for one in at["thresholds"].values()],
        )
        for label, at in own.items()
    ]
    best = "; ".join(f"{name} best {max(values):.3f}" for name, _, values in series)
    alt = f"F1 of relevant patches over decision thresholds on {part['data']}: {best}"

    def plot(axes: Axes) -> None:
        _lines(axes, series, marker="o")
        axes.set(xlabel="decision threshold", ylabel="F1", title=part["data"])
        axes.set_ylim(0, 1)

    return drawn(plot, alt)


def entropies(part: Mapping[str, Any]) -> str:
    """How the map entropy of right and of wrong answers lies, each as a share of its own."""
    own = part["curves"]["entropy_histogram"]
    edges, counts = own["edges"], {name: own[name] for name in ("right", "wrong")}
    answers = f"{sum(counts['right'])} right and {sum(counts['wrong'])} wrong answers"
    alt = f"Histogram of map entropy on {part['data']}, {answers}"

    def plot(axes: Axes) -> None:
        for place, (name, values) in enumerate(counts.items()):
            total = max(sum(values), 1)
            shares = [value / total for value in values]
            axes.stairs(shares, edges, color=COLORS[place], label=f"{name} ({sum(values)})", linestyle=DASHES[place])
        axes.set(xlabel="map entropy", ylabel="share of the answers", title=part["data"])
        axes.legend()

    return drawn(plot, alt)


def perturbation(found: Mapping[str, Any], measure: str, title: str) -> str:
    """A share of the answers over the share of patches that are masked, a curve for each order of masking."""
    series = [(order, found["levels"], [one["rate"] for one in own]) for order, own in found[measure].items()]
    ends = "; ".join(f"{name} {values[0]:.3f} to {values[-1]:.3f}" for name, _, values in series)
    alt = f"{title} over the share of patches masked, on {found['questions']} questions: {ends}"

    def plot(axes: Axes) -> None:
        _lines(axes, series, marker="o")
        axes.set(xlabel="share of patches masked", ylabel=title, xlim=(0, 1), ylim=(0, 1))

    return drawn(plot, alt)


def _lines(axes: Axes, series: Sequence[tuple[str, Sequence[float], Sequence[float]]], marker: str = "") -> None:
    for place, (name, x, y) in enumerate(series):
        color, dash = COLORS[place % len(COLORS)], DASHES[place % len(DASHES)]
        axes.plot(x, y, color=color, linestyle=dash, label=_label(name), marker=marker, markersize=3, linewidth=1.5)
    if series:
        axes.legend()


def _points(axes: Axes, rows: Sequence[tuple[str, float, list[float] | None]], middle: float) -> None:
    """A point and its interval for each row, the first on top; one without an interval is hollow."""
    axes.axvline(middle, color=_INK, linewidth=0.8, alpha=0.5)
    for place, (_, value, bounds) in enumerate(rows):
        if bounds:
            axes.plot(bounds, [place, place], color=COLORS[0], linewidth=1.5)
        axes.plot([value], [place], "o", color=COLORS[0], markersize=5, fillstyle="full" if bounds else "none")
    axes.set_yticks(range(len(rows)), [name[:40] for name, _, _ in rows])
    axes.invert_yaxis()


def _label(name: str) -> str:
    """Matplotlib leaves names that begin with an underscore out of a legend."""
    return " " + name[:40] if name.startswith("_") else name[:40]


def _said(name: str, own: Mapping[str, Any], value: str, bounds: str) -> str:
    low_high = own[bounds]
    return f"{name} {own[value]:.3f}" + (f" ({low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else "")
