"""Signing in: what starts with it, whose name a verdict bears, and the whole way in a real browser."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import streamlit
from sqlalchemy import select

from fastrm_monitor import cli
from fastrm_monitor.dashboard import access, serve, state
from fastrm_monitor.dashboard.providers import read_providers
from fastrm_monitor.errors import FastRMError, MissingExtraError
from fastrm_monitor.records.models import Case, Review
from fastrm_monitor.records.store import Store
from tests.oidc import Provider
from tests.pages import QUEUE, opened
from tests.test_browser import WAIT, Page, shots  # noqa: F401 - a fixture

GOOD = """[auth]
redirect_uri = "https://host/oauth2callback"
cookie_secret = "0123456789abcdef0123456789abcdef"
"""
PROVIDER = """client_id = "id"
client_secret = "hunter2"
server_metadata_url = "https://idp/.well-known/openid-configuration"
"""

Make = Callable[..., Case]


@pytest.fixture
def secrets(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "secrets.toml"
        path.write_text(text)
        return path

    return write


# --- starting --------------------------------------------------------------------------------------------------------


def test_providers(secrets: Callable[[str], Path]) -> None:
    """One provider needs no name; several have one each, of letters and digits."""
    assert read_providers(secrets(GOOD + PROVIDER)) == (None,)
    several = f"{GOOD}[auth.google]\n{PROVIDER}[auth.okta]\n{PROVIDER}"
    assert read_providers(secrets(several)) == ("google", "okta")
    with pytest.raises(FastRMError, match=r"in place of \[auth\.my_own\]"):
        read_providers(secrets(f"{GOOD}[auth.my_own]\n{PROVIDER}"))
    with pytest.raises(FastRMError, match=r"needs a text client_id in \[auth\]"):
        read_providers(secrets(GOOD))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the process would have been started with; it is not."""
    wanted: dict[str, Any] = {}

    def start(command: list[str], env: dict[str, str]) -> None:
        wanted.update(command=command, env=env)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(serve, "_check_port", lambda host, port: None)
    return wanted


def dashboard_command(monkeypatch: pytest.MonkeyPatch, store_url: str, *words: str) -> int:
    Store(store_url).close()
    monkeypatch.setattr(sys, "argv", ["fastrm-monitor", "dashboard", "--no-open", "--store", store_url, *words])
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        cli.main()
    return int(getattr(ended.value, "code", 0) or 0)


