"""The file that names who asks people for their name: an OpenID Connect provider, in the form of Streamlit's secrets.

    [auth]
    redirect_uri = "https://reviews.example.org/oauth2callback"
    cookie_secret = "at least 32 random characters"
    client_id = "..."
    client_secret = "..."
    server_metadata_url = "https://accounts.example.org/.well-known/openid-configuration"

Of several providers each has its last three lines in a table of its own, `[auth.NAME]`. Knows nothing of Streamlit.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastrm_monitor.errors import FastRMError

CALLBACK = "/oauth2callback"
"""Where providers send people back to; the address is Streamlit's."""

_OF_PROVIDER = ("client_id", "client_secret", "server_metadata_url")
_SHORTEST_SECRET = 32  # characters; whoever guesses it is whoever he likes to be


def read_providers(path: Path) -> tuple[str | None, ...]:
    """The names of the providers that a file has; (None,) when it has one that needs no name.

    Raises:
        FastRMError: the file cannot be read or lacks something; the sentence says what and shows no secret.
    """
    try:
        with path.open("rb") as file:
            auth = tomllib.load(file).get("auth")
    except OSError as error:
        raise FastRMError(f"The sign-in file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # its message has a place, and nothing of the file
        raise FastRMError(f"The sign-in file {path} is not TOML: {error}.") from None
    if not isinstance(auth, dict):
        raise _lacks(path, "a table [auth]")
    redirect = urlsplit(_text(path, auth, "redirect_uri"))
    if redirect.scheme not in ("http", "https") or not redirect.netloc or redirect.path != CALLBACK:
        raise _lacks(path, f"a redirect_uri like https://HOST{CALLBACK}")
    if len(_text(path, auth, "cookie_secret")) < _SHORTEST_SECRET:
        raise _lacks(path, f"a cookie_secret of at least {_SHORTEST_SECRET} random characters")
    named = {name: value for name, value in auth.items() if isinstance(value, dict) and name != "client_kwargs"}
    for name, table in named.items():
        if not name.isalnum():
            raise _lacks(path, f"a name of letters and digits in place of [auth.{name}]")
        for key in _OF_PROVIDER:
            _text(path, table, key, f"[auth.{name}]")
    if any(key in auth for key in _OF_PROVIDER) or not named:
        for key in _OF_PROVIDER:
            _text(path, auth, key)
        return (None, *named)
    return tuple(named)


def _text(path: Path, table: dict[str, Any], key: str, where: str = "[auth]") -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _lacks(path, f"a text {key} in {where}")
    return value


def _lacks(path: Path, what: str) -> FastRMError:
    return FastRMError(f"The sign-in file {path} needs {what}: docs/dashboard.md has an example.")
