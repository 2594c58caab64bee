"""One case, by the link that alerts, spans and colleagues send: /case?case=CASE_ID."""

from __future__ import annotations

import streamlit as st

from fastrm_monitor.config import load_settings
from fastrm_monitor.dashboard import closer, meanings, pictures, queries, related, review, state, views, words
from fastrm_monitor.dashboard.queries import CaseRow, CaseView
from fastrm_monitor.demo import PROXY_FOLDER

RELATED = 6  # other cases about the same picture that are listed

_SHARES = (540, 385)  # wider than in the queue for two pictures side by side
_ROOM = (512, 440)


@state.guarded
def page() -> None:
    """The case with everything that is known of it."""
    wanted = state.linked_case()
    if not wanted:
        _missing(
            "No case named", "A link to a case ends in ?case= and the case's id; the overview and the queue have them."
        )
        return
    with state.store().session() as session:
        view = queries.case(session, wanted)
        others, more = related.same_picture(session, wanted, RELATED)
    if view is None:
        _missing("No such case", f"There is no case {wanted[:64]} in this store; it may have been purged by its age.")
        return
    heading, link = st.columns([6, 1], vertical_alignment="center")
    with heading:
        views.title("Case", view.case_id)
    with link:
        st.page_link("screens/queue.py", label="Review queue", icon=":material/rate_review:")
    state.show_notice()
    left, right = st.columns(_SHARES, gap="large")
    with left:
        pictures.panel(view, room=_ROOM, every=True)
    with right:
        views.badges(view)
        views.confidence(view)
        views.dialogue(view)
        review.buttons(view, None)
    st.space("small")
    closer.panel(view, _ROOM, _SHARES)
    st.space("small")
    _features(view)
    st.space("small")
    left, right = st.columns(_SHARES, gap="large")
    with left:
        _reviews(view)
        st.space("small")
        _related(others, more)
    with right:
        _origin(view)
        _trace(view)


def _missing(heading: str, text: str) -> None:
    views.title("Case")
    views.empty("search_off", heading, text)
    st.page_link("screens/queue.py", label="Go to the review queue", icon=":material/rate_review:")


def _features(view: CaseView) -> None:
    views.section("Features", "what the confidence rests on")
    if not view.features:
        views.quiet("None stored.")
        return
    fitted, why_not = meanings.fitted_for(view, _proxy())
    rows = meanings.features(view, fitted)
    coverage = meanings.coverage(view.pictures)
    if coverage:
        views.said([coverage])
    if fitted is not None:
        views.said([meanings.pulls(rows, fitted)])
        views.quiet("Pulls are in log odds and add up; +0.69 doubles the odds of being right, −0.69 halves them.")
    elif why_not:
        views.quiet(why_not)
    views.features(rows)


def _proxy() -> str | None:
    """The proxy folder that the dashboard knows: the one that is set, or the embedded one of the embedded model."""
    settings = load_settings()
    return settings.proxy or (str(PROXY_FOLDER) if settings.model == "embedded" else None)


def _reviews(view: CaseView) -> None:
    views.section("Reviews")
    if not view.reviews:
        views.quiet("No verdict yet.")
        return
    rows = [
        (
            words.moment(one.created_at),
            one.reviewer,
            words.VERDICT_NAMES.get(one.verdict, one.verdict),
            " ".join([one.note, *(f"#{tag}" for tag in one.tags)]).strip(),
        )
        for one in reversed(view.reviews)
    ]
    st.html(words.table(("When", "Who", "Verdict", "Note"), rows))


def _related(others: list[CaseRow], more: bool) -> None:
    views.section("Asked about the same picture")
    if not others:
        views.quiet("No other stored case has this picture.")
        return
    for one in others:
        views.linked(views.related, one)
    if more:
        views.quiet(f"These are the newest {len(others)}; there are more.")


def _origin(view: CaseView) -> None:
    views.section("Origin")
    origin = (
        ("Answered", words.moment(view.created_at)),
        ("Request", view.request_id),
        ("Model", view.model),
        ("Server", view.server),
        ("Proxy", view.proxy_version),
        ("Library", view.library_version),
        ("Scoring time", f"{1000 * view.scoring_seconds:.2f} ms"),
    )
    st.html(words.table(("", ""), origin))


def _trace(view: CaseView) -> None:
    if view.trace_id is None:
        views.quiet("No trace: the answer was not part of one.")
        return
    address = words.trace_link(load_settings().trace_url, view.trace_id, view.span_id)
    if address is not None:
        st.link_button("Open the trace", address, icon=":material/open_in_new:")
    for name, value in (("Trace", view.trace_id), ("Span", view.span_id)):
        if value is not None:
            views.quiet(name)
            st.code(words.plain(value), language=None)


page()
