"""Every key of the reviewer's desk, and the sheet that lists them.

Streamlit binds letters and digits to buttons; the other keys are bound by `scripts.KEYS`.
"""

from __future__ import annotations

import streamlit as st

from fastrm_monitor.dashboard import state, words

VERDICTS = {"correct": "1", "wrong": "2", "not_grounded": "3", "unsure": "4"}
"""The key of each verdict."""

TAGS = dict(zip(words.TAG_NAMES, "56789", strict=True))
"""The key of each tag."""

NEXT, PREVIOUS, UNDO, HEATMAP, SHEET, NOTE = "N", "P", "U", "H", "K", "t"


def button() -> None:
    """The button of the sheet, and below it the sheet while it is open."""
    st.button(
        "Keys",
        key="sheet",
        icon=":material/keyboard:",
        shortcut=SHEET,
        help="All keys of this page.",
        on_click=_turn,
        width="stretch",
    )
    if state.desk().sheet:
        st.html(
            f'<div class="frm-sheet" role="dialog" aria-label="Keys"><h2>Keys</h2>{words.table(("", ""), rows())}</div>'
        )


def rows() -> list[tuple[str, str]]:
    """(keys, what they do), as the sheet lists them."""
    return [
        *((key, words.VERDICT_NAMES[verdict]) for verdict, key in VERDICTS.items()),
        *((key, f"Tag: {words.TAG_NAMES[tag]}") for tag, key in TAGS.items()),
        (NOTE.upper(), "Write the note; #word makes a tag; Enter or Esc leaves it"),
        (UNDO, "Take back the last verdict of this session"),
        (f"{NEXT} {PREVIOUS}", "Next case, previous case"),
        (HEATMAP, "Hide or show the heatmap"),
        ("Tab ←↑↓→", "To the heatmap, and from patch to patch: the value of each"),
        (f"{SHEET} ?", "Open or close this sheet"),
    ]


def _turn() -> None:
    desk = state.desk()
    desk.sheet = not desk.sheet
