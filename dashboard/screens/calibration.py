"""Calibration: from labels to a confidence that can be believed and a threshold that can be defended.

Heavy work is kept until there are other labels, so that another target is another look at the same numbers.
"""

from __future__ import annotations

import importlib.util

import streamlit as st
from sqlalchemy import func, select

from fastrm_monitor.calibration import answers as labelled
from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.calibration.choice import refuse_biased
from fastrm_monitor.calibration.fitting import Estimate, Fit, fit, labels_needed
from fastrm_monitor.dashboard import (
    charts,
    figures,
    publishing,
    queries,
    reliability,
    state,
    threshold,
    views,
    words,
)
from fastrm_monitor.dashboard.reliability import Labels, Point
from fastrm_monitor.dashboard.threshold import SAMPLE, Pair, Version
from fastrm_monitor.errors import DataError, MissingExtraError
from fastrm_monitor.records.models import Review
from fastrm_monitor.records.store import Store

_WIDTHS = (0.01, 0.02, 0.03, 0.05)


@st.cache_resource(ttl=60, show_spinner="Looking for models…")
def _pairs(_store: Store, url: str) -> list[Pair]:
    """Models with their proxies, that with the newest case first."""
    with _store.session() as session:
        return queries.models(session)


@st.cache_resource(ttl=300, max_entries=8, show_spinner="Reading the labels…")
def _answers(_store: Store, url: str, pair: Pair, version: Version) -> Answers:
    return labelled.from_store(_store, model=pair[0], proxy_version=pair[1])


@st.cache_resource(ttl=300, max_entries=8, show_spinner="Calibrating…")
def _fit(_answers: Answers, url: str, pair: Pair, version: Version) -> Fit | str:
    """The recalibration, or the sentence that says why there is none."""
    try:
        refuse_biased(_answers)
        return fit(_answers)
    except DataError as error:
        return str(error)


def _version(store: Store) -> Version:
    with store.session() as session:
        newest, number = session.execute(select(func.max(Review.id), func.count(Review.id))).one()
    return (newest or 0, number)


@st.fragment
@state.guarded
def page() -> None:
    """Labels, reliability, threshold, preview and versions of one model and proxy."""
    heading, choice = st.columns([1, 1], vertical_alignment="center")
    if any(importlib.util.find_spec(name) is None for name in ("scipy", "sklearn")):
        views.title("Calibration")
        raise MissingExtraError("Calibrating", "dashboard")
    store = state.store()
    pairs = _pairs(store, store.url)
    with heading:
        views.title("Calibration", "" if len(pairs) != 1 else _named(pairs[0]))
    if not pairs:
        views.empty(
            "tune",
            "Nothing to calibrate yet",
            "Scored answers appear here once a monitor stores them; labels come from the review queue.",
        )
        return
    with choice:
        pair = pairs[0] if len(pairs) == 1 else _choose(pairs)
    publishing.show_said()
    version = _version(store)
    answers = _answers(store, store.url, pair, version)
    labels = reliability.count(answers)
    _labels(labels)
    found = publishing.listed(store, *pair)
    made = _fit(answers, store.url, pair, version)
    if isinstance(made, str):
        _not_yet(labels, made)
    else:
        st.space("xsmall")
        _reliability(made, labels)
        st.space("small")
        threshold.show(threshold.Basis(store, answers, made, pair, version), found)
    st.space("small")
    publishing.versions(found)


def _named(pair: Pair) -> str:
    return f"{words.plain(pair[0])}, proxy {words.plain(pair[1])}"


def _choose(pairs: list[Pair]) -> Pair:
    with st.container(horizontal=True, horizontal_alignment="right"):
        place: int = st.selectbox(
            "Model and proxy",
            range(len(pairs)),
            format_func=lambda number: _named(pairs[number]),
            key="pair",
            label_visibility="collapsed",
            width=420,
        )
    return pairs[place]


# --- labels ----------------------------------------------------------------------------------------------------------


