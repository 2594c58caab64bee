"""The review queue: one case after the other, and below it the list they come from."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import streamlit as st

from fastrm_monitor.dashboard import pictures, queries, review, state, views, words
from fastrm_monitor.dashboard.queries import CaseRow, CaseView, Place, Queue

LIST = 10  # rows of the list below

_STATES = {"open": "Open", "reviewed": "Reviewed", "all": "Open and reviewed"}
_KINDS = {"flagged": "Flagged", "sampled": "Random sample", "all": "Flagged and sampled"}
_ORDERS = {
    "confidence": "Lowest confidence first",
    "entropy": "Most scattered map first",
    "newest": "Newest first",
    "oldest": "Oldest first",
}


@state.guarded
def page() -> None:
    """Filters, then the case at hand, then the list."""
    queue = _filters()
    with state.store().session() as session:
        current = _current(queue, queries.first(session, queue))
        view = None if current is None else queries.case(session, current)
        if view is None and current is not None:  # purged meanwhile
            current = state.desk().case_id = queries.first(session, queue)
            view = None if current is None else queries.case(session, current)
        place = None if view is None else queries.place(session, queue, view.case_id)
    if view is None or place is None:
        views.title("Review queue")
        state.show_notice()
        _nothing(queue)
        return
    _head(view, place, queue)
    state.show_notice()
    left, right = st.columns(views.SHARES, gap="large")
    with left:
        pictures.panel(view, room=views.ROOM)
    with right:
        views.badges(view)
        views.confidence(view)
        views.dialogue(view)
        review.buttons(view, queue)
    _list(queue, place, view.case_id)


def _filters() -> Queue:
    with st.sidebar:
        kind = st.selectbox("Cases", list(_KINDS), format_func=_KINDS.__getitem__, key="kind", bind="query-params")
        status = st.selectbox("State", list(_STATES), format_func=_STATES.__getitem__, key="state", bind="query-params")
        order = st.selectbox("Order", list(_ORDERS), format_func=_ORDERS.__getitem__, key="order", bind="query-params")
    return Queue(status, kind, order)  # type: ignore[arg-type]  # the options are the literals


def _current(queue: Queue, first: str | None) -> str | None:
    """The case at hand: kept while the filters stay, else the first of the queue."""
    desk = state.desk()
    if desk.queue != queue or desk.case_id is None:
        desk.queue, desk.case_id = queue, first
    return desk.case_id


def _go(case_id: str | None) -> None:
    desk = state.desk()
    desk.notice = None
    if case_id is not None:
        desk.case_id = case_id


def _head(view: CaseView, place: Place, queue: Queue) -> None:
    inside = queue.state == "all" or (view.verdict is None) == (queue.state == "open")
    inside = inside and (queue.kind == "all" or (view.flagged if queue.kind == "flagged" else view.sampled))
    of = "" if queue.state == "all" else f" {queue.state}"
    where = f"{place.position} of {place.total}{of}" if inside else f"{place.total}{of} in this queue"
    heading, ways = st.columns(views.SHARES, gap="large", vertical_alignment="center")
    with heading:
        views.title("Review queue", where)
    with ways:
        back, on, link = st.columns(3, gap="small", vertical_alignment="center")
    back.button(
        "Previous",
        key="previous",
        icon=":material/arrow_back:",
        shortcut="P",
        disabled=place.previous is None,
        on_click=_go,
        args=(place.previous,),
        width="stretch",
    )
    on.button(
        "Next",
        key="next",
        icon=":material/arrow_forward:",
        shortcut="N",
        disabled=place.next is None,
        on_click=_go,
        args=(place.next,),
        width="stretch",
    )
    with link:
        st.page_link(
            "screens/case.py", label="Case page", icon=":material/open_in_new:", query_params={"case": view.case_id}
        )


def _nothing(queue: Queue) -> None:
    with state.store().session() as session:
        everything = queries.count(session, Queue("all", "all", queue.order))
    if everything == 0:
        views.empty(
            "inbox", "No cases yet", "Flagged answers and the random sample appear here once a monitor stores them."
        )
    elif queue.state == "open":
        views.empty(
            "task_alt", "All reviewed", "No case is waiting for a verdict. Choose other cases or states at the left."
        )
    else:
        views.empty("filter_list_off", "No case fits", "Choose other cases or states at the left.")
    last = state.desk().last
    if last is not None:
        key = review.undo_key(last)
        st.button("Undo", key=key, icon=":material/undo:", shortcut="U", on_click=review.undo, args=(last,))


def _list(queue: Queue, place: Place, current: str) -> None:
    st.space("small")
    views.section("In this queue", f"{place.total} cases")
    pages = max(-(-place.total // LIST), 1)
    here = min((place.position - 1) // LIST + 1, pages)
    slot = st.container()
    # A key for each length and filter: a list that changed begins at the page of the case at hand.
    number = st.pagination(pages, default=here, key=f"page-{queue}-{pages}") if pages > 1 else 1
    with state.store().session() as session:
        rows = queries.rows(session, queue, LIST, (number - 1) * LIST)
    ids = [row.case_id for row in rows]
    # A fresh table for each case at hand, with its row selected, and after each choice, so that it can be made again.
    key = f"list-{st.session_state.get('list_turn', 0)}-{current}-{number}"
    with slot:
        st.dataframe(
            [_cells(row) for row in rows],
            key=key,
            hide_index=True,
            on_select=partial(_pick, key, ids),
            selection_mode="single-row",
            selection_default={"selection": {"rows": [ids.index(current)] if current in ids else []}},
            alt="The cases of this queue; select one to review it.",
            column_config={
                "Confidence": st.column_config.TextColumn(width="small"),
                "Question": st.column_config.TextColumn(width="large"),
                "Answer": st.column_config.TextColumn(width="medium"),
            },
        )


def _pick(key: str, ids: list[str]) -> None:
    chosen = st.session_state[key]["selection"]["rows"]
    if chosen and chosen[0] < len(ids):
        _go(ids[chosen[0]])
    st.session_state["list_turn"] = st.session_state.get("list_turn", 0) + 1


def _cells(row: CaseRow) -> dict[str, str]:
    return {
        "Confidence": words.confidence(row.confidence, row.calibrated),
        "Question": words.plain(row.question),
        "Answer": words.plain(row.answer),
        "Why": words.plain(words.short_reason(row)),
        "Verdict": words.VERDICT_NAMES.get(row.verdict or "", "Open") if row.verdict else "Open",
        "Age": words.age(row.created_at, datetime.now(UTC)),
    }


page()
