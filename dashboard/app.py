"""The script that `streamlit run` runs: the frame around every page, and the road to the pages.

Started by `serve`, which also sets theme and address; the store comes from `FASTRM_STORE`.
"""

from __future__ import annotations

import streamlit as st

import fastrm_monitor
from fastrm_monitor.dashboard import access, seat, state, views
from fastrm_monitor.errors import FastRMError

OVERVIEW, QUEUE, CASE = "screens/overview.py", "screens/queue.py", "screens/case.py"
CALIBRATION, HEALTH = "screens/calibration.py", "screens/health.py"

_SIDEBAR = 240  # pixels; the filters need no more, and the picture needs every one


def main() -> None:
    """One run: frame, then the page that the URL names."""
    st.set_page_config(
        page_title="fastrm-monitor",
        page_icon=views.favicon(),
        layout="wide",
        initial_sidebar_state=_SIDEBAR,
    )
    views.style()
    try:
        admitted = access.admits()
    except FastRMError as error:
        _instead("The dashboard is not set up", error)
        return
    page = st.navigation(
        [
            st.Page(OVERVIEW, title="Overview", icon=":material/monitoring:", default=True),
            st.Page(QUEUE, title="Review queue", icon=":material/rate_review:", url_path="queue"),
            st.Page(CALIBRATION, title="Calibration", icon=":material/tune:", url_path="calibration"),
            st.Page(HEALTH, title="Health", icon=":material/monitor_heart:", url_path="health"),
            st.Page(CASE, title="Case", icon=":material/plagiarism:", url_path="case", visibility="hidden"),
        ],
        position="sidebar" if admitted else "hidden",
    )
    if not admitted:
        state.guarded(access.sign_in)()
        return
    try:
        store = state.store()
    except FastRMError as error:
        _instead("The store cannot be opened", error)
        return
    if page.url_path != "queue":
        seat.leave()
    page.run()
    with st.sidebar:
        if state.read_only():
            st.html(f'<div class="frm-badges">{views.badge("Read only", "lock")}</div>')
        if access.required():
            access.show_who()
        elif not state.read_only():
            st.text_input(
                "Reviewer",
                placeholder=state.DEFAULT_REVIEWER,
                key="reviewer",
                max_chars=255,
                help="Stored with verdicts.",
            )
        views.footer(f"fastrm-monitor {fastrm_monitor.__version__}", store.safe_url)


def _instead(heading: str, error: FastRMError) -> None:
    views.title(heading)
    views.notice("error", str(error))


main()
