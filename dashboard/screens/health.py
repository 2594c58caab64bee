"""Health: what became of every answer, which servers report, how long scoring takes, and whether the traffic drifts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby

import streamlit as st

from fastrm_monitor.dashboard import charts, figures, spans, state, traffic, views, vitals, words
from fastrm_monitor.dashboard.traffic import Totals
from fastrm_monitor.dashboard.vitals import DriftView, ServerView
from fastrm_monitor.records import export
from fastrm_monitor.records.store import Store

MOST_CASES, MOST_BYTES = 2000, 64 * 2**20  # what the page exports itself; it is made in memory

_QUIET = timedelta(minutes=5)
_LEVELS = {  # name, symbol and tone of each level; no two have the same symbol
    "same": ("As the reference", "check_circle", "green"),
    "look": ("Look", "change_history", "amber"),
    "shifted": ("Shifted", "report", "red"),
}


@dataclass(frozen=True)
class _Data:
    totals: Totals
    servers: list[ServerView]
    latencies: list[float]
    drift: list[DriftView]


@st.cache_resource(ttl=15, show_spinner=False)
def _load(_store: Store, url: str, name: str) -> _Data:
    """Everything that the page shows of a span; kept for a few seconds, see the overview."""
    since = spans.beginning(name)
    with _store.session() as session:
        return _Data(
            totals=traffic.totals(session, since),
            servers=vitals.servers(session, since),
            latencies=vitals.latencies(session, since),
            drift=vitals.drift(session, since),
        )


@st.cache_resource(ttl=60, show_spinner=False)
def _labelled(_store: Store, url: str) -> tuple[int, int]:
    """(cases with a verdict, bytes of their pictures); the bytes are not asked for when there are too many cases."""
    cases = export.count(_store)
    return cases, export.picture_bytes(_store) if cases <= MOST_CASES else 0


@st.fragment(run_every="30s")
@state.guarded
def page() -> None:
    """Counts, servers, latency and drift of a span of time; asks again every half minute."""
    heading, choice = st.columns([1, 1], vertical_alignment="center")
    with heading:
        views.title("Health")
    with choice:
        name = spans.choose()
    store = state.store()
    data = _load(store, store.safe_url, name)
    if not data.servers:
        views.empty(
            "sensors", "No server has reported", "Choose a longer span of time, or start a server with a monitor."
        )
    else:
        _flow(data.totals)
        left, right = st.columns([3, 2], gap="large")
        with left:
            figures.losses(data.totals)
        with right:
            _latency(data.latencies)
        st.space("small")
        _servers(data.servers)
    st.space("small")
    _drift(data.drift)


def _flow(totals: Totals) -> None:
    cells = st.columns(6, gap="small")
    scored = f"{words.share(totals.scored, totals.seen)} of seen"
    figures.number(cells[0], "Answers seen", f"{totals.seen:,}", f"{totals.skipped:,} not scored")
    figures.number(cells[1], "Scored", f"{totals.scored:,}", scored)
    for cell, label, value, about in (
        (cells[2], "Stored", totals.stored, "Flagged answers and the random sample."),
        (cells[3], "Sampled out", totals.sampled_out, "Neither flagged nor drawn into the random sample: not stored."),
        (cells[4], "Dropped", totals.dropped, "Should have been stored and were lost; the reasons are below."),
        (
            cells[5],
            "On their way",
            totals.pending,
            "Scored, and nothing is known of them yet: in a queue, in a spool, or gone with a process that was killed.",
        ),
    ):
        figures.number(cell, label, f"{value:,}", f"{words.share(value, totals.scored)} of scored", about)


def _latency(seconds: list[float]) -> None:
    if not seconds:
        views.section("Scoring time")
        views.empty("timer", "No random sample", "Scoring times come from it: serve with FASTRM_SAMPLE_RATE above 0.")
        return
    views.section("Scoring time", f"random sample, n = {len(seconds):,}")
    said = [
        f"{name} {1000 * vitals.percentile(seconds, share):.3g} ms"
        for name, share in (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99))
    ]
    views.quiet(" · ".join(said))
    st.altair_chart(charts.latency(seconds, "#4c7df0"), alt=f"How long scoring took: {', '.join(said)}.")


def _servers(servers: list[ServerView]) -> None:
    views.section("Servers", f"{len(servers):,}, the last one heard first")
    now = datetime.now(UTC)
    rows = [
        (
            words.inert(one.server),
            _sign(one.last, now),
            f"{one.seen:,}",
            f"{one.scored:,}",
            words.share(one.flagged, one.scored),
            f"{one.stored:,}",
            f"{one.dropped:,}",
            f"{one.failed:,}",
        )
        for one in servers
    ]
    heads = ("Server", "Last answer", "Seen", "Scored", "Flag rate", "Stored", "Dropped", "Failures")
    st.html(words.table_of_html(heads, rows, numbers=range(2, 8)))
    views.quiet("A server without answers counts nothing: one that is quiet may be well.")


def _sign(last: datetime, now: datetime) -> str:
    if now - last <= _QUIET:
        return views.badge("Reporting", "sensors", "green")
    return views.badge(f"Quiet, {words.age(last, now)}", "bedtime")


def _drift(found: list[DriftView]) -> None:
    views.section("Drift", "newest window of each server against its reference")
    if not found:
        views.empty(
            "stacked_line_chart",
            "No window yet",
            "A server compares its answers every ten minutes, once a reference and 200 answers are there.",
        )
        return
    for (server, model, at), group in groupby(found, lambda one: (one.server, one.model, one.at)):
        rows = [
            (
                words.inert(one.feature),
                views.badge(*_LEVELS[one.level]),
                _value(one, "ks"),
                _value(one, "ks_p"),
                _value(one, "psi"),
                _value(one, "wasserstein"),
                f"{one.n_reference:,}",
                f"{one.n_window:,}",
            )
            for one in group
        ]
        st.html(
            f'<p class="frm-quiet">{words.inert(model)} on {words.inert(server)}, window ended {words.moment(at)}</p>'
            + words.table_of_html(
                ("Feature", "Level", "KS distance", "p value", "PSI", "Moved by", "n reference", "n window"),
                rows,
                numbers=range(2, 8),
            )
        )
    views.quiet(
        f"Shifted: of the confidence, a Kolmogorov-Smirnov p value, corrected for the number of features, below "
        f"{vitals.KS_ALARM}; of other features, a population stability index (PSI) above {vitals.PSI_ALARM}. Look: a "
        f"PSI above {vitals.PSI_LOOK}. “Moved by” is the mean distance in the feature's own unit."
    )


def _value(one: DriftView, statistic: str) -> str:
    value = one.values.get(statistic)
    if value is None:
        return "–"
    return "&lt; 0.001" if statistic == "ks_p" and value < 0.001 else f"{value:.3f}"


@state.guarded
def _export() -> None:
    st.space("small")
    store = state.store()
    cases, size = _labelled(store, store.safe_url)
    views.section("Labelled cases", f"{cases:,} with a verdict")
    if not cases:
        views.quiet("Cases with a verdict can be taken out here, for calibration and distillation.")
        return
    if cases > MOST_CASES or size > MOST_BYTES:
        views.quiet("They are too many for the browser. On a machine that reaches the store:")
        st.code("fastrm-monitor export --output cases", language="sh")
        return
    st.download_button(
        "Export as JSON lines with pictures",
        partial(export.zipped, store),
        file_name=f"fastrm-cases-{datetime.now(UTC):%Y-%m-%d}.zip",
        mime="application/zip",
        key="export",
        icon=":material/download:",
        on_click="ignore",
    )


page()
_export()
