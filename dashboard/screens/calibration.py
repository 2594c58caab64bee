"""Calibration: from labels to a confidence that can be believed and a threshold that can be defended.

Heavy work is kept until there are other labels, so that another target is another look at the same numbers.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import streamlit as st
from sqlalchemy import func, select

from fastrm_monitor.calibration import answers as labelled
from fastrm_monitor.calibration.answers import Answers
from fastrm_monitor.calibration.choice import Outcome, calibrate, refuse_biased
from fastrm_monitor.calibration.fitting import Estimate, Fit, fit, labels_needed
from fastrm_monitor.dashboard import charts, figures, preview, publishing, queries, reliability, state, views, words
from fastrm_monitor.dashboard.preview import Preview, Rule, Served
from fastrm_monitor.dashboard.reliability import Labels, Point, Share
from fastrm_monitor.errors import DataError, MissingExtraError
from fastrm_monitor.records.models import PolicyRecord, Review
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.recalibration import Recalibration

SHOWN = 4  # cases of each list

_WAYS = {"risk": "Risk bound", "precision": "Precision", "flag-rate": "Flag rate"}
_TARGETS = {  # label, least, most, default and step in percent
    "risk": ("Of the answers that are not flagged, at most this share is wrong", 0.5, 50.0, 5.0, 0.5),
    "precision": ("Of the answers that are flagged, at least this share is wrong", 5.0, 95.0, 50.0, 1.0),
    "flag-rate": ("This share of the traffic is flagged", 0.5, 50.0, 10.0, 0.5),
}
_SAMPLE = {"kind": "Random sample", "order": "Oldest first"}  # the queue, in the words of its address
_WIDTHS = (0.01, 0.02, 0.03, 0.05)
_Pair = tuple[str, str]  # model and proxy version
_Version = tuple[int, int]  # newest review, and how many there are


@st.cache_resource(ttl=60, show_spinner="Looking for models…")
def _pairs(_store: Store, url: str) -> list[_Pair]:
    """Models with their proxies, that with the newest case first."""
    with _store.session() as session:
        return queries.models(session)


@st.cache_resource(ttl=300, max_entries=8, show_spinner="Reading the labels…")
def _answers(_store: Store, url: str, pair: _Pair, version: _Version) -> Answers:
    return labelled.from_store(_store, model=pair[0], proxy_version=pair[1])


@st.cache_resource(ttl=300, max_entries=8, show_spinner="Calibrating…")
def _fit(_answers: Answers, url: str, pair: _Pair, version: _Version) -> Fit | str:
    """The recalibration, or the sentence that says why there is none."""
    try:
        refuse_biased(_answers)
        return fit(_answers)
    except DataError as error:
        return str(error)


@st.cache_resource(ttl=300, max_entries=64, show_spinner="Choosing a threshold…")
def _outcome(
    _answers: Answers, url: str, pair: _Pair, version: _Version, method: str, target: float, confidence: float
) -> Outcome | str:
    """The outcome, or the sentence that says why there is none."""
    try:
        return calibrate(_answers, method, target, confidence)
    except DataError as error:
        return str(error)


@st.cache_resource(ttl=60, max_entries=8, show_spinner="Reading the last days…")
def _served(_store: Store, url: str, pair: _Pair, source: str) -> Served:
    with _store.session() as session:
        return preview.served(session, *pair, source)


def _version(store: Store) -> _Version:
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
        _threshold(store, answers, pair, version, found)
    st.space("small")
    publishing.versions(*pair, found)


def _named(pair: _Pair) -> str:
    return f"{words.plain(pair[0])}, proxy {words.plain(pair[1])}"


def _choose(pairs: list[_Pair]) -> _Pair:
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
        _interval(base) if honest else "needs a sample",
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
            query_params=_SAMPLE,
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
                _interval(one.right),
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


# --- threshold -------------------------------------------------------------------------------------------------------


def _threshold(store: Store, answers: Answers, pair: _Pair, version: _Version, found: list[PolicyRecord]) -> None:
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
    outcome = _outcome(answers, store.url, pair, version, method, round(target / 100, 6), confidence)
    if isinstance(outcome, str):
        _infeasible(store, answers, pair, version, method, confidence, outcome)
        return
    _chosen(outcome, found)
    for warning in outcome.warnings:
        views.notice("warning", warning)
    st.space("small")
    today = _today(found, outcome.fit.recalibration.source)
    served = _served(store, store.url, pair, outcome.fit.recalibration.source)
    _preview(store, served, outcome, today, found)
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


def _infeasible(
    store: Store, answers: Answers, pair: _Pair, version: _Version, method: str, confidence: float, why: str
) -> None:
    views.empty("block", "This cannot be shown with these labels", why)
    with st.container(horizontal=True, horizontal_alignment="center", vertical_alignment="center", gap="small"):
        st.button(
            "Find what can be shown",
            key="find",
            icon=":material/search:",
            on_click=_find,
            args=(store, answers, pair, version, method, confidence),
        )
        st.page_link(
            "screens/queue.py",
            label="Label the random sample",
            icon=":material/rate_review:",
            query_params=_SAMPLE,
        )
    if st.session_state.pop("calibration-nothing", False):
        views.notice("warning", "Not even the weakest target of this kind can be shown: label more of the sample.")


def _find(store: Store, answers: Answers, pair: _Pair, version: _Version, method: str, confidence: float) -> None:
    """Set the slider to the strictest target that can be shown; which can is monotone."""
    _, least, most, _, step = _TARGETS[method]
    steps = round((most - least) / step)
    weak, strict = (steps, -1) if method == "risk" else (0, steps + 1)  # numbers of steps; strict is not possible

    def possible(number: int) -> bool:
        target = round((least + number * step) / 100, 6)
        return not isinstance(_outcome(answers, store.url, pair, version, method, target, confidence), str)

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
        figures.number(one, "Would have flagged", f"{flagged:,.0f}", _interval(seen.new), about)
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


def _interval(share: Share) -> str:
    return f"{words.percent(share.low)} to {words.percent(share.high)}"


def _estimate(estimate: Estimate) -> str:
    if estimate.ci95 is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.ci95[0]:.3f} to {estimate.ci95[1]:.3f})"


page()
