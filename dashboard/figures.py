"""Numbers as overview and health page show them: one in a frame, and what was lost, by reason. Knows no store."""

from __future__ import annotations

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from fastrm_monitor.dashboard import views, words
from fastrm_monitor.dashboard.traffic import Totals


def number(cell: DeltaGenerator, label: str, value: str, below: str = "", about: str | None = None) -> None:
    """A number in a frame, with a quiet line below it and an explanation behind its question mark."""
    cell.metric(
        label, value, below or None, delta_color="off", delta_arrow="off", help=about, border=True, height="stretch"
    )


def losses(totals: Totals) -> None:
    """What was not scored, not stored, or failed, by reason, with its share of all answers."""
    views.section("Not scored, not stored")
    if not totals.losses:
        views.empty("task_alt", "Nothing was lost", "Every answer was scored and delivered.")
        return
    rows = [
        (
            words.LOSS_NAMES[loss.name],
            words.loss_reason(loss.name, loss.reason),
            f"{loss.value:,}",
            words.share(loss.value, totals.seen),
        )
        for loss in totals.losses
    ]
    st.html(words.table(("What", "Why", "Count", "Of seen"), rows, numbers=(2, 3)))
