"""Two reviewers at one queue: each has a case of their own, each sees where the other is, and nothing is held on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from streamlit.testing.v1 import AppTest

from fastrm_monitor.config import load_settings
from fastrm_monitor.dashboard import current, queries
from fastrm_monitor.errors import StoreError
from fastrm_monitor.records import claims
from fastrm_monitor.records.models import Case, Claim
from fastrm_monitor.records.store import Store
from tests.pages import CASE, QUEUE, opened, press, ran, sent, shown


@pytest.fixture
def three(store: Store, make_case: Callable[..., Case]) -> list[str]:
    """Ids of three flagged cases, lowest confidence first; the most informative is the last."""
    cases = [make_case(number, confidence=0.1 + number / 10, interest=number / 10) for number in range(3)]
    store.add(cases)
    return [case.case_id for case in cases]


def at_hand(at: AppTest) -> str:
    (button,) = [button for button in at.button if button.label == "Correct"]
    return str(button.key).removeprefix("verdict-correct-")


def claimed(store: Store) -> list[str]:
    """The cases that somebody is at."""
    with store.session() as session:
        found = session.scalars(select(Case.case_id).join(Claim, Claim.case_key == Case.id).order_by(Case.id))
        return list(found)


def test_two_sessions_get_different_cases(store: Store, three: list[str]) -> None:
    """Who comes second gets the second case, and the list tells where the first is."""
    first = opened(QUEUE)
    second = opened(QUEUE)
    assert [at_hand(first), at_hand(second)] == three[:2]
    assert claimed(store) == three[:2]
    verdicts = list(second.dataframe[0].value["Verdict"])
    assert [" is at it" in verdict for verdict in verdicts] == [True, False, False]


def test_verdict_skips_what_another_is_at(store: Store, three: list[str]) -> None:
    """After a verdict comes the next case that nobody is at, and the labelled one is let go."""
    first = opened(QUEUE)
    opened(QUEUE)
    press(first, f"verdict-wrong-{three[0]}")
    assert at_hand(first) == three[2]
    assert claimed(store) == three[1:]


def test_next_skips_what_another_is_at(store: Store, three: list[str]) -> None:
    """Next passes over the case of another session, and lets go of the one before."""
    first = opened(QUEUE)
    opened(QUEUE)
    assert at_hand(press(first, "next")) == three[2]
    assert claimed(store) == three[1:]


def test_others_at_every_case(store: Store, three: list[str]) -> None:
    """Who finds every case taken is told so, and gets one when it is free."""
    tokens = [f"tab-{number}" for number in range(3)]
    for case_id, token in zip(three, tokens, strict=True):
        claims.claim(store, case_id, "Ana", token)
    late = opened(QUEUE)
    assert "Others are at the rest" in sent(late)
    claims.release(store, tokens[1])
    assert at_hand(press(late, "again")) == three[1]


@pytest.mark.parametrize("page", [QUEUE, CASE])
def test_who_is_at_a_case(store: Store, three: list[str], page: str) -> None:
    """A case that is opened by its link says who is at it, and can be labelled all the same."""
    claims.claim(store, three[0], "Ana", "tab-1")
    at = opened(page, case=three[0])
    assert "Ana is looking at this case" in sent(at)
    press(at, f"verdict-correct-{three[0]}")
    with store.session() as session:
        assert session.scalar(select(Case.verdict).where(Case.case_id == three[0])) == "correct"


@pytest.mark.parametrize("page", [QUEUE, CASE])
def test_who_labelled_a_case(store: Store, three: list[str], page: str) -> None:
    """A case that another labelled says who did, how and when; once it is open again it says nothing."""
    store.review(three[0], "wrong", "Ben")
    assert re.search(r"Ben labelled this case “Wrong” \d+ s ago\.", shown(opened(page, case=three[0])))
    store.review(three[0], "undone", "Ben")
    assert "labelled this case" not in shown(opened(page, case=three[0]))


def test_own_verdict_says_nothing(store: Store, three: list[str]) -> None:
    """Nobody is told of the verdict that they gave in this session."""
    at = press(opened(CASE, case=three[0]), f"verdict-wrong-{three[0]}")
    with store.session() as session:
        assert session.scalar(select(Case.verdict).where(Case.case_id == three[0])) == "wrong"
    assert "labelled this case" not in shown(at)


def test_claim_has_the_name_that_was_given_later(store: Store, three: list[str]) -> None:
    """Who says their name after the queue was opened is called by it."""
    at = opened(QUEUE)
    at.text_input(key="reviewer").input("Ana")
    ran(at)
    assert opened(QUEUE).dataframe[0].value["Verdict"][0] == "Open, Ana is at it"


def test_own_case_says_nothing(store: Store, three: list[str]) -> None:
    """Nobody is told of themselves."""
    assert "is looking at this case" not in sent(opened(QUEUE))


def test_next_picture_is_sent_ahead(store: Store, three: list[str]) -> None:
    """With a case comes, out of sight, the very picture that the next case will show."""
    at = opened(QUEUE)
    shown_now, ahead = (found.proto.imgs[0].url for found in at.get("image"))
    assert ahead != shown_now
    press(at, f"verdict-wrong-{three[0]}")
    assert at.get("image")[0].proto.imgs[0].url == ahead


def test_settings_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings are read once while nothing changes, and anew after the environment or `.env` did."""
    read = []
    monkeypatch.setattr(current, "load_settings", lambda: read.append(1) or load_settings())
    monkeypatch.chdir(tmp_path)
    assert [current.settings().read_only, current.settings().read_only] == [False, False]
    assert len(read) == 1
    Path(".env").write_text("FASTRM_READ_ONLY=true\n", encoding="utf-8")
    assert current.settings().read_only
    monkeypatch.setenv("FASTRM_READ_ONLY", "false")
    assert not current.settings().read_only


