"""Claims: one session at a case, others are told who, and nothing is held for ever. On SQLite and on PostgreSQL."""

import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from fastrm_monitor.errors import StoreError
from fastrm_monitor.records import claims
from fastrm_monitor.records.models import Case, Claim
from fastrm_monitor.records.store import Store

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(seconds=claims.SECONDS)


@pytest.fixture
def store(any_store_url, make_case):
    """A store with the cases "a", "b" and "c"."""
    with Store(any_store_url) as opened:
        opened.add([make_case(number, case_id=name, pictures=[]) for number, name in enumerate("abc")])
        yield opened


def free(store, session, now=NOW):
    """The cases that nobody else is at."""
    with store.session() as opened:
        return list(opened.scalars(select(Case.case_id).where(claims.unclaimed(session, now)).order_by(Case.case_id)))


def held(store, session, now=NOW):
    with store.session() as opened:
        return claims.holders(opened, ["a", "b", "c"], session, now)


def test_first_come_first_served(store):
    """The first session has the case; the second is told by whom, and gets another one."""
    assert claims.claim(store, "a", "Ana", "tab-1", NOW) is None
    assert claims.claim(store, "a", "Ben", "tab-2", NOW) == "Ana"
    assert claims.claim(store, "b", "Ben", "tab-2", NOW) is None
    assert held(store, "tab-2") == {"a": "Ana"}
    assert held(store, None) == {"a": "Ana", "b": "Ben"}
    assert (free(store, "tab-1"), free(store, "tab-2"), free(store, "tab-3")) == (["a", "c"], ["b", "c"], ["c"])


def test_two_tabs_of_one_name(store):
    """A name is not a session: the second tab of a reviewer does not get the case of the first."""
    assert claims.claim(store, "a", "Ana", "tab-1", NOW) is None
    assert claims.claim(store, "a", "Ana", "tab-2", NOW) == "Ana"


def test_going_on_lets_go(store):
    """A session has one case at a time: with the next one the last is free."""
    claims.claim(store, "a", "Ana", "tab-1", NOW)
    claims.claim(store, "b", "Ana", "tab-1", NOW)
    assert free(store, "tab-2") == ["a", "c"]


def test_session_that_is_refused_lets_go_too(store):
    """Whoever opens a case that another is at has left the one before."""
    claims.claim(store, "a", "Ana", "tab-1", NOW)
    claims.claim(store, "b", "Ben", "tab-2", NOW)
    assert claims.claim(store, "a", "Ben", "tab-2", NOW) == "Ana"
    assert free(store, "tab-3") == ["b", "c"]


def test_leaving_lets_go(store):
    """A session that leaves has nothing, and others keep theirs."""
    claims.claim(store, "a", "Ana", "tab-1", NOW)
    claims.claim(store, "b", "Ben", "tab-2", NOW)
    claims.release(store, "tab-1")
    assert held(store, None) == {"b": "Ben"}


def test_claim_ends(store):
    """Without a sign of life a claim ends on the second, and whoever comes next takes the case over."""
    claims.claim(store, "a", "Ana", "tab-1", NOW)
    before = LATER - timedelta(seconds=1)
    assert claims.claim(store, "a", "Ben", "tab-2", before) == "Ana"
    assert free(store, "tab-2", before) == ["b", "c"]
    assert free(store, "tab-2", LATER) == ["a", "b", "c"]
    assert claims.claim(store, "a", "Ben", "tab-2", LATER) is None
    assert claims.claim(store, "a", "Ana", "tab-1", LATER) == "Ben"


def test_sign_of_life(store):
    """A session that claims its case again has it for the whole time from then on."""
    claims.claim(store, "a", "Ana", "tab-1", NOW)
    assert claims.claim(store, "a", "Ana", "tab-1", NOW + timedelta(seconds=200)) is None
    assert claims.claim(store, "a", "Ben", "tab-2", LATER + timedelta(seconds=199)) == "Ana"


def test_claim_of_nothing(store):
    """A case that was purged is nobody's, and a claim goes with its case."""
    assert claims.claim(store, "gone", "Ana", "tab-1", NOW) is None
    claims.claim(store, "a", "Ana", "tab-1", NOW)
    with store.session(write=True) as opened:
        opened.delete(opened.scalars(select(Case).where(Case.case_id == "a")).one())
    with store.session() as opened:
        assert opened.scalar(select(func.count()).select_from(Claim)) == 0


def test_claim_does_not_stop_a_verdict(store):
    """A claim is a courtesy: who has none may label the case all the same."""
    claims.claim(store, "a", "Ana", "tab-1", NOW)
    assert store.review("a", "wrong", "Ben", expected_version=0) == 1


def test_many_at_once(store):
    """Of many sessions that reach for one case at the same moment exactly one gets it."""
    barrier = threading.Barrier(8)
    answers = []

    def reach(number):
        barrier.wait(20)
        answers.append(claims.claim(store, "a", f"reviewer {number}", f"tab-{number}", NOW))

    threads = [threading.Thread(target=reach, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answers) == 8
    assert answers.count(None) == 1
    assert {answer for answer in answers if answer} == {next(iter(held(store, None).values()))}


def test_store_that_is_busy(store_url, make_case):
    """A claim does not wait for a writer that holds the database: after a moment it gives up with a sentence."""
    with Store(store_url) as store, closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        store.add([make_case(0, case_id="a")])
        other.execute("BEGIN IMMEDIATE")
        begin = datetime.now(UTC)
        with pytest.raises(StoreError, match="cannot be written"):
            claims.claim(store, "a", "Ana", "tab-1")
        assert datetime.now(UTC) - begin < timedelta(seconds=4)
