"""Publishing a threshold, the versions before it, and the way back: each with a second look before it is done.

What is written is the very outcome that the page showed. Nothing is written where somebody else published meanwhile, or
where the dashboard is read-only.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from fastrm_monitor.calibration.choice import Outcome
from fastrm_monitor.dashboard import state, views, words
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records.models import PolicyRecord
from fastrm_monitor.records.policies import OvertakenError, history, roll_back
from fastrm_monitor.records.store import Store

LISTED = 20  # versions that the page shows

_READ_ONLY = "This dashboard is read-only: thresholds are published elsewhere."
_SERVERS = (
    "Running servers of this model and proxy take it over without a restart, at their next look into the store: every "
    "FASTRM_POLICY_SECONDS, 30 unless set. One that has FASTRM_THRESHOLD keeps that threshold."
)
_STATE = "calibration-confirm"  # what waits for the second press: (kind, what it is for, note)
_SAID = "calibration-said"  # (kind of notice, text) about the last action


def show_said() -> None:
    """Show what came of the last action, if there was one."""
    said = st.session_state.get(_SAID)
    if said is not None:
        views.notice(*said)


def listed(store: Store, model: str, proxy_version: str) -> list[PolicyRecord]:
    """The newest versions, one more than the page lists; the first is in force.

    Raises:
        StoreError: the database failed.
    """
    return history(store, model, proxy_version, LISTED + 1)


def newest(found: list[PolicyRecord]) -> int | None:
    """The version in force."""
    return found[0].id if found else None


def publish(outcome: Outcome, found: list[PolicyRecord]) -> None:
    """The note, the button, and the second look; `found` is the history that is on the screen."""
    who = f"as {state.reviewer()}, for {outcome.model}, proxy {outcome.proxy_version}"
    views.section("Publish", words.plain(who))
    if state.read_only():
        views.quiet(_READ_ONLY)
        st.button("Publish", key="publish", icon=":material/publish:", disabled=True)
        return
    seen = newest(found)
    about = (outcome.threshold, str(outcome.chosen), seen)
    note = _waiting("publish", about)
    st.text_input(
        "Note",
        key="policy-note",
        placeholder="Why this threshold (stored with the version)",
        max_chars=2000,
        disabled=note is not None,
        label_visibility="collapsed",
    )
    if note is None:
        st.button(
            "Publish…",
            key="publish",
            icon=":material/publish:",
            type="primary",
            on_click=_ask,
            args=("publish", about),
        )
        return
    share, noted = words.percent(outcome.chosen["flagged_share"]), f", with the note “{note}”" if note else ""
    text = (
        f"Publish as a new version{noted}: answers whose recalibrated confidence is below {outcome.threshold:.1%} are "
        f"flagged, about {share} of the traffic. {_SERVERS}"
    )
    _second(text, "Publish now", lambda: outcome.publish(state.store(), state.reviewer(), note, expected=seen or 0))


def versions(found: list[PolicyRecord]) -> None:
    """The history as a table, newest first, and the way back to one of them."""
    views.section("Versions", "the newest is in force")
    if not found:
        views.empty(
            "history",
            "Nothing published yet",
            "Servers flag by the threshold of their proxy folder or of their settings until a version is published.",
        )
        return
    lines = [
        (
            words.inert(str(one.id)),
            views.badge("In force", "check_circle", "green") if place == 0 else "",
            words.moment(one.created_at),
            words.inert(one.author),
            f"{one.threshold:.1%}",
            words.inert(words.how_chosen(one.chosen)),
            words.inert("; ".join(part for part in (_again(one), one.note) if part) or "–"),
        )
        for place, one in enumerate(found[:LISTED])
    ]
    heads = ("Version", "", "Published", "By", "Threshold", "Chosen so that", "Note")
    st.html(words.table_of_html(heads, lines, numbers=(0, 4)))
    if len(found) > LISTED:
        views.quiet(f"Older versions are not listed; the newest {LISTED} are.")
    older = found[1:LISTED]
    if not older:
        return
    if state.read_only():
        views.quiet("This dashboard is read-only: versions are rolled back elsewhere.")
        return
    _back(found[0], older)


def _back(current: PolicyRecord, older: list[PolicyRecord]) -> None:
    by_id = {one.id: one for one in older}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        version = st.selectbox(
            "Roll back to",
            list(by_id),
            format_func=lambda number: f"Version {number}, threshold {by_id[number].threshold:.1%}",
            key=f"back-{current.id}",
            width=320,
        )
        about = (version, current.id)
        waiting = _waiting("back", about) is not None
        if not waiting:
            st.button("Roll back…", key="back", icon=":material/undo:", on_click=_ask, args=("back", about))
    if waiting:
        text = (
            f"Publish version {version} again, by {by_id[version].author}, with its threshold "
            f"{by_id[version].threshold:.1%}, in place of version {current.id}. {_SERVERS}"
        )
        _second(
            text,
            "Roll back now",
            lambda: roll_back(
                state.store(),
                version,
                author=state.reviewer(),
                note=f"rolled back from {current.id}",
                expected=current.id,
            ),
        )


def _second(text: str, label: str, write: Callable[[], int]) -> None:
    """The question before something is written, with both answers."""
    views.notice("warning", text)
    with st.container(horizontal=True, gap="small"):
        st.button(
            label,
            key="confirm",
            icon=":material/check:",
            type="primary",
            on_click=_write,
            args=(write,),
        )
        st.button("Cancel", key="cancel", on_click=_ask, args=(None, None))


def _ask(kind: str | None, about: object) -> None:
    note = str(st.session_state.get("policy-note") or "").strip()
    st.session_state[_STATE] = None if kind is None else (kind, about, note)
    st.session_state[_SAID] = None


def _write(write: Callable[[], int]) -> None:
    """Write what was confirmed, unless another version came meanwhile."""
    st.session_state[_STATE] = None
    try:
        if state.read_only():  # the page may be older than the setting
            st.session_state[_SAID] = ("error", _READ_ONLY)
            return
        version = write()
    except OvertakenError as error:
        st.session_state[_SAID] = ("warning", str(error))
        return
    except FastRMError as error:
        st.session_state[_SAID] = ("error", str(error))
        return
    st.session_state[_SAID] = ("done", f"Version {version} is published. {_SERVERS}")
    st.session_state["policy-note"] = ""


def _waiting(kind: str, about: object) -> str | None:
    """The note of what waits for the second press; None where nothing of that kind, about the same, does."""
    found = st.session_state.get(_STATE)
    return found[2] if found is not None and found[:2] == (kind, about) else None


def _again(one: PolicyRecord) -> str:
    return "" if one.again is None else f"version {one.again} again"
