"""The threshold of the calibration page: chosen by a target, and what it would have flagged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import streamlit as st

from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.calibration.choice import Outcome, calibrate
from fastrm_monitor.calibration.fitting import Fit
from fastrm_monitor.dashboard import charts, figures, preview, publishing, views, words
from fastrm_monitor.dashboard.preview import Preview, Rule, Served
from fastrm_monitor.errors import DataError
from fastrm_monitor.records.models import PolicyRecord
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.recalibration import Recalibration

SHOWN = 4  # cases of each list

_WAYS = {"risk": "Risk bound", "precision": "Precision", "flag-rate": "Flag rate"}
_TARGETS = {  # label, least, most, default and step in percent
    "risk": ("Of the answers that are not flagged, at most this share is wrong", 0.5, 50.0, 5.0, 0.5),
    "precision": ("Of the answers that are flagged, at least this share is wrong", 5.0, 95.0, 50.0, 1.0),
    "flag-rate": ("This share of the traffic is flagged", 0.5, 50.0, 10.0, 0.5),
}
SAMPLE = {"kind": "Random sample", "order": "Oldest first"}  # the queue, in the words of its address
Pair = tuple[str, str]  # model and proxy version
Version = tuple[int, int]  # newest review, and how many there are


@st.cache_resource(ttl=300, max_entries=64, show_spinner="Choosing a threshold…")
def _outcome(
    _answers: Answers,
    _made: Fit,
    url: str,
    pair: Pair,
    version: Version,
    method: str,
    target: float,
    confidence: float,
) -> Outcome | str:
    """The outcome, or the sentence that says why there is none."""
    try:
        return calibrate(_answers, method, target, confidence, _made)
    except DataError as error:
        return str(error)


@st.cache_resource(ttl=60, max_entries=8, show_spinner="Reading the last days…")
def _served(_store: Store, url: str, pair: Pair, source: str) -> Served:
    with _store.session() as session:
        return preview.served(session, *pair, source)


@dataclass(frozen=True, eq=False)
class Basis:
    """What a threshold is chosen on.

    Attributes:
        store: of the cases.
        answers: the labelled ones.
        made: their recalibration.
        pair: model and proxy version.
        version: of the labels.
    """

    store: Store
    answers: Answers
    made: Fit
    pair: Pair
    version: Version

    def outcome(self, method: str, target: float, confidence: float) -> Outcome | str:
        """The outcome, or the sentence that says why there is none."""
        return _outcome(
            self.answers, self.made, self.store.url, self.pair, self.version, method, round(target, 6), confidence
        )


def show(basis: Basis, found: list[PolicyRecord]) -> None:
    """Choose a threshold, see what it would have flagged, publish it.

    Args:
        basis: what it is chosen on.
        found: the versions that were published, the newest first.
    """
    views.section("Threshold", "answers whose recalibrated confidence is below are flagged")
    way, amount, sure = st.columns([5, 8, 3], gap="medium", vertical_alignment="bottom")
    with way:
        method = st.segmented_control(
            "Chosen by",
            list(_WAYS),
            default="risk",
            required=True,
            format_func=_WAYS.__getitem__,
            key="method",
            bind="query-params",
        )
        method = method or "risk"
    label, least, most, default, step = _TARGETS[method]
    with amount:
        target = st.slider(label, least, most, default, step, format="%.1f %%", key=_key(method), bind="query-params")
    with sure:
        confidence = 0.95
        if method != "flag-rate":
            confidence = st.selectbox(
                "Confidence",
                (0.9, 0.95, 0.99),
                index=1,
                format_func=lambda value: f"{value:.0%}",
                key="confidence",
                bind="query-params",
            )
    outcome = basis.outcome(method, target / 100, confidence)
    if isinstance(outcome, str):
        _infeasible(basis, method, confidence, outcome)
        return
    _chosen(outcome, found)
    for warning in outcome.warnings:
        views.notice("warning", warning)
    st.space("small")
    today = _today(found, outcome.fit.recalibration.source)
    served = _served(basis.store, basis.store.url, basis.pair, outcome.fit.recalibration.source)
    _preview(basis.store, served, outcome, today, found)
    st.space("small")
    publishing.publish(outcome, found)


def _key(method: str) -> str:
    return f"at-{method}"


def _chosen(outcome: Outcome, found: list[PolicyRecord]) -> None:
    chosen = outcome.chosen
    cells = st.columns(4, gap="small")
    before = f"version {found[0].id}: {found[0].threshold:.1%}" if found else "none was published yet"
    figures.number(cells[0], "Threshold", f"{outcome.threshold:.1%}", before, "Below it: the version in force.")
    low, high = chosen["flagged_share_ci95"]
    figures.number(
        cells[1],
        "Would flag",
        words.percent(chosen["flagged_share"]),
        f"{words.percent(low)} to {words.percent(high)}",
        "Of the sampled traffic of all times; below it the 95 % interval.",
    )
    if "bound" not in chosen:
        figures.number(cells[2], "Rests on", f"{chosen['n']:,}", "sampled answers, labelled or not")
        figures.number(cells[3], "Held", "–", "a flag rate promises nothing of errors")
        return
    risk = chosen["method"] == "risk"
    share = chosen["bad"] / chosen["n"] if chosen["n"] else None
    figures.number(
        cells[2],
        "Wrong if not flagged" if risk else "Wrong if flagged",
        words.percent(share if risk or share is None else 1 - share),
        f"at most {words.percent(chosen['bound'])}" if risk else f"at least {words.percent(1 - chosen['bound'])}",
        f"Among the labels that it was chosen on; below it the bound, which holds with {chosen['confidence']:.0%} "
        "confidence.",
    )
    figures.number(
        cells[3],
        "Rests on",
        f"{chosen['n']:,}",
        f"labels, {chosen['bad']:,} {'wrong' if risk else 'right'}",
        "Labels of the random sample on that side of the threshold"
        + ("; in the bound each picture counts once." if "pictures" in chosen else "."),
    )


def _infeasible(basis: Basis, method: str, confidence: float, why: str) -> None:
    views.empty("block", "This cannot be shown with these labels", why)
    with st.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center", gap="small"):
        st.button(
            "Find what can be shown",
            key="find",
            icon=":material/search:",
            on_click=_find,
            args=(basis, method, confidence),
        )
        st.page_link(
            "screens/queue.py",
            label="Label the random sample",
            icon=":material/rate_review:",
            query_params=SAMPLE,
        )
    if st.session_state.pop("calibration-nothing", False):
        views.notice("warning", "Not even the weakest target of this kind can be shown: label more of the sample.")


def _find(basis: Basis, method: str, confidence: float) -> None:
    """Set the slider to the strictest target that can be shown; which can is monotone."""
    _, least, most, _, step = _TARGETS[method]
    steps = round((most - least) / step)
    weak, strict = (steps, -1) if method == "risk" else (0, steps + 1)  # numbers of steps; strict is not possible

    def possible(number: int) -> bool:
        return not isinstance(basis.outcome(method, (least + number * step) / 100, confidence), str)

    if not possible(weak):
        st.session_state["calibration-nothing"] = True
        return
    while abs(weak - strict) > 1:
        middle = (weak + strict) // 2
        weak, strict = (middle, strict) if possible(middle) else (weak, middle)
    st.session_state[_key(method)] = least + weak * step


# --- preview ---------------------------------------------------------------------------------------------------------


def _today(found: list[PolicyRecord], source: str) -> Rule | None:
    """The policy in force; None without one that servers can use for these scores."""
    if not found:
        return None
    try:
        recalibration = Recalibration.from_json(found[0].recalibration)
    except DataError:  # servers ignore it too
        return None
    return Rule(recalibration, found[0].threshold) if recalibration.source == source else None


def _preview(store: Store, served: Served, outcome: Outcome, today: Rule | None, found: list[PolicyRecord]) -> None:
    views.section("Preview", f"the last {preview.DAYS} days, estimated from the random sample")
    if not served.sampled.any():
        views.empty("event_busy", "No sampled answers in these days", "A preview needs some of the last days' traffic.")
        return
    seen = preview.compare(served, Rule(outcome.fit.recalibration, outcome.threshold), today)
    name = "as served" if today is None else f"by version {found[0].id}"
    numbers, drawn = st.columns([2, 3], gap="large")
    with numbers:
        one, other = st.columns(2, gap="small")
        flagged, now = seen.new.value * seen.answers, seen.today.value * seen.answers
        about = f"About that many of {seen.answers:,.0f} answers; below it the 95 % interval of their share."
        figures.number(one, "Would have flagged", f"{flagged:,.0f}", seen.new.between, about)
        figures.number(other, "Than today", f"{flagged - now:+,.0f}", f"{now:,.0f} {name}")
        figures.number(one, "A day", f"{flagged / served.days:,.0f}", f"over {served.days:.0f} days")
        rested = f"{seen.new.n:,} sampled answers"
        figures.number(other, "Share", words.percent(seen.new.value), rested)
    with drawn:
        said = ", ".join(f"{day.start:%d %b} {day.new.value:.0%} ({day.today.value:.0%})" for day in seen.days)
        st.altair_chart(charts.flagged_by_day(seen.days), alt=f"Share flagged by day, in brackets today's: {said}.")
    if served.cut:
        views.quiet(f"Of more than {preview.MOST:,} stored answers the newest were looked at.")
    st.space("xsmall")
    _changes(store, served, outcome.fit.recalibration, seen)


def _changes(store: Store, served: Served, recalibration: Recalibration, seen: Preview) -> None:
    """Some of the cases that are decided otherwise, nearest to the threshold first, with their new confidence."""
    for column, heading, ids, none in zip(
        st.columns(2, gap="large"),
        ("Flagged in addition", "Not flagged any more"),
        (seen.added, seen.removed),
        ("No stored answer would be flagged in addition.", "Every stored answer that is flagged would be."),
        strict=True,
    ):
        with column:
            views.section(heading, f"{len(ids):,} of the stored answers")
            if not ids:
                views.quiet(none)
            with store.session() as session:
                rows = preview.rows(session, ids[:SHOWN])
            for row in rows:
                score = float(served.score[served.ids.index(row.case_id)])
                views.linked(views.row, replace(row, confidence=recalibration(score), calibrated=True))
