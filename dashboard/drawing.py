"""How heatmaps are drawn in this session, and the controls that say so."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from fastrm_monitor.overlay import Scale
from fastrm_monitor.scoring.entropy import DECISION_THRESHOLD

_OPACITY = 0.6


@dataclass(frozen=True)
class Drawing:
    """How heatmaps are drawn; see `overlay`.

    Attributes:
        heatmap: whether there is one at all.
        opacity: of a patch of relevance 1.
        patches: the patches as the model has them, not a smooth surface.
        scale: "fixed", or "picture" for one of its own for each picture.
        outline: relevance from which patches are outlined; None outlines none.
        beside: the bare picture beside the one with the heatmap.
    """

    heatmap: bool = True
    opacity: float = _OPACITY
    patches: bool = False
    scale: Scale = "fixed"
    outline: float | None = DECISION_THRESHOLD
    beside: bool = False


def chosen() -> Drawing:
    """As the controls were left in this session."""
    state = st.session_state
    return Drawing(
        heatmap=bool(state.get("show_heatmap", True)),
        opacity=float(state.get("opacity", _OPACITY)),
        patches=bool(state.get("patches", False)),
        scale="picture" if state.get("stretch", False) else "fixed",
        outline=float(state.get("outline-from", DECISION_THRESHOLD)) if state.get("outline", True) else None,
        beside=bool(state.get("beside", False)),
    )


def controls(drawing: Drawing) -> None:
    """The controls, which stand as `drawing` says."""
    hidden = not drawing.heatmap
    with st.container(key="frm-controls", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.button(
                "Show heatmap" if hidden else "Hide heatmap",
                icon=":material/visibility:" if hidden else ":material/visibility_off:",
                key="toggle-heatmap",
                shortcut="H",
                on_click=_flip,
                width=170,
            )
            _toggle("Side by side", "beside", hidden, "The bare picture beside the one with the heatmap.")
            _toggle("Patches", "patches", hidden, "The patches as the model has them, not a smooth surface.")
            _toggle(
                "Stretch",
                "stretch",
                hidden,
                "Colours from this picture's lowest to its highest relevance. It shows the shape of a weak map and "
                "hides that it is weak.",
            )
            _toggle("Outline", "outline", hidden, "A line around the patches that count as relevant.", default=True)
        left, right = st.columns(2, gap="medium")
        with left:
            st.slider("Opacity", 0.0, 1.0, _OPACITY, 0.05, key="opacity", disabled=hidden, persist_state="session")
        with right:
            st.slider(
                "Outline from a relevance of",
                0.0,
                1.0,
                DECISION_THRESHOLD,
                0.05,
                key="outline-from",
                disabled=hidden or drawing.outline is None,
                persist_state="session",
            )


def _flip() -> None:
    st.session_state["show_heatmap"] = not st.session_state.get("show_heatmap", True)


def _toggle(label: str, key: str, disabled: bool, about: str, *, default: bool = False) -> None:
    st.toggle(label, default, key=key, disabled=disabled, persist_state="session", help=about)
