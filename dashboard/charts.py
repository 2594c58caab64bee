"""The curves of the overview and the bars of the health page, as Altair charts. Knows buckets, not the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from fastrm_monitor.dashboard.traffic import Bucket, Step, wilson

_TIMES = {"minute": "%H:%M", "hour": "%d %b %H:%M", "day": "%d %b"}
_HEIGHT = 190
_BARS = 30


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
