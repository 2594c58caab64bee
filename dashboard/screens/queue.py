"""The review queue: one case after the other, and below it the list they come from.

All but the filters is one fragment, so that a verdict runs no more of the page than changes with it.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

import streamlit as st
from streamlit import runtime
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime import Runtime

from fastrm_monitor.dashboard import keys, pace, pictures, queries, review, seat, state, views, words
from fastrm_monitor.dashboard.queries import MOST, CaseRow, CaseView, Place, Queue
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records import claims

LIST = 10  # rows of the list below

_STATES = {"open": "Open", "reviewed": "Reviewed", "all": "Open and reviewed"}
_KINDS = {"flagged": "Flagged", "sampled": "Random sample", "all": "Flagged and sampled"}
_ORDERS = {
    "confidence": "Lowest confidence first",
    "interest": "Most informative first",
    "entropy": "Most scattered map first",
    "newest": "Newest first",
    "oldest": "Oldest first",
}


@state.guarded
def page() -> None:
    """Filters, then the desk."""
    queue = _filters()
    desk = state.desk()
    linked = state.linked_case()
    if not desk.present and linked:  # the address of this page holds the case at hand, for a reload
        desk.queue, desk.case_id = queue, linked
    elif desk.queue != queue:
        desk.queue, desk.case_id = queue, None
    desk.present = True
    _desk(queue)


@st.fragment
@state.guarded
def _desk(queue: Queue) -> None:
    """The case at hand; then, in the order of what a reviewer waits for, the next one's picture and the list."""
    head = st.container()
    try:
        seen = _at_desk(queue, head)
    except FastRMError:
        with head:
            views.title("Review queue")
        raise
    if seen is None:
        return
    view, place, coming = seen
    pictures.ahead(coming, room=views.ROOM)
    _list(queue, place, view.case_id)
    _settle()


def _at_desk(queue: Queue, head: DeltaGenerator) -> tuple[CaseView, Place, CaseView | None] | None:
    """The case at hand with its place and the next one, drawn; None when there is none, and that is said."""
    view = _at_hand(queue)
    if view is None:
        with head:
            views.title("Review queue")
        state.show_notice()
        _nothing(queue)
        return None
    state.show_notice()
    left, right = st.columns(views.SHARES, gap="large")
    with right:
        views.badges(view)
        views.confidence(view)
        views.dialogue(view)
        review.buttons(view, queue)
        pace_line = st.container()
    with left:
        pictures.panel(view, room=views.ROOM)
    # The counts take longest, and nobody waits for them.
    with state.store().session() as session:
        place = queries.place(session, queue, view.case_id, state.desk().token)
        coming = queries.case(session, place.next) if place is not None and place.next is not None else None
    if place is None:  # purged since it was read
        return None
    with head:
        _head(view, place, queue)
    with pace_line:
        _pace(queue, place)
    return view, place, coming


@st.cache_resource(show_spinner=False)
def _settle() -> None:
    """Spare what is loaded by now from the collection that follows each run: it takes a tenth of a second, in vain.

    In a server of our own alone: `gc.freeze` is felt by all of a process.
    """
    if type(runtime.get_instance()) is Runtime:  # a test has a stand-in
        gc.collect()
        gc.freeze()


def _filters() -> Queue:
    with st.sidebar:
        kind = st.selectbox("Cases", list(_KINDS), format_func=_KINDS.__getitem__, key="kind", bind="query-params")
        status = st.selectbox("State", list(_STATES), format_func=_STATES.__getitem__, key="state", bind="query-params")
        order = st.selectbox("Order", list(_ORDERS), format_func=_ORDERS.__getitem__, key="order", bind="query-params")
    return Queue(status, kind, order)  # type: ignore[arg-type]  # the options are the literals


def _at_hand(queue: Queue) -> CaseView | None:
    """The case at hand, claimed if nobody else is at it: the one of before, else the first that is nobody's."""
    desk, mine, who = state.desk(), seat.seat(), state.reviewer()
    view = None
    if desk.case_id is not None:
        mine.take(desk.case_id, who)
        view = _load(desk.case_id)
    if view is None:  # purged meanwhile, or none was chosen yet
        desk.case_id = seat.walk(mine, who, queue, None)
        view = None if desk.case_id is None else _load(desk.case_id)
    if view is None:
        mine.leave()
        st.query_params.pop("case", None)
    elif st.query_params.get("case") != view.case_id:
        st.query_params["case"] = view.case_id
    return view


def _load(case_id: str) -> CaseView | None:
    with state.store().session() as session:
        return queries.case(session, case_id)


def _walk(queue: Queue, shown: str, forward: bool) -> None:
    desk, mine, who = state.desk(), seat.seat(), state.reviewer()
    with desk.lock:
        if desk.case_id != shown:  # a key pressed twice passes over no case unseen
            return
        desk.notice = None
        with suppress(FastRMError):  # the page that follows says what is wrong with the store
            desk.case_id = seat.walk(mine, who, queue, shown, forward=forward) or shown


