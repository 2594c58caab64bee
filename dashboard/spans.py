"""The span of time that a page looks at: chosen by the reader, kept in the address."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import streamlit as st

_LENGTHS = {
    "1h": timedelta(hours=1),
    "24h": timedelta(days=1),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "all": None,
}
_NAMES = {"1h": "1 hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days", "all": "All"}
_DEFAULT = "7d"


def choose() -> str:
    """The choice at the right of a page's heading; returns its name."""
    with st.container(horizontal=True, horizontal_alignment="right"):
        name = st.segmented_control(
            "Span of time",
            list(_LENGTHS),
            default=_DEFAULT,
            required=True,
            format_func=_NAMES.__getitem__,
            key="range",
            bind="query-params",
            label_visibility="collapsed",
        )
    return name or _DEFAULT


def beginning(name: str) -> datetime | None:
    """When the span of this name began; None is from the beginning."""
    length = _LENGTHS[name]
    return None if length is None else datetime.now(UTC) - length
