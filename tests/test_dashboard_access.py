"""Who gets in: nobody before signing in where that is asked for, and nobody writes where the dashboard only shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit
from streamlit.testing.v1 import AppTest

from fastrm_monitor import dashboard
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from tests.oidc import Provider

APP = Path(dashboard.__file__).with_name("app.py")

Make = Callable[..., Case]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_case: Make) -> Iterator[Store]:
    """A store with one flagged case, that the pages open."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("FASTRM_STORE", url)
    with Store(url) as opened:
        opened.add([make_case(0)])
        yield opened
    streamlit.cache_resource.clear()


@pytest.fixture
def secrets(tmp_path: Path) -> Iterator[Path]:
    """A usable sign-in file."""
    with Provider(email="ada@example.org").running() as provider:
        yield provider.secrets_file(tmp_path / "auth.toml", "http://127.0.0.1:8501")


def opened(page: str) -> AppTest:
    at = AppTest.from_file(str(APP), default_timeout=60)
    at.switch_page(page)
    at.run()
    assert [error.value for error in at.exception] == []
    return at


def html(at: AppTest) -> str:
    return "\n".join(part.proto.body for part in at.get("html") if not part.proto.body.startswith("<style"))


@pytest.mark.parametrize("page", ["screens/overview.py", "screens/queue.py", "screens/health.py", "screens/case.py"])
def test_no_page_before_signing_in(store: Store, secrets: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page is the sign-in page: one button, no question, no picture, no name to type."""
    monkeypatch.setenv("FASTRM_AUTH", str(secrets))
    at = opened(page)
    assert [button.label for button in at.button] == ["Sign in"]
    assert "Reviewers only" in html(at)
    assert not at.text_input
    assert not at.get("imgs")


def test_broken_sign_in_file_lets_nobody_in(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is gone after the start is one sentence on the page, and no page."""
    monkeypatch.setenv("FASTRM_AUTH", str(tmp_path / "gone.toml"))
    at = opened("screens/queue.py")
    assert not at.button
    assert "cannot be read" in html(at)


def test_read_only_shows_and_takes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case is there; verdict buttons, note and the reviewer's name are not."""
    monkeypatch.setenv("FASTRM_READ_ONLY", "true")
    at = opened("screens/queue.py")
    assert not [button.key for button in at.button if (button.key or "").startswith(("verdict-", "undo"))]
    assert not at.text_input
    assert "Read only" in html(at)
    assert "verdicts are given elsewhere" in html(at)
