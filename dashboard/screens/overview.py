"""The overview: what flowed by, how much of it was flagged or lost, and the newest flagged cases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from fastrm_monitor.dashboard import charts, queries, state, traffic, views, words
from fastrm_monitor.dashboard.queries import CaseRow, Queue
from fastrm_monitor.dashboard.traffic import Bucket, Loss, Step, Totals
from fastrm_monitor.records.store import Store

NEWEST = 6

_RANGES = {
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "all": None,
}
_RANGE_NAMES = {"1h": "1 hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days", "all": "All"}


@dataclass(frozen=True)
class _Data:
    totals: Totals
    step: Step
    buckets: list[Bucket]
    open: int
    sampled: int
    newest: list[CaseRow]
    ever: bool  # whether anything was counted at any time


# Shared and not copied, as `cache_data` would by pickling: the values are frozen and nobody changes the lists.
@st.cache_resource(ttl=15, show_spinner=False)
def _load(_store: Store, url: str, name: str) -> _Data:
    """Everything that the page shows; kept for a few seconds, because many look and sums take long."""
    length = _RANGES[name]
    since = None if length is None else datetime.now(UTC) - length
    with _store.session() as session:
        between = traffic.span(session, since)
        step = traffic.step_for(between[1] - between[0]) if between else "minute"
        return _Data(
            totals=traffic.totals(session, since),
            step=step,
            buckets=traffic.series(session, step, since) if between else [],
            open=queries.count(session, Queue("open", "flagged")),
            sampled=queries.count(session, Queue("open", "sampled")),
            newest=queries.rows(session, Queue("all", "flagged", "newest"), NEWEST),
            ever=between is not None or traffic.span(session) is not None,
        )


@st.fragment(run_every="30s")
@state.guarded
def page() -> None:
    """Numbers, curves, losses and newest cases; asks again every half minute."""
    heading, choice = st.columns([1, 1], vertical_alignment="center")
    with heading:
        views.title("Overview")
    with choice, st.container(horizontal=True, horizontal_alignment="right"):
        name = st.segmented_control(
            "Span of time",
            list(_RANGES),
            default="7d",
            required=True,
            format_func=_RANGE_NAMES.__getitem__,
            key="range",
            bind="query-params",
            label_visibility="collapsed",
        )
    store = state.store()
    data = _load(store, store.safe_url, name or "7d")
    if not data.totals.seen and not data.totals.losses:
        if data.ever:
            views.empty("hourglass_empty", "No answers in this span", "Choose a longer span of time above.")
        else:
            views.empty(
                "sensors",
                "Waiting for answers",
                "Start a server with a monitor that writes to this store; it shows up here.",
            )
        if data.newest:
            _newest(data.newest)
        return
    _numbers(data)
    _curves(data)
    left, right = st.columns([3, 2], gap="large")
    with left:
        _newest(data.newest)
    with right:
        _losses(data.totals.losses, data.totals.seen)


def _numbers(data: _Data) -> None:
    totals = data.totals
    interval = traffic.wilson(totals.flagged, totals.scored)
    mean = totals.mean_confidence
    cells = st.columns(6, gap="small")
    _number(cells[0], "Answers seen", f"{totals.seen:,}", "")
    _number(cells[1], "Scored", f"{totals.scored:,}", f"{words.share(totals.scored, totals.seen)} of seen")
    _number(
        cells[2],
        "Flag rate",
        words.percent(totals.flag_rate),
        "" if interval is None else f"{words.percent(interval[0])} to {words.percent(interval[1])}",
        f"{totals.flagged:,} of {totals.scored:,} scored answers; below it the 95 % Wilson interval.",
    )
    _number(
        cells[3],
        "Mean confidence",
        "–" if mean is None else f"{mean:.2f}",
        f"n = {totals.scored:,}",
        "Over all scored answers, flagged or not.",
    )
    _number(
        cells[4],
        "Open cases",
        f"{data.open:,}",
        f"and {data.sampled:,} sampled",
        "Flagged cases without a verdict, of all times; below it those of the random sample.",
    )
    _number(
        cells[5],
        "Dropped",
        f"{totals.dropped:,}",
        f"{words.share(totals.dropped, totals.scored)} of scored",
        "Scored answers that should have been stored and were lost; the reasons are below.",
    )


def _number(cell: DeltaGenerator, label: str, value: str, below: str, about: str | None = None) -> None:
    cell.metric(
        label, value, below or None, delta_color="off", delta_arrow="off", help=about, border=True, height="stretch"
    )


def _curves(data: _Data) -> None:
    per = {"minute": "by minute", "hour": "by hour", "day": "by day"}[data.step] + ", UTC"
    left, right = st.columns(2, gap="small")
    with left, st.container(border=True):
        views.section("Flag rate", f"{per}, with 95 % interval")
        st.altair_chart(charts.flag_rate(data.buckets, data.step, "#d98a00"), alt="Flag rate over time.")
    with right, st.container(border=True):
        views.section("Mean confidence", per)
        st.altair_chart(charts.mean_confidence(data.buckets, data.step, "#4c7df0"), alt="Mean confidence over time.")


def _newest(rows: list[CaseRow]) -> None:
    views.section("Newest flagged")
    if not rows:
        views.empty("flag", "Nothing flagged", "Flagged answers are listed here, newest first.")
    for row in rows:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            views.row(row)
            st.page_link(
                "screens/case.py",
                label="Open",
                icon=":material/arrow_forward:",
                query_params={"case": row.case_id},
                width="content",
            )


def _losses(losses: tuple[Loss, ...], seen: int) -> None:
    views.section("Not scored, not stored")
    if not losses:
        views.empty("task_alt", "Nothing was lost", "Every answer was scored and delivered.")
        return
    rows = [
        (
            words.LOSS_NAMES[loss.name],
            words.loss_reason(loss.name, loss.reason),
            f"{loss.value:,}",
            words.share(loss.value, seen),
        )
        for loss in losses
    ]
    st.html(words.table(("What", "Why", "Count", "Of seen"), rows, numbers=(2, 3)))


page()
