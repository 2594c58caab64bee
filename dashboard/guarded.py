"""What `streamlit run` runs where people must sign in: the pages, and pictures for nobody who has not.

Streamlit hands out pictures by addresses that cannot be guessed, to whoever has one. Here the cookie that a page needs
is needed for a picture as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from streamlit.auth_util import get_cookie_with_chunks
from streamlit.web.server.server_util import get_cookie_secret
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class OnlySignedIn:
    """Answers requests for pictures and files with 403 unless they carry the cookie of somebody who signed in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and "/media/" in scope["path"] and not _signed_in(Request(scope)):
            refusal = PlainTextResponse("Sign in to see this.", status_code=403)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _signed_in(request: Request) -> bool:
    def decoded(name: str) -> bytes | None:
        value = request.cookies.get(name)
        return None if value is None else decode_signed_value(get_cookie_secret(), name, value.encode("latin-1"))

    try:
        said = get_cookie_with_chunks(decoded, USER_COOKIE_NAME)
        return said is not None and json.loads(said).get("is_logged_in") is True
    except (ValueError, AttributeError):  # whatever it is, we did not sign it
        return False


app = st.App(Path(__file__).with_name("app.py"), middleware=[Middleware(OnlySignedIn)])
