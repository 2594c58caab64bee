"""The pages' curves, bars and diagrams as Altair charts. Knows buckets and points, not the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from fastrm_monitor.dashboard.preview import Day
from fastrm_monitor.dashboard.reliability import Point
from fastrm_monitor.dashboard.traffic import Bucket, Step, wilson

_TIMES = {"minute": "%H:%M", "hour": "%d %b %H:%M", "day": "%d %b"}
_HEIGHT = 190
_BARS = 30
_AFTER, _BEFORE = "#4c7df0", "#d98a00"  # told apart by everybody, and by their shapes
_GREY = "#8a93a3"
_DIAGRAM, _COUNTS = 310, 105  # pixels
_DAYS = 230
_LEFT = 44  # pixels of the labels at the left, so that charts below each other are aligned


def flag_rate(buckets: Sequence[Bucket], step: Step, color: str) -> alt.LayerChart:
    """Share of flagged answers over time with the 95 % Wilson interval of each step."""
    rows: list[dict[str, Any]] = []
    for bucket in buckets:
        interval = wilson(bucket.flagged, bucket.scored)
        rows.append(
            {
                "time": bucket.start.isoformat(),
                "rate": bucket.flagged / bucket.scored if bucket.scored else None,
                "low": interval[0] if interval else None,
                "high": interval[1] if interval else None,
                "flagged": bucket.flagged,
                "scored": bucket.scored,
            }
        )
    tips = [
        _tip_time(step),
        alt.Tooltip("rate:Q", format=".1%", title="Flag rate"),
        alt.Tooltip("flagged:Q", title="Flagged"),
        alt.Tooltip("scored:Q", title="Scored"),
    ]
    base = _base(rows, step)
    rate = alt.Y("rate:Q", title=None, axis=alt.Axis(format="%", tickCount=4), scale=alt.Scale(domainMin=0))
    band = base.mark_area(opacity=0.18, color=color).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    return _joined(band, base, rate, tips, color)


def mean_confidence(buckets: Sequence[Bucket], step: Step, color: str) -> alt.LayerChart:
    """Mean confidence of the scored answers over time."""
    rows = [
        {
            "time": bucket.start.isoformat(),
            "mean": bucket.confidence_sum / bucket.scored if bucket.scored else None,
            "scored": bucket.scored,
        }
        for bucket in buckets
    ]
    tips = [
        _tip_time(step),
        alt.Tooltip("mean:Q", format=".3f", title="Mean confidence"),
        alt.Tooltip("scored:Q", title="Scored"),
    ]
    mean = alt.Y("mean:Q", title=None, axis=alt.Axis(format=".1f", tickCount=4), scale=alt.Scale(domain=[0, 1]))
    return _joined(None, _base(rows, step), mean, tips, color)


def latency(seconds: Sequence[float], color: str) -> alt.Chart:
    """How often scoring took how long, on a logarithmic axis of milliseconds.

    Args:
        seconds: at least one; what is below a microsecond is shown as one.
        color: of the bars.
    """
    milliseconds = 1000 * np.maximum(seconds, 1e-6)  # (n,)
    low, high = np.log10(milliseconds.min()), np.log10(milliseconds.max())
    edges = np.logspace(low - 0.05, high + 0.05, _BARS + 1)  # (bars + 1,)
    counts, _ = np.histogram(milliseconds, edges)
    rows = [
        {"from": float(start), "to": float(end), "answers": int(count)}
        for start, end, count in zip(edges, edges[1:], counts, strict=False)
    ]
    axis = alt.Axis(format="~g", tickCount=5, labelOverlap=True, grid=False)
    bars: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows), height=_HEIGHT)
        .mark_bar(color=color)
        .encode(
            x=alt.X("from:Q", title="milliseconds", axis=axis, scale=alt.Scale(type="log", nice=False)),
            x2="to:Q",
            y2=alt.datum(0),
            y=alt.Y("answers:Q", title=None, axis=alt.Axis(tickCount=4)),
            tooltip=[
                alt.Tooltip("from:Q", format=".3~g", title="From (ms)"),
                alt.Tooltip("to:Q", format=".3~g", title="To (ms)"),
                alt.Tooltip("answers:Q", title="Answers"),
            ],
        )
    )
    return bars


def reliability(points: Sequence[Point]) -> tuple[alt.LayerChart, alt.Chart]:
    """The share of right answers against the stated probability, before and after, with the interval of each bin.

    Returns:
        The diagram, and the labels of each bin, to be shown below it.
    """
    names = {"before": "before", "after": "after, held out"}
    rows = [
        {
            "which": names[one.series],
            "stated": one.stated,
            "right": one.right.value,
            "low": one.right.low,
            "high": one.right.high,
            "n": one.right.n,
        }
        for one in points
    ]
    which = alt.Scale(domain=list(names.values()), range=[_BEFORE, _AFTER])
    color = alt.Color("which:N", title=None, scale=which, legend=_legend())
    forms = alt.Scale(domain=list(names.values()), range=["square", "circle"])
    shape = alt.Shape("which:N", title=None, scale=forms, legend=_legend())
    whole = alt.Scale(domain=[0, 1], nice=False, padding=0)  # bars would get some, and points none
    stated = alt.X("stated:Q", title=None, axis=alt.Axis(format="%", tickCount=5), scale=whole)
    right = alt.Y("right:Q", title=None, axis=alt.Axis(format="%", tickCount=5, minExtent=_LEFT), scale=whole)
    tips = [
        alt.Tooltip("which:N", title="Confidence"),
        alt.Tooltip("stated:Q", format=".1%", title="Stated"),
        alt.Tooltip("right:Q", format=".1%", title="Right"),
        alt.Tooltip("low:Q", format=".1%", title="Interval from"),
        alt.Tooltip("high:Q", format=".1%", title="to"),
        alt.Tooltip("n:Q", title="Labels"),
    ]
    ends = alt.InlineData(values=[{"at": 0}, {"at": 1}])
    perfect = alt.Chart(ends, height=_DIAGRAM).mark_line(color=_GREY, strokeDash=[4, 4])
    perfect = perfect.encode(x=alt.X("at:Q", scale=whole), y=alt.Y("at:Q", scale=whole))
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=stated, color=color)
    bars = base.mark_rule(strokeWidth=1.5, opacity=0.55).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    marks = base.mark_point(size=70, filled=True, opacity=1).encode(y=right, shape=shape, tooltip=tips)
    under = alt.X(
        "stated:Q", title="stated probability", axis=alt.Axis(labels=False, ticks=False, tickCount=5), scale=whole
    )
    counts: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows), height=_COUNTS)
        .mark_bar(size=5)
        .encode(
            x=under,
            y=alt.Y("n:Q", title=None, stack=None, axis=alt.Axis(tickCount=2, minExtent=_LEFT)),
            color=alt.Color("which:N", scale=which, legend=None),
            tooltip=tips,
        )
    )
    return alt.LayerChart(layer=[perfect, bars, marks]), counts


def flagged_by_day(days: Sequence[Day]) -> alt.LayerChart:
    """Share of the answers of each day that a threshold flags, with its interval, beside that of today."""
    names = {"new": "this threshold", "today": "today's"}
    rows = [
        {
            "which": names[name],
            "time": day.start.isoformat(),
            "share": share.value,
            "low": share.low,
            "high": share.high,
            "n": share.n,
        }
        for day in days
        for name, share in (("new", day.new), ("today", day.today))
    ]
    which = list(names.values())
    colors, forms = (
        alt.Scale(domain=which, range=[_AFTER, _BEFORE]),
        alt.Scale(domain=which, range=["circle", "square"]),
    )
    share = alt.Y("share:Q", title=None, axis=alt.Axis(format="%", tickCount=4), scale=alt.Scale(domainMin=0))
    tips = [
        _tip_time("day"),
        alt.Tooltip("which:N", title="Threshold"),
        alt.Tooltip("share:Q", format=".1%", title="Flagged"),
        alt.Tooltip("low:Q", format=".1%", title="Interval from"),
        alt.Tooltip("high:Q", format=".1%", title="to"),
        alt.Tooltip("n:Q", title="Sampled answers"),
    ]
    base = _base(rows, "day").properties(height=_DAYS)
    new, today = (base.transform_filter(alt.datum.which == names[name]) for name in names)
    bars = new.mark_rule(strokeWidth=1.5, opacity=0.55, color=_AFTER).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    lines = [
        new.mark_line(strokeWidth=2, color=_AFTER).encode(y=share),
        today.mark_line(strokeWidth=2, color=_BEFORE, strokeDash=[5, 4]).encode(y=share),
    ]
    marks = base.mark_point(size=55, filled=True, opacity=1).encode(
        y=share,
        color=alt.Color("which:N", title=None, scale=colors, legend=_legend()),
        shape=alt.Shape("which:N", title=None, scale=forms, legend=_legend()),
        tooltip=tips,
    )
    return alt.LayerChart(layer=[bars, *lines, marks])


def _legend() -> alt.Legend:
    return alt.Legend(orient="top", symbolOpacity=1)


def _base(rows: list[dict[str, Any]], step: Step) -> alt.Chart:
    axis = alt.Axis(format=_TIMES[step], tickCount=5, labelOverlap=True, grid=False)
    time = alt.X("time:T", title=None, axis=axis, scale=alt.Scale(type="utc"))
    return alt.Chart(alt.InlineData(values=rows), height=_HEIGHT).encode(x=time)


def _joined(band: alt.Chart | None, base: alt.Chart, y: alt.Y, tips: list[alt.Tooltip], color: str) -> alt.LayerChart:
    line = base.mark_line(color=color, strokeWidth=2).encode(y=y)
    # Points as well: a step between two empty ones has no line.
    points = base.mark_circle(color=color, size=36, opacity=1).encode(y=y, tooltip=tips)
    return alt.LayerChart(layer=[*([band] if band is not None else []), line, points])


def _tip_time(step: Step) -> alt.Tooltip:
    return alt.Tooltip("time:T", format="%Y-%m-%d" if step == "day" else "%Y-%m-%d %H:%M", title="UTC")
