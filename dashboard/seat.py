"""The seat of one session at the desk: the case it claims, and the way to the next case that nobody is at.

A claim is made when a case is opened in the queue, renewed by what the reviewer does, and given up on leaving the page
or the browser. Where claims cannot be written, reviewing goes on without them.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

import streamlit as st

from fastrm_monitor.dashboard import queries, state
from fastrm_monitor.dashboard.queries import Queue
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records import claims
from fastrm_monitor.records.store import Store

_AGAIN = 10.0  # seconds after which a case that another session has is reached for again
_TRIES = 5  # cases that others may take just before us


@dataclass
class Seat:
    """What a session claims.

    Attributes:
        token: names the session in the store.
        store: where claims are written; None where nobody labels.
        case_id: the case that was claimed last.
        holder: who has it instead of us.
    """

    token: str
    store: Store | None
    case_id: str | None = None
    holder: str | None = None

    def __post_init__(self) -> None:
        self._due = 0.0  # on the monotonic clock
        self._had = False
        self._who = ""
        self._lock = Lock()

    def take(self, case_id: str, reviewer: str) -> str | None:
        """Claim a case, or show that we are still at it; returns the reviewer who has it instead."""
        if self.store is None:
            return None
        with self._lock:
            now = time.monotonic()
            if (case_id, reviewer) == (self.case_id, self._who) and now < self._due:
                return self.holder
            self.case_id, self._who, self.holder, self._had = case_id, reviewer, None, False
            self._due = now + claims.SECONDS / 3
            with suppress(FastRMError):  # a verdict will say what is wrong with the store
                self.holder = claims.claim(self.store, case_id, reviewer, self.token)
                self._had = self.holder is None
            if self.holder is not None:
                self._due = now + _AGAIN
            return self.holder

    def has(self, case_id: str) -> bool:
        """Whether the case is claimed by us for now, so that it is nobody else's."""
        with self._lock:
            return self._had and case_id == self.case_id and time.monotonic() < self._due

    def leave(self) -> None:
        """Let go of what is claimed."""
        with self._lock:
            if self.store is not None and self.case_id is not None:
                self.case_id = None
                with suppress(FastRMError):
                    claims.release(self.store, self.token)


def seat() -> Seat:
    """This session's."""
    store = state.store()
    return _seat(state.desk().token, None if state.read_only() else store, store.url)


@st.cache_resource(scope="session", show_spinner=False, on_release=Seat.leave)
def _seat(token: str, _store: Store | None, url: str) -> Seat:
    """Of the session's connection: Streamlit releases it when the browser goes away."""
    return Seat(token, _store)


def leave() -> None:
    """The queue is not on the screen any more."""
    desk = state.desk()
    if desk.present:
        desk.present = False
        seat().leave()


def others_at(case_id: str) -> str | None:
    """Who looks at a case in another session; None when nobody does."""
    if seat().has(case_id):
        return None
    with state.store().session() as session:
        return claims.holders(session, [case_id], state.desk().token).get(case_id)


def walk(mine: Seat, reviewer: str, queue: Queue, case_id: str | None, *, forward: bool = True) -> str | None:
    """The nearest case that nobody else is at, claimed.

    Args:
        mine: this session's seat.
        reviewer: who walks.
        queue: which cases, in which order.
        case_id: where from; None begins at the beginning.
        forward: to the next one, from the end on to the beginning; or else back, and there to no other.

    Returns:
        Its id; None when there is none.

    Raises:
        FastRMError: the store cannot be read.
    """
    found = None
    for _ in range(_TRIES):
        with state.store().session() as session:
            if case_id is not None:
                found = queries.step(session, queue, case_id, forward=forward, seat=mine.token)
            if found is None and forward:
                found = queries.first(session, queue, mine.token)
        if found is None or mine.take(found, reviewer) is None:
            break
        case_id, found = found, None
    return found
