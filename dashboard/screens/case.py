"""One case, by the link that alerts, spans and colleagues send: /case?case=CASE_ID."""

from __future__ import annotations

import streamlit as st

from fastrm_monitor.dashboard import pictures, queries, review, state, views, words
from fastrm_monitor.dashboard.queries import CaseView


@state.guarded
def page() -> None:
    """The case with everything that is known of it."""
    wanted = st.query_params.get("case", "")
    if not wanted:
        _missing(
            "No case named", "A link to a case ends in ?case= and the case's id; the overview and the queue have them."
        )
        return
    with state.store().session() as session:
        view = queries.case(session, wanted)
    if view is None:
        _missing("No such case", f"There is no case {wanted[:64]} in this store; it may have been purged by its age.")
        return
    heading, link = st.columns([6, 1], vertical_alignment="center")
    with heading:
        views.title("Case", view.case_id)
    with link:
        st.page_link("screens/queue.py", label="Review queue", icon=":material/rate_review:")
    state.show_notice()
    left, right = st.columns(views.SHARES, gap="large")
    with left:
        pictures.panel(view, room=views.ROOM, every=True)
    with right:
        views.badges(view)
        views.confidence(view)
        views.dialogue(view)
        review.buttons(view, None)
    st.space("small")
    _details(view)


def _missing(heading: str, text: str) -> None:
    views.title("Case")
    views.empty("search_off", heading, text)
    st.page_link("screens/queue.py", label="Go to the review queue", icon=":material/rate_review:")


def _details(view: CaseView) -> None:
    left, right = st.columns(views.SHARES, gap="large")
    with left:
        views.section("Reviews")
        if view.reviews:
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
        else:
            st.html('<p class="frm-quiet">No verdict yet.</p>')
        st.space("small")
        views.section("Origin")
        origin = (
            ("Answered", words.moment(view.created_at)),
            ("Request", view.request_id),
            ("Model", view.model),
            ("Server", view.server),
            ("Proxy", view.proxy_version),
            ("Library", view.library_version),
            ("Trace", view.trace_id or "–"),
            ("Span", view.span_id or "–"),
            ("Scoring time", f"{1000 * view.scoring_seconds:.2f} ms"),
        )
        st.html(words.table(("", ""), origin))
    with right:
        views.section("Features", "what the confidence rests on")
        if view.features:
            features = [(name, f"{value:.4f}") for name, value in sorted(view.features.items())]
            st.html(words.table(("Name", "Value"), features, numbers=(1,)))
        else:
            st.html('<p class="frm-quiet">None stored.</p>')


page()