def test_leaving_the_queue_lets_go(store: Store, three: list[str]) -> None:
    """On another page of the dashboard one is at no case."""
    at = opened(QUEUE)
    assert claimed(store) == three[:1]
    at.switch_page("screens/overview.py")
    ran(at)
    assert claimed(store) == []


def test_read_only_claims_nothing(store: Store, three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot label takes no case away from others."""
    monkeypatch.setenv("FASTRM_READ_ONLY", "true")
    opened(QUEUE)
    assert claimed(store) == []


def test_claim_that_cannot_be_written(store: Store, three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where claims fail a verdict is given as ever, and the queue goes on."""

    def fail(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(claims, "claim", fail)
    monkeypatch.setattr(claims, "release", fail)
    at = opened(QUEUE)
    assert at_hand(at) == three[0]
    press(at, f"verdict-wrong-{three[0]}")
    assert at_hand(at) == three[1]
    with store.session() as session:
        assert session.scalar(select(Case.verdict).where(Case.case_id == three[0])) == "wrong"


def tick(at: AppTest, table: str, row: int) -> AppTest:
    """What the browser sends when a row of a list is ticked."""
    message = at._tree.get_widget_states()
    message.widgets.add(id=table, string_value=json.dumps({"selection": {"rows": [row], "columns": [], "cells": []}}))
    at._run(message)
    assert [error.value for error in at.exception] == []
    return at


def test_list_that_answers_late_leads_nowhere(store: Store, three: list[str]) -> None:
    """The row that a list was drawn with does not bring back a case that has just been labelled; another row opens."""
    at = opened(QUEUE)
    before = at.dataframe[0].proto.id
    press(at, f"verdict-wrong-{three[0]}")
    assert at_hand(tick(at, before, 0)) == three[1]
    assert at_hand(tick(at, at.dataframe[0].proto.id, 1)) == three[2]


def test_verdict_while_the_case_changes(store: Store, three: list[str]) -> None:
    """A verdict for a case that the reviewer has just left is not stored, and the reviewer is told."""
    at = opened(QUEUE)
    at.session_state["desk"].case_id = three[1]  # as Next does; the page still shows the case before
    press(at, f"verdict-wrong-{three[0]}")
    assert "“Wrong” came while the case was changing, so it was not stored" in shown(at)
    assert at_hand(at) == three[1]
    with store.session() as session:
        assert session.scalars(select(Case.verdict)).all() == [None, None, None]


def test_queue_returns_with_its_database(store: Store, three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue whose database fails keeps its heading, offers to try again, and goes on once the database is back."""
    at = opened(QUEUE)

    def fail(*_: object, **__: object) -> None:
        raise StoreError("the database is away")

    with monkeypatch.context() as away:
        away.setattr(queries, "case", fail)
        away.setattr(queries, "step", fail)
        press(at, "next")
        assert shown(at).count("<h1>Review queue</h1>") == 1
        assert "the database is away" in shown(at)
        (again,) = [button for button in at.button if button.label == "Try again"]
        again.click()
        assert "the database is away" in shown(ran(at))
    (again,) = [button for button in at.button if button.label == "Try again"]
    again.click()
    assert at_hand(ran(at)) == three[0]
    assert "the database is away" not in shown(at)
    assert at_hand(press(at, "next")) == three[1]


def test_most_informative_first(store: Store, three: list[str]) -> None:
    """That order begins with the case whose verdict would teach most."""
    at = opened(QUEUE)
    at.selectbox(key="order").select("interest")
    assert at_hand(ran(at)) == three[2]
