"""Giving a verdict: the buttons, their keys, and what happens when one is pressed.

A verdict is committed against the version of the case that was on the screen, and the queue moves on in the same step.
When another reviewer was first nothing is written, note and tags stay, and the reviewer decides again.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import streamlit as st

from fastrm_monitor.dashboard import keys, queries, seat, state, views, words
from fastrm_monitor.dashboard.queries import CaseView, Queue, ReviewView
from fastrm_monitor.dashboard.state import Desk, Done, Given, Notice
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records.store import ReviewConflict, Store


def buttons(view: CaseView, queue: Queue | None) -> None:
    """Who else is at a case, and the buttons, note and tags for its next verdict.

    Args:
        view: the case.
        queue: moves on after a verdict; None stays.
    """
    others = seat.others_at(view.case_id)
    if others is not None:
        views.notice("info", f"{others} is looking at this case in another window.")
    labelled = _labelled(view)
    if labelled and state.desk().notice is None:  # which says the same
        views.notice("info", f"{labelled} Another verdict is put beside it and counts instead.")
    if state.read_only():
        views.quiet("This dashboard is read-only: verdicts are given elsewhere.")
        return
    last = state.desk().last
    before = view.reviews[-1] if view.verdict is not None and view.reviews else None
    with st.container(key="frm-verdicts", gap="small"):
        with st.container(key="frm-four"):
            for verdict in keys.VERDICTS:
                st.button(
                    words.VERDICT_NAMES[verdict],
                    # Of the case: a key pressed twice must not label the next case, which nobody has seen yet.
                    key=f"verdict-{verdict}-{view.case_id}",
                    icon=f":material/{views.VERDICT_ICONS[verdict]}:",
                    help=words.VERDICT_MEANINGS[verdict],
                    type="primary" if view.verdict == verdict else "secondary",
                    shortcut=keys.VERDICTS[verdict],
                    width="stretch",
                    on_click=_commit,
                    args=(view.case_id, view.version, before, verdict, queue),
                )
        _tags(view.case_id)
        with st.container(horizontal=True, gap="small"):
            st.text_input(
                "Note",
                key=_note(view.case_id),
                placeholder=f"Note and #tags for the next verdict ({keys.NOTE.upper()})",
                label_visibility="collapsed",
                max_chars=2000,
            )
            st.button(
                "Undo",
                key=undo_key(last),
                icon=":material/undo:",
                shortcut=keys.UNDO,
                # Away from the queue nobody would see which other case was reopened.
                disabled=last is None or (queue is None and last.case_id != view.case_id),
                on_click=undo,
                args=(last,),
                help="Take back the last verdict of this session.",
            )
    state.say_done()


def _labelled(view: CaseView) -> str:
    """Who labelled a case, and when, if it was not this session: a sentence, or ""."""
    if view.verdict is None or not view.reviews:
        return ""
    if any((given.case_id, given.version) == (view.case_id, view.version) for given in state.desk().given):
        return ""
    return _said(view.reviews[-1])


def _said(last: ReviewView) -> str:
    seconds = max((datetime.now(UTC) - last.created_at).total_seconds(), 0)
    when = f"{seconds:.0f} s ago" if seconds < 60 else words.age(last.created_at)
    return f"{last.reviewer} labelled this case “{words.VERDICT_NAMES.get(last.verdict, last.verdict)}” {when}."


def _tags(case_id: str) -> None:
    chosen = _chosen(case_id)
    with st.container(key="frm-tags", horizontal=True, gap="xsmall"):
        for tag, name in words.TAG_NAMES.items():
            st.button(
                name,
                key=f"tag-{tag}-{case_id}",
                icon=":material/check:" if tag in chosen else None,
                type="primary" if tag in chosen else "secondary",
                shortcut=keys.TAGS[tag],
                on_click=_flip,
                args=(case_id, tag),
            )


def _chosen(case_id: str) -> list[str]:
    found: list[str] = st.session_state.get(f"tags-{case_id}", [])
    return found


def _flip(case_id: str, tag: str) -> None:
    chosen = _chosen(case_id)
    st.session_state[f"tags-{case_id}"] = [one for one in (*chosen, tag) if one != tag or tag not in chosen]


def undo_key(last: Given | None) -> str:
    """The key of the undo button; of the verdict, for the reason that verdict buttons have one of the case."""
    return "undo" if last is None else f"undo-{last.case_id}-{last.version}"


def _note(case_id: str) -> str:
    return f"note-{case_id}"


def _commit(case_id: str, version: int, before: ReviewView | None, verdict: str, queue: Queue | None) -> None:
    desk, store, who, mine = state.desk(), state.store(), state.reviewer(), seat.seat()
    note, free = words.tags_in(str(st.session_state.get(_note(case_id)) or ""))
    tags = list(dict.fromkeys([*_chosen(case_id), *free]))
    with desk.lock:
        desk.notice = None
        just = desk.last is not None and desk.last.case_id == case_id  # its version says the rest
        if queue is not None and desk.case_id != case_id and not just:
            early = f"“{words.VERDICT_NAMES[verdict]}” came while the case was changing, so it was not stored."
            desk.notice = Notice("warning", f"{early} Look again and decide.")
            return
        try:
            after = store.review(case_id, verdict, who, note, tags, expected_version=version)
            desk.given.append(Given(case_id, after, before, time.monotonic()))
            if queue is not None:
                desk.case_id = seat.walk(mine, who, queue, case_id)
        except ReviewConflict:
            desk.notice = _conflict(store, desk, case_id, verdict)
            return
        except FastRMError as error:
            desk.notice = Notice("error", str(error))
            return
        desk.done = Done(f"Labelled “{words.VERDICT_NAMES[verdict]}”.", views.VERDICT_ICONS[verdict])
    # From here on this run may be stopped at any line.
    st.session_state[_note(case_id)] = ""
    st.session_state[f"tags-{case_id}"] = []


def _conflict(store: Store, desk: Desk, case_id: str, verdict: str) -> Notice | None:
    """What to tell a reviewer who was not first; None when it was this reviewer's own key, pressed twice."""
    try:
        with store.session() as session:
            now = queries.case(session, case_id)
    except FastRMError as error:
        return Notice("error", str(error))
    wanted = words.VERDICT_NAMES[verdict]
    if now is None or not now.reviews:
        lost = f"Your “{wanted}” was not stored, note and tags are kept: look again and decide."
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
        f"{_said(last)} Your “{wanted}” was not stored, note and tags are kept: press again to overrule, or go on.",
    )


def undo(shown: Given) -> None:
    """Take back the last verdict of this session, and show its case again.

    A verdict that it had overruled counts again as it was: of its reviewer, with note and tags.

    Args:
        shown: the last verdict when the button was drawn; a key pressed twice takes no other one back.
    """
    desk, store, who = state.desk(), state.store(), state.reviewer()
    with desk.lock:
        if desk.last != shown:
            return
        desk.notice = None
        try:
            if shown.before is None:
                store.review(shown.case_id, "undone", who, expected_version=shown.version)
            else:
                one = shown.before
                store.review(shown.case_id, one.verdict, one.reviewer, one.note, one.tags, shown.version)
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
        desk.done = Done("Taken back.", "undo")
