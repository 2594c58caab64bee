"""Giving a verdict: the buttons, their keys, and what happens when one is pressed.

A verdict is committed against the version of the case that was on the screen, and the queue moves on in the same step.
When another reviewer was first nothing is written, the note stays, and the reviewer decides again.
"""

from __future__ import annotations

import streamlit as st

from fastrm_monitor.dashboard import queries, state, views, words
from fastrm_monitor.dashboard.queries import CaseView, Queue
from fastrm_monitor.dashboard.state import Desk, Given, Notice
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records.store import ReviewConflict, Store

KEYS = {"correct": "1", "wrong": "2", "not_grounded": "3", "unsure": "4"}
"""The key of each verdict."""


def buttons(view: CaseView, queue: Queue | None) -> None:
    """Verdict buttons, note and undo for a case; `queue` moves on after a verdict, None stays."""
    last = state.desk().last
    with st.container(key="frm-verdicts", gap="small"):
        for pair in (("correct", "wrong"), ("not_grounded", "unsure")):
            for column, verdict in zip(st.columns(2, gap="small"), pair, strict=True):
                column.button(
                    words.VERDICT_NAMES[verdict],
                    # Of the case: a key pressed twice must not label the next case, which nobody has seen yet.
                    key=f"verdict-{verdict}-{view.case_id}",
                    icon=f":material/{views.VERDICT_ICONS[verdict]}:",
                    help=words.VERDICT_MEANINGS[verdict],
                    type="primary" if view.verdict == verdict else "secondary",
                    shortcut=KEYS[verdict],
                    width="stretch",
                    on_click=_commit,
                    args=(view.case_id, view.version, view.verdict, verdict, queue),
                )
        with st.container(horizontal=True, gap="small"):
            st.text_input(
                "Note",
                key=_note(view.case_id),
                placeholder="Note for the next verdict (optional)",
                label_visibility="collapsed",
                max_chars=2000,
            )
            st.button(
                "Undo",
                key=undo_key(last),
                icon=":material/undo:",
                shortcut="U",
                # Away from the queue nobody would see which other case was reopened.
                disabled=last is None or (queue is None and last.case_id != view.case_id),
                on_click=undo,
                args=(last,),
                help="Take back the last verdict of this session.",
            )


def undo_key(last: Given | None) -> str:
    """The key of the undo button; of the verdict, for the reason that verdict buttons have one of the case."""
    return "undo" if last is None else f"undo-{last.case_id}-{last.version}"


def _note(case_id: str) -> str:
    return f"note-{case_id}"


def _commit(case_id: str, version: int, before: str | None, verdict: str, queue: Queue | None) -> None:
    desk, store, who = state.desk(), state.store(), state.reviewer()
    note = str(st.session_state.get(_note(case_id)) or "").strip()
    with desk.lock:
        desk.notice = None
        try:
            after = store.review(case_id, verdict, who, note, expected_version=version)
            desk.given.append(Given(case_id, after, before))
            if queue is not None:
                with store.session() as session:
                    desk.case_id = queries.step(session, queue, case_id, forward=True)  # None: begins again
        except ReviewConflict:
            desk.notice = _conflict(store, desk, case_id, verdict)
            return
        except FastRMError as error:
            desk.notice = Notice("error", str(error))
            return
    # From here on this run may be stopped at any line.
    st.session_state[_note(case_id)] = ""
    st.toast(f"Labelled “{words.VERDICT_NAMES[verdict]}”.", icon=f":material/{views.VERDICT_ICONS[verdict]}:")


def _conflict(store: Store, desk: Desk, case_id: str, verdict: str) -> Notice | None:
    """What to tell a reviewer who was not first; None when it was this reviewer's own key, pressed twice."""
    try:
        with store.session() as session:
            now = queries.case(session, case_id)
    except FastRMError as error:
        return Notice("error", str(error))
    wanted = words.VERDICT_NAMES[verdict]
    if now is None or not now.reviews:
        lost = f"Your “{wanted}” was not stored, your note is kept: look again and decide."
        return Notice("warning", f"The case changed meanwhile. {lost}")
    last = now.reviews[-1]
    said = words.VERDICT_NAMES.get(last.verdict, last.verdict)
    if desk.last is not None and (desk.last.case_id, desk.last.version) == (case_id, now.version):
        if last.verdict == verdict:
            return None
        return Notice(
            "warning", f"You had just labelled that case “{said}”, so “{wanted}” was not stored: undo to decide again."
        )
    return Notice(
        "warning",
        f"{last.reviewer} labelled this case “{said}” meanwhile. Your “{wanted}” was not stored and your note is kept: "
        "press again to overrule, or go on.",
    )


def undo(shown: Given) -> None:
    """Take back the last verdict of this session, and show its case again.

    Args:
        shown: the last verdict when the button was drawn; a key pressed twice takes no other one back.
    """
    desk, store, who = state.desk(), state.store(), state.reviewer()
    with desk.lock:
        if desk.last != shown:
            return
        desk.notice = None
        try:
            store.review(shown.case_id, shown.before or "undone", who, expected_version=shown.version)
        except ReviewConflict:
            desk.given.pop()
            left = "Another reviewer labelled that case after you, so your verdict was left as it is."
            desk.notice = Notice("warning", left)
            return
        except FastRMError as error:
            desk.notice = Notice("error", str(error))
            return
        desk.given.pop()
        desk.case_id = shown.case_id
    st.toast("Taken back.", icon=":material/undo:")
