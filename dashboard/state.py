"""What the pages of one session share: the store, the reviewer's name, the case at hand and the verdicts given.

The store is opened once for each server process and shared by all sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from threading import Lock
from typing import Literal, ParamSpec
from uuid import uuid4

import streamlit as st

from fastrm_monitor.config import DEFAULT_STORE
from fastrm_monitor.dashboard import access, current, views
from fastrm_monitor.dashboard.queries import Queue, ReviewView
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records.store import Store
from fastrm_monitor.records.text import clean_text

DEFAULT_REVIEWER = "reviewer"

_P = ParamSpec("_P")


@dataclass(frozen=True)
class Notice:
    """What the reviewer must know about the last action; plain text, shown until the next one."""

    kind: Literal["warning", "error"]
    text: str


@dataclass(frozen=True)
class Done:
    """What the last action did, said for a moment; our own words."""

    text: str
    symbol: str


@dataclass(frozen=True)
class Given:
    """A verdict given in this session, for undoing: the case, its version since, the review that counted before, when.

    The time is on the monotonic clock; `before` is None where the case was open.
    """

    case_id: str
    version: int
    before: ReviewView | None
    at: float


@dataclass
class Desk:
    """What one session is at.

    One object, changed in place: a run that a newer key press stops ends at its next use of `st.session_state`, so what
    belongs together would be written by halves there. Hold `lock` from a verdict to the step after it: the run of the
    newer press may begin before the older one has ended.

    Attributes:
        queue: the queue that `case_id` was chosen from.
        case_id: the case at hand in the queue; None when there is none.
        given: the verdicts of this session that can be undone, oldest first.
        notice: shown until the next action.
        done: to be said once.
        token: names the session where it claims cases; another tab of the same reviewer has another one.
        present: whether the queue is on the screen.
        sheet: whether the list of keys is.
        lock: see above.
    """

    queue: Queue | None = None
    case_id: str | None = None
    given: list[Given] = field(default_factory=list)
    notice: Notice | None = None
    done: Done | None = None
    token: str = field(default_factory=lambda: uuid4().hex)
    present: bool = False
    sheet: bool = False
    lock: Lock = field(default_factory=Lock)

    @property
    def last(self) -> Given | None:
        """The verdict that an undo would take back."""
        return self.given[-1] if self.given else None


def desk() -> Desk:
    """This session's."""
    found: Desk = st.session_state.setdefault("desk", Desk())
    return found


def store() -> Store:
    """The store that `FASTRM_STORE` names.

    Raises:
        FastRMError: it cannot be opened; the sentence says what to do and holds no password.
    """
    url = current.settings().store
    return _open(DEFAULT_STORE if url is None else url.get_secret_value())


@st.cache_resource(show_spinner=False, on_release=Store.close)
def _open(url: str) -> Store:
    return Store(url)


def reviewer() -> str:
    """Who labels in this session: who signed in, else the name in the sidebar."""
    return access.name() or str(st.session_state.get("reviewer") or "").strip() or DEFAULT_REVIEWER


def linked_case() -> str:
    """The id of the case that the page's address names, without characters that no id has; empty when there is none."""
    return clean_text(st.query_params.get("case", ""))


def read_only() -> bool:
    """Whether this dashboard only shows: no verdicts, no claims, nothing published.

    Raises:
        FastRMError: a setting is not usable.
    """
    return current.settings().read_only


def show_notice() -> None:
    """Show the notice, if there is one."""
    notice = desk().notice
    if notice is not None:
        views.notice(notice.kind, notice.text)


def say_done() -> None:
    """Say what the last action did, once.

    Not where it was done: what a callback draws in a fragment takes the place of something else of the page.
    """
    session = desk()
    done, session.done = session.done, None
    if done is not None:
        st.toast(done.text, icon=f":material/{done.symbol}:")


def guarded(page: Callable[_P, None]) -> Callable[_P, None]:
    """A page, or a part of one, that shows the sentence of an error in place of a traceback, and can be tried again."""

    @wraps(page)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            page(*args, **kwargs)
        except FastRMError as error:
            views.notice("error", str(error))
            # Without it a fragment that failed has nothing left to run it, though the database returns.
            st.button("Try again", key=f"retry-{page.__module__}-{page.__qualname__}", icon=":material/refresh:")

    return run