def _head(view: CaseView, place: Place, queue: Queue) -> None:
    inside = queue.state == "all" or (view.verdict is None) == (queue.state == "open")
    inside = inside and (queue.kind == "all" or (view.flagged if queue.kind == "flagged" else view.sampled))
    of = "" if queue.state == "all" else f" {queue.state}"
    total = words.amount(place.total, MOST)
    where = f"{words.amount(place.position, MOST)} of {total}{of}" if inside else f"{total}{of} in this queue"
    heading, ways = st.columns(views.SHARES, gap="large", vertical_alignment="center")
    with heading:
        views.title("Review queue", where)
    with ways:
        back, on, sheet, link = st.columns([6, 5, 5, 5], gap="xsmall", vertical_alignment="center")
    back.button(
        "Previous",
        key="previous",
        icon=":material/arrow_back:",
        shortcut=keys.PREVIOUS,
        disabled=place.previous is None,
        on_click=_walk,
        args=(queue, view.case_id, False),
        width="stretch",
    )
    on.button(
        "Next",
        key="next",
        icon=":material/arrow_forward:",
        shortcut=keys.NEXT,
        disabled=place.next is None,
        on_click=_walk,
        args=(queue, view.case_id, True),
        width="stretch",
    )
    with sheet:
        keys.button()
    with link:
        st.page_link(
            "screens/case.py", label="Page", icon=":material/open_in_new:", query_params={"case": view.case_id}
        )


def _pace(queue: Queue, place: Place) -> None:
    times = [given.at for given in state.desk().given]
    line = pace.line(times, place.total if queue.state == "open" else None, MOST)
    if line:
        views.quiet(line)


def _nothing(queue: Queue) -> None:
    with state.store().session() as session:
        waiting = queries.first(session, queue)
        anything = waiting or queries.first(session, Queue("all", "all", queue.order))
    if anything is None:
        views.empty(
            "inbox", "No cases yet", "Flagged answers and the random sample appear here once a monitor stores them."
        )
    elif waiting is not None:
        views.empty(
            "group", "Others are at the rest", "Every case that is left is on another reviewer's screen at the moment."
        )
        st.button("Look again", key="again", icon=":material/refresh:")
    elif queue.state == "open":
        views.empty(
            "task_alt", "All reviewed", "No case is waiting for a verdict. Choose other cases or states at the left."
        )
    else:
        views.empty("filter_list_off", "No case fits", "Choose other cases or states at the left.")
    state.say_done()
    last = state.desk().last
    if last is not None:
        key = review.undo_key(last)
        st.button("Undo", key=key, icon=":material/undo:", shortcut=keys.UNDO, on_click=review.undo, args=(last,))


def _list(queue: Queue, place: Place, current: str) -> None:
    st.space("small")
    views.section("In this queue", f"{words.amount(place.total, MOST)} cases")
    pages = max(-(-min(place.total, MOST) // LIST), 1)
    here = min((place.position - 1) // LIST + 1, pages)
    slot = st.container()
    # A key for each length and filter: a list that changed begins at the page of the case at hand.
    number = st.pagination(pages, default=here, key=f"page-{queue}-{pages}") if pages > 1 else 1
    with state.store().session() as session:
        rows = queries.rows(session, queue, LIST, (number - 1) * LIST)
        ids = [row.case_id for row in rows]
        holders = claims.holders(session, ids, state.desk().token)
    # A fresh table for each case at hand, with its row selected, and after each choice, so that it can be made again.
    key = f"list-{st.session_state.get('list_turn', 0)}-{current}-{number}"
    with slot:
        st.dataframe(
            [_cells(row, holders.get(row.case_id)) for row in rows],
            key=key,
            hide_index=True,
            on_select=partial(_pick, key, ids, current),
            selection_mode="single-row",
            selection_default={"selection": {"rows": [ids.index(current)] if current in ids else []}},
            alt="The cases of this queue; select one to review it.",
            column_config={
                "Confidence": st.column_config.TextColumn(width="small"),
                "Question": st.column_config.TextColumn(width="large"),
                "Answer": st.column_config.TextColumn(width="medium"),
            },
        )


def _pick(key: str, ids: list[str], current: str) -> None:
    chosen = st.session_state[key]["selection"]["rows"]
    picked = ids[chosen[0]] if chosen and chosen[0] < len(ids) else None
    desk = state.desk()
    with desk.lock:
        # A table sends the row that it was drawn with, too, and may do so after the queue has moved on.
        if picked == current or desk.case_id != current:
            return
        if picked is not None:
            desk.notice = None
            desk.case_id = picked
    st.session_state["list_turn"] = st.session_state.get("list_turn", 0) + 1


def _cells(row: CaseRow, holder: str | None) -> dict[str, str]:
    verdict = words.VERDICT_NAMES.get(row.verdict or "", "Open") if row.verdict else "Open"
    return {
        "Confidence": words.confidence(row.confidence, row.calibrated),
        "Question": words.plain(row.question),
        "Answer": words.plain(row.answer),
        "Why": words.plain(words.short_reason(row)),
        "Verdict": verdict if holder is None else f"{verdict}, {words.plain(holder)} is at it",
        "Age": words.age(row.created_at, datetime.now(UTC)),
    }


page()
