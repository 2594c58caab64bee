"""Who is looking: everybody who reaches the dashboard, or, where `FASTRM_AUTH` is set, whoever signed in.

Streamlit does the signing in (OpenID Connect) and keeps the name in a signed cookie. Fails closed: where sign-in is
asked for and nobody can be told, nobody gets in.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from fastrm_monitor.dashboard import current, views, words
from fastrm_monitor.dashboard.providers import read_providers

_NAMES = ("email", "preferred_username", "name", "sub")  # claims that say who somebody is, the best first


def required() -> bool:
    """Whether people must sign in.

    Raises:
        FastRMError: a setting is not usable.
    """
    return current.settings().auth is not None


def name() -> str | None:
    """The name that the provider gave the person who looks; None when nobody signed in."""
    if not required() or st.user.get("is_logged_in") is not True:
        return None
    found = (st.user.get(claim) for claim in _NAMES)
    return next((text.strip() for text in found if isinstance(text, str) and text.strip()), None)


def admits() -> bool:
    """Whether the person who looks may see pages."""
    return not required() or name() is not None


def sign_in() -> None:
    """The page for people who have not signed in: it asks the store nothing.

    Raises:
        FastRMError: the file with the providers is not usable.
    """
    views.title("Sign in")
    views.empty("lock", "Reviewers only", "This dashboard shows what people asked a model, and the pictures they sent.")
    with st.container(horizontal=True, horizontal_alignment="center"):
        for provider in read_providers(Path(current.settings().auth or "")):
            st.button(
                "Sign in" if provider is None else f"Sign in with {provider.title()}",
                key=f"sign-in-{provider}",
                icon=":material/login:",
                type="primary",
                on_click=st.login,
                args=(provider,),
            )


def show_who() -> None:
    """Who is signed in, and the way out; for the sidebar."""
    st.html(f'<p class="frm-quiet">Signed in as<br>{words.inert(name() or "")}</p>')
    st.button("Sign out", key="sign-out", icon=":material/logout:", on_click=st.logout, width="stretch")