def _labels(labels: Labels) -> None:
    cells = st.columns(5, gap="small")
    figures.number(
        cells[0],
        "Labels",
        f"{labels.labelled:,}",
        f"{labels.right:,} right · {labels.wrong:,} wrong",
        "Not grounded counts as wrong, since it would be right by luck; unsure is left out.",
    )
    figures.number(
        cells[1],
        "Of the random sample",
        f"{labels.sampled[1]:,}",
        f"of {labels.sampled[0]:,} drawn",
        "Estimates rest on these. A flagged answer that was drawn as well counts here, too.",
    )
    figures.number(cells[2], "Of the flagged", f"{labels.flagged[1]:,}", f"of {labels.flagged[0]:,} flagged")
    low, high = labels.weights
    figures.number(
        cells[3],
        "Effective labels",
        f"{labels.effective:,.0f}",
        f"weights {low:.3g} to {high:.3g}" if labels.labelled else "no weights yet",
        "A label stands for as many answers of the traffic as its weight says: 1 / (P(stored) × P(labelled)). Unequal "
        "weights count as (Σw)² / Σw² equal ones (Kish 1965).",
    )
    base, honest = labels.base, labels.unflagged > 0
    figures.number(
        cells[4],
        "Base rate",
        words.percent(base.value) if honest else "–",
        base.between if honest else "needs a sample",
        "Weighted share of right answers in the traffic, with its 95 % interval.",
    )


def _not_yet(labels: Labels, why: str) -> None:
    """What is missing, and where to get it."""
    st.space("small")
    if not labels.labelled:
        views.empty("label", "No labels yet", why)
    else:
        views.notice("warning", why)
        rows = [
            (
                views.badge("Enough", "check_circle", "green")
                if there >= needed
                else views.badge("Lacking", "pending", "amber"),
                words.inert(what),
                f"{there:,}",
                f"{needed:,}",
            )
            for what, there, needed in labels.lacking
        ]
        st.html(words.table_of_html(("", "What calibration needs at least", "There", "Needed"), rows, (2, 3)))
    with st.container(horizontal=True, horizontal_alignment="center"):
        st.page_link(
            "screens/queue.py",
            label="Label the random sample",
            icon=":material/rate_review:",
            query_params=SAMPLE,
        )


# --- reliability -----------------------------------------------------------------------------------------------------


def _reliability(made: Fit, labels: Labels) -> None:
    points = reliability.points(made, labels)
    sizes = [one.right.n for one in points]
    ece, after = f"{made.before.ece.value:.3f}", f"{made.after.ece.value:.3f}"
    left, right = st.columns([11, 9], gap="large")
    with left:
        views.section("Reliability", "share of right answers, by stated probability")
        alt = f"Reliability diagram. Expected calibration error {ece} before and {after} after recalibration."
        diagram, counts = charts.reliability(points)
        st.altair_chart(diagram, alt=alt)
        st.altair_chart(counts, alt=f"Labels of each bin, {min(sizes):,} to {max(sizes):,}.")
    with right:
        views.section("Held-out quality", "95 % intervals over pictures")
        rows = [
            (name, _estimate(getattr(made.before, key)), _estimate(getattr(made.after, key)))
            for name, key in (("ECE", "ece"), ("Brier score", "brier"))
        ]
        st.html(words.table(("", "Before", "After recalibration"), rows))
        base = labels.base
        views.quiet(
            f"n = {made.n:,} labels about {made.pictures:,} pictures, base rate {words.percent(base.value)} right. "
            f"Recalibrated by {_METHODS.get(made.method, made.method)}; after: each answer by a fit without its "
            "picture. Weighted to the traffic."
        )
        _needed(made)
        _numbers(points)


def _numbers(points: list[Point]) -> None:
    with st.expander("The numbers of the diagram"):
        table = [
            (
                {"before": "Before", "after": "After, held out"}[one.series],
                words.percent(one.stated),
                words.percent(one.right.value),
                one.right.between,
                f"{one.right.n:,}",
            )
            for one in points
        ]
        st.html(words.table(("Confidence", "Stated", "Right", "95 % interval", "Labels"), table, numbers=range(1, 5)))
        views.quiet(
            "Bins hold equal shares of the traffic. Their intervals are exact ones (Clopper and Pearson), with as many "
            "labels as the weights count for."
        )


_METHODS = {"platt": "Platt's line", "isotonic": "isotonic regression"}


def _needed(made: Fit) -> None:
    width = st.selectbox(
        "Wanted interval of the ECE",
        _WIDTHS,
        index=1,
        format_func=lambda value: f"± {value:.2f}",
        key="width",
        width=220,
    )
    needed = labels_needed(made.after.ece, made.n, width)
    if needed is None:
        views.quiet("Too few pictures for an interval.")
    elif needed <= made.n:
        views.quiet(f"Reached: about {needed:,} labels give it, and there are {made.n:,}.")
    else:
        views.quiet(f"About {needed:,} labels give it, {needed - made.n:,} more than there are.")


def _estimate(estimate: Estimate) -> str:
    if estimate.ci95 is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.ci95[0]:.3f} to {estimate.ci95[1]:.3f})"


page()
