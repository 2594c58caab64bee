"""The overview: what flowed by, how much of it was flagged or lost, and the newest flagged cases."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from fastrm_monitor.dashboard import charts, figures, queries, spans, state, traffic, views, words
from fastrm_monitor.dashboard.queries import CaseRow, Queue
from fastrm_monitor.dashboard.traffic import Bucket, Step, Totals
from fastrm_monitor.records.store import Store

NEWEST = 6


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
    since = spans.beginning(name)
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
    with choice:
        name = spans.choose()
    store = state.store()
    data = _load(store, store.safe_url, name)
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
        figures.losses(data.totals)


def _numbers(data: _Data) -> None:
    totals = data.totals
    interval = traffic.wilson(totals.flagged, totals.scored)
    mean = totals.mean_confidence
    cells = st.columns(6, gap="small")
    figures.number(cells[0], "Answers seen", f"{totals.seen:,}", "")
    figures.number(cells[1], "Scored", f"{totals.scored:,}", f"{words.share(totals.scored, totals.seen)} of seen")
    figures.number(
        cells[2],
        "Flag rate",
        words.percent(totals.flag_rate),
        "" if interval is None else f"{words.percent(interval[0])} to {words.percent(interval[1])}",
        f"{totals.flagged:,} of {totals.scored:,} scored answers; below it the 95 % Wilson interval.",
    )
    figures.number(
        cells[3],
        "Mean confidence",
        "–" if mean is None else f"{mean:.2f}",
        f"n = {totals.scored:,}",
        "Over all scored answers, flagged or not.",
    )
    figures.number(
        cells[4],
        "Open cases",
        f"{data.open:,}",
        f"and {data.sampled:,} sampled",
        "Flagged cases without a verdict, of all times; below it those of the random sample.",
    )
    figures.number(
        cells[5],
        "Dropped",
        f"{totals.dropped:,}",
        f"{words.share(totals.dropped, totals.scored)} of scored",
        "Scored answers that should have been stored and were lost; the reasons are below.",
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
        views.linked(views.row, row)


page()
