"""Redaction: nothing that a hook takes out is emitted, spooled or stored; where it fails, no text is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from fastrm_monitor.errors import FastRMError
from fastrm_monitor.monitor import Monitor
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from fastrm_monitor.redaction import FAILED, Texts, load_hook
from fastrm_monitor.testing import strict
from fastrm_monitor.types import Answer
from tests.servers import StubScorer, answer, assess, load_settings

SECRET = "SESAME"


def told(number: int = 1) -> Answer:
    return replace(answer(number), question=f"who is {SECRET}?", text=f"{SECRET} it is", user_key=f"{SECRET}-key")


def scrub(texts: Texts) -> Texts:
    """Take the secret out, and hash the user's key."""
    return Texts(texts.question.replace(SECRET, "X"), texts.answer.replace(SECRET, "X"), "hashed")


def leak(texts: Texts) -> Texts:
    raise ValueError(f"cannot parse {texts.question}")


class Heard:
    """Telemetry that keeps what it was given."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def emit(self, given: Answer, assessment: Any) -> Any:
        self.answers.append(given)
        return type("Ids", (), {"trace_id": None, "span_id": None})

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: None


def monitor_with(url: str, hook: Callable[[Texts], Any] | None, **settings: Any) -> tuple[Monitor, Heard]:
    chosen = {"sample_rate": 1.0, "threshold": 0.5, "pictures": "none", "flush_seconds": 1.0, **settings}
    heard: Any = Heard()
    scorer: Any = StubScorer()
    store = Store(url, may_be_away=True)
    made = Monitor(scorer, settings=load_settings(**chosen), store=store, telemetry=heard, redact=hook)
    return made, heard


def stored(url: str) -> list[tuple[str, str, str | None]]:
    with Store(url) as store, store.session() as session:
        return [tuple(row) for row in session.execute(select(Case.question, Case.answer, Case.user_key))]


def test_texts_are_changed_before_anybody_sees_them(store_url: str) -> None:
    """Store and telemetry get what the hook gave; the caller's answer is as it was."""
    monitor, heard = monitor_with(store_url, scrub)
    given = told()
    monitor.record(given, assess(monitor, 1))
    monitor.close()
    assert stored(store_url) == [("who is X?", "X it is", "hashed")]
    assert [(one.question, one.text, one.user_key) for one in heard.answers] == [("who is X?", "X it is", "hashed")]
    assert (given.question, given.user_key) == (f"who is {SECRET}?", f"{SECRET}-key")


@pytest.mark.parametrize(
    "hook",
    [
        leak,
        lambda texts: None,
        lambda texts: (texts.question, texts.answer),
        lambda texts: replace(texts, question=None),
        lambda texts: replace(texts, user_key=7),
        lambda texts: exit(),
    ],
)
def test_a_hook_that_fails(store_url: str, hook: Callable[[Texts], Any], caplog: pytest.LogCaptureFixture) -> None:
    """No text is kept, the case is; it is counted, and the log does not quote what it was about."""
    monitor, heard = monitor_with(store_url, hook)
    with caplog.at_level(logging.DEBUG):
        monitor.record(told(), assess(monitor, 1))
        monitor.close()
    assert stored(store_url) == [(FAILED, FAILED, None)]
    assert [one.text for one in heard.answers] == [FAILED]
    assert monitor.counters.snapshot()["failed", "redaction"] == 1
    assert monitor.balance().holds
    assert SECRET not in caplog.text


def test_failures_are_loud_under_test(store_url: str) -> None:
    """In strict mode a failing hook raises, so that its author sees it."""
    monitor, _ = monitor_with(store_url, leak)
    with strict(), pytest.raises(Exception, match="the hook raised ValueError"):
        monitor._redact(told())
    monitor.close()


def test_the_spool_gets_redacted_texts(tmp_path: Path) -> None:
    """While the store is away, the files beside it have no unredacted byte."""
    monitor, _ = monitor_with("postgresql://nobody:pw@127.0.0.1:1/none", scrub, spool=str(tmp_path / "spool"))
    monitor.record(told(), assess(monitor, 1))
    monitor.close()
    files = [one.read_bytes() for one in (tmp_path / "spool").rglob("*.flagged")]
    assert len(files) == 1
    assert b"who is X?" in files[0]
    assert SECRET.encode() not in files[0]


def test_rescue_beside_a_hanging_hook(tmp_path: Path, store_url: str) -> None:
    """At the end of the process a hook that hangs is not waited for, and what is saved has no unredacted text."""
    inside, release = threading.Event(), threading.Event()

    def hang(texts: Texts) -> Texts:
        inside.set()
        release.wait(30)
        return scrub(texts)

    monitor, _ = monitor_with(store_url, hang, spool=str(tmp_path / "spool"))
    monitor.record(told(1), assess(monitor, 1))
    assert inside.wait(10)
    monitor.record(told(3), assess(monitor, 3))
    monitor.close()
    release.set()
    found = b"".join(one.read_bytes() for one in (tmp_path / "spool").rglob("*.flagged"))
    assert FAILED.encode() in found
    assert SECRET.encode() not in found


def test_unseen_texts_are_not_redacted(store_url: str) -> None:
    """For an answer that is neither stored nor captured the hook is not asked, and nobody gets its texts."""
    asked: list[Texts] = []
    monitor, heard = monitor_with(store_url, lambda texts: asked.append(texts) or texts, sample_rate=0.0)
    monitor.record(told(2), assess(monitor, 2))
    monitor.close()
    assert asked == []
    assert [(one.question, one.text, one.user_key) for one in heard.answers] == [("", "", None)]


def test_captured_texts_are_redacted(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where telemetry captures content, answers that are not stored are redacted too."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    monitor, heard = monitor_with(store_url, scrub, sample_rate=0.0)
    monitor.record(told(2), assess(monitor, 2))
    monitor.close()
    assert [one.text for one in heard.answers] == ["X it is"]


def test_the_setting_names_a_hook(store_url: str) -> None:
    """FASTRM_REDACT is followed by a monitor that is made without a hook."""
    monitor, _ = monitor_with(store_url, None, redact="tests.redacting:scrub_all")
    monitor.record(told(), assess(monitor, 1))
    monitor.close()
    assert stored(store_url) == [("-", "-", None)]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.to:be", "'nowhere.to', which cannot be imported"),
        ("os.path", "write it as package.module:function"),
        ("os.path:", "write it as package.module:function"),
        ("os.path:joyn", "os.path has no such function: check the spelling"),
        ("os:name", "os has no such function"),
    ],
)
def test_hooks_that_cannot_be_used(path: str, said: str) -> None:
    """A mistake in the setting is one sentence, at set-up."""
    with pytest.raises(FastRMError, match=said) as caught:
        load_hook(path)
    assert str(caught.value).startswith("FASTRM_REDACT")


def test_a_mistake_is_found_by_open() -> None:
    """`Monitor.open` and `instrument` refuse a hook that is not there before they open anything."""
    from fastrm_monitor.demo import PROXY_FOLDER

    with pytest.raises(FastRMError, match="FASTRM_REDACT"):
        Monitor.open(proxy=PROXY_FOLDER, redact="nowhere.to:be")
