"""Who gets in: nobody before signing in where that is asked for, and nobody writes where the dashboard only shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from tests.oidc import Provider
from tests.pages import CASE, HEALTH, OVERVIEW, QUEUE, opened, shown

Make = Callable[..., Case]


@pytest.fixture(autouse=True)
def _case(store: Store, make_case: Make) -> None:
    """One flagged case in the store."""
    store.add([make_case(0)])


@pytest.fixture
def secrets(tmp_path: Path) -> Iterator[Path]:
    """A usable sign-in file."""
    with Provider(email="ada@example.org").running() as provider:
        yield provider.secrets_file(tmp_path / "auth.toml", "http://127.0.0.1:8501")


@pytest.mark.parametrize("page", [OVERVIEW, QUEUE, HEALTH, CASE])
def test_no_page_before_signing_in(secrets: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page is the sign-in page: one button, no question, no picture, no name to type."""
    monkeypatch.setenv("FASTRM_AUTH", str(secrets))
    at = opened(page)
    assert [button.label for button in at.button] == ["Sign in"]
    assert "Reviewers only" in shown(at)
    assert not at.text_input
    assert not at.get("imgs")


def test_broken_sign_in_file_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is gone after the start is one sentence on the page, and no page."""
    monkeypatch.setenv("FASTRM_AUTH", str(tmp_path / "gone.toml"))
    at = opened(QUEUE)
    assert [button.label for button in at.button] == ["Try again"]
    assert not at.text_input
    assert "cannot be read" in shown(at)
    at.button[0].click().run()
    assert [button.label for button in at.button] == ["Try again"]
    assert "cannot be read" in shown(at)


def test_read_only_shows_and_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The case is there; verdict buttons, note and the reviewer's name are not."""
    monkeypatch.setenv("FASTRM_READ_ONLY", "true")
    at = opened(QUEUE)
    assert not [button.key for button in at.button if (button.key or "").startswith(("verdict-", "undo"))]
    assert not at.text_input
    assert "Read only" in shown(at)
    assert "verdicts are given elsewhere" in shown(at)