def test_command_line(
    store_url: str,
    started: dict[str, Any],
    secrets: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Elsewhere it listens with sign-in or when told to, and only then; read-only reaches the pages."""
    assert dashboard_command(monkeypatch, store_url, "--host", "0.0.0.0") == 2
    assert "Without sign-in the dashboard does not listen on 0.0.0.0" in capsys.readouterr().err
    assert started == {}
    dashboard_command(monkeypatch, store_url, "--host", "0.0.0.0", "--allow-remote", "--read-only")
    assert "--server.address=0.0.0.0" in started["command"]
    assert (started["env"]["FASTRM_READ_ONLY"], "FASTRM_AUTH" in started["env"]) == ("true", False)
    path = secrets(GOOD + PROVIDER)
    dashboard_command(monkeypatch, store_url, "--host", "0.0.0.0", "--auth", str(path))
    assert started["env"]["FASTRM_AUTH"] == str(path)
    assert f"--secrets.files={path}" in started["command"]
    assert "FASTRM_READ_ONLY" not in started["env"]
    started.clear()
    monkeypatch.setenv("FASTRM_AUTH", str(path))
    dashboard_command(monkeypatch, store_url, "--host", "0.0.0.0")
    assert f"--secrets.files={path}" in started["command"]


def test_missing_authlib_is_said(secrets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library that signs people in the dashboard does not start, open to all."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "authlib" else real(name))
    with pytest.raises(MissingExtraError, match=r"fastrm-monitor\[dashboard\]"):
        serve.serve("sqlite:///x.db", auth=secrets(GOOD + PROVIDER))


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"is_logged_in": True, "email": "ann@example.org", "name": "Ann"}, "ann@example.org"),
        ({"is_logged_in": True, "name": " Ann "}, "Ann"),
        ({"is_logged_in": True, "sub": "42"}, "42"),
        ({"is_logged_in": True}, None),
        ({"is_logged_in": "yes", "email": "ann@example.org"}, None),
        ({"email": "ann@example.org"}, None),
        ({}, None),
    ],
)
def test_name_is_what_the_provider_says(
    monkeypatch: pytest.MonkeyPatch, claims: dict[str, object], name: str | None
) -> None:
    """The name is a claim of the provider, the e-mail first; without one, or without sign-in, nobody is there."""
    monkeypatch.setattr(streamlit, "user", claims)
    assert access.name() is None
    assert access.admits()
    monkeypatch.setenv("FASTRM_AUTH", "secrets.toml")
    assert (access.name(), access.admits()) == (name, name is not None)


def test_signed_in(store: Store, make_case: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who signed in sees the pages, cannot write another name beside verdicts, and may sign out."""
    monkeypatch.setenv("FASTRM_AUTH", "secrets.toml")
    monkeypatch.setattr(streamlit, "user", {"is_logged_in": True, "email": "ann@example.org"})
    store.add([make_case(0)])
    at = opened(QUEUE)
    assert any("ann@example.org" in part.proto.body for part in at.get("html"))
    assert [box for box in at.text_input if box.label == "Reviewer"] == []
    assert [button.label for button in at.button if button.key == "sign-out"] == ["Sign out"]
    at.session_state["reviewer"] = "somebody else"
    assert state.reviewer() == "ann@example.org"


# --- in the browser --------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_whole_way(shots: ModuleType, tmp_path: Path, make_case: Make) -> None:  # noqa: F811
    """Before signing in neither page nor picture is handed out; afterwards both are, and verdicts bear the e-mail."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    port = shots.free_port()
    address = f"http://127.0.0.1:{port}"
    case = make_case(0, question="who is the secret person?")
    with Store(url) as store, Provider(email="ann@example.org").running() as provider:
        store.add([case])
        file = provider.secrets_file(tmp_path / "secrets.toml", address)
        with shots.dashboard(url, port=port, auth=file) as there, shots.browser("light") as driver:
            page = Page(driver, there)
            page.open(f"/case?case={case.case_id}", "Sign in")
            assert "secret" not in driver.page_source
            assert page.find("[data-testid='stSidebarNav']") == []
            page.until(lambda: press(page, "Sign in"), "the button is there")
            page.until(lambda: page.texts(".frm-title h1") == ["Overview"], "the overview opens after signing in")
            page.open("/queue", "Review queue")
            assert page.question() == case.question
            page.until(page.images, "the picture is loaded")
            picture = str(page.images()[0].get_attribute("src"))
            assert "/media/" in picture
            own = "; ".join(f"{one['name']}={one['value']}" for one in driver.get_cookies())
            assert [status(picture, cookie) for cookie in ("", f"_streamlit_user={own[-40:]}", own)] == [403, 403, 200]
            page.keys("1")
            page.until(lambda: reviewers(store) == ["ann@example.org"], "the verdict is stored")
            page.until(lambda: press(page, "Sign out"), "the way out is there")
            page.until(lambda: page.texts(".frm-title h1") == ["Sign in"], "the sign-in page is back")


def press(page: Page, label: str) -> bool:
    """Press a button, if it is there; one that is drawn anew meanwhile is looked for again."""
    found = [one for one in page.seen("button") if one.text.endswith(label)]
    for one in found[:1]:
        one.click()
    return bool(found)


def status(address: str, cookie: str) -> int:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, headers={"Cookie": cookie}), timeout=WAIT
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def reviewers(store: Store) -> list[str]:
    with store.session() as session:
        return list(session.scalars(select(Review.reviewer)))
