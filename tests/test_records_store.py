"""The store: what is written is read back, by many at once, and what goes wrong is one sentence without a password."""

import sqlite3
import subprocess
import sys
import threading
import traceback
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import event, func, inspect, select
from sqlalchemy.exc import IntegrityError, OperationalError

from fastrm_monitor.errors import FastRMError, MissingExtraError, StoreError
from fastrm_monitor.records import engine
from fastrm_monitor.records.engine import StoreAwayError, one_sentence, read_url, safe_url
from fastrm_monitor.records.models import VERDICTS, Case, CasePicture, Review, Traffic
from fastrm_monitor.records.store import ReviewConflict, Store
from tests.forking import forks, in_child

MINUTE = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
PASSWORD = "hunter2/%41 x"


def case(case_id=None, **changes):
    values = {
        "case_id": case_id or str(uuid.uuid4()),
        "created_at": MINUTE,
        "request_id": "r",
        "server": "host:1",
        "model": "llava",
        "question": "what colour?",
        "answer": "red",
        "calibrated": False,
        "features": {"map_entropy": 0.5},
        "flagged": True,
        "sampled": False,
        "sample_rate": 0.05,
        "proxy_version": "p",
        "library_version": "l",
        "scoring_seconds": 0.001,
        "pictures": [CasePicture(position=0, rows=1, columns=1, relevance=b"\0\0", region=[0.0, 0.0, 1.0, 1.0])],
    }
    return Case(**{**values, **changes})


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def store(any_store_url):
    with Store(any_store_url) as opened:
        yield opened


@pytest.fixture
def sqlite_store(url):
    """For what SQLite alone does."""
    with Store(url) as opened:
        yield opened


def count(store, table):
    with store.session() as session:
        return session.scalar(select(func.count()).select_from(table))


def message(caught):
    """Every line that a traceback would print of an error and its causes, without the source of this file."""
    whole = traceback.TracebackException.from_exception(caught.value)
    lines, left = [], [whole]
    while left:
        one = left.pop()
        lines += one.format_exception_only()
        shown = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        left += [shown] if shown else []
    return "".join(lines)


# --- opening ---------------------------------------------------------------------------------------------------------


def test_an_option_without_a_meaning_is_one_sentence(tmp_path):
    """A URL whose option SQLite cannot read is refused at once, by a sentence."""
    with pytest.raises(StoreError, match=r"An option behind the \? of the store sqlite:///.* has no such value"):
        Store(f"sqlite:///{tmp_path / 'a.db'}?timeout=x")


def test_sqlite_is_set_up_for_many(sqlite_store):
    """Write-ahead log, five seconds of patience, and foreign keys, on every connection."""
    with sqlite_store.session() as session:
        read = {
            name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "busy_timeout", "foreign_keys")
        }
    assert read == {"journal_mode": "wal", "busy_timeout": 5000, "foreign_keys": 1}


def test_reopening_keeps_what_was_written(url):
    """A second opening finds the cases of the first."""
    with Store(url) as first:
        first.add([case("a")])
    with Store(url) as second:
        assert count(second, Case) == 1


def test_relative_path_is_of_the_opening(tmp_path, monkeypatch):
    """A process that changes its folder later still writes to the same file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with Store("sqlite:///here.db") as store:
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.add([case()])
        assert count(store, Case) == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "The store's URL cannot be read; it looks like"),
        ("not a url", "The store's URL cannot be read; it looks like"),
        ("postgresql://user:hunter2/%41@host:port/db", "The store's URL cannot be read; it looks like"),
        ("mysql://user:hunter2@host/db", "A store cannot be of the kind 'mysql'; use"),
        ("postgresql+asyncpg://user:hunter2@host/db", "A store cannot be of the kind 'postgresql+asyncpg'; use"),
        ("sqlite://store.db", "The store's URL has too few slashes for a file"),
        ("sqlite://user:hunter2@host/store.db", "The store's URL has too few slashes for a file"),
        ("sqlite://", "A store in memory would be lost at once; name a file"),
        ("sqlite:///:memory:", "A store in memory would be lost at once; name a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "A store in memory would be lost at once; name a file"),
        ("sqlite:////no/such/folder/store.db", "The folder of the store sqlite:////no/such/folder/store.db does not"),
        ("sqlite:///store.db?mode=ro", "The store's URL has the option 'mode', which SQLite knows only in the form"),
    ],
)
def test_url_that_cannot_be_used(text, expected):
    """Each is one sentence that says what to do, without the password and without a chain of causes."""
    with pytest.raises(StoreError) as caught:
        Store(text)
    assert str(caught.value).startswith(expected)
    assert str(caught.value).count("\n") == 0
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "hunter2" not in message(caught)


def test_folder_is_no_store(tmp_path):
    """A folder in place of the file is said to be one."""
    with pytest.raises(StoreError, match="is a folder; name a file in it"):
        Store(f"sqlite:///{tmp_path}")


def test_other_file_is_no_store(tmp_path):
    """A file that is not SQLite's is refused and left as it is."""
    path = tmp_path / "notes.txt"
    path.write_text("these are notes, not a database " * 40)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is not an SQLite database; name another file") as caught:
        Store(f"sqlite:///{path}")
    assert caught.value.__suppress_context__
    assert path.read_bytes() == before


def test_file_that_cannot_be_opened():
    """SQLite's refusal to open a file names what to check; its own URI form is not looked into by us."""
    with pytest.raises(StoreError, match="cannot be opened; check the permissions of the file and its folder"):
        Store("sqlite:///file:/no/such/folder/store.db?uri=true")


def test_missing_driver_names_the_extra(monkeypatch):
    """PostgreSQL without psycopg says what to install."""
    for name in [name for name in sys.modules if name.split(".")[0] == "psycopg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastrm-monitor\[postgres\]'") as caught:
        Store("postgresql://user:hunter2@127.0.0.1:1/db")
    assert "hunter2" not in message(caught)


def test_unreachable_server():
    """A server that does not answer is one sentence, and the password is in none of its forms in it."""
    pytest.importorskip("psycopg")
    with pytest.raises(
        StoreError, match=r"The store postgresql\+psycopg://user:\*\*\*@127.0.0.1:1/db cannot be opened"
    ):
        Store("postgresql://user:hunter2%2F%2541%20x@127.0.0.1:1/db")
    with pytest.raises(StoreError) as caught:
        Store("postgresql://127.0.0.1:1/db?user=u&password=hunter2%2F%2541%20x")
    for form in (PASSWORD, "hunter2", "%2F"):
        assert form not in message(caught)


def test_shown_url_hides_every_secret():
    """Passwords are hidden before the host and in the query; the rest stays readable."""
    shown = safe_url(read_url("postgresql://u:hunter2@h/db?sslpassword=hunter2&application_name=fastrm"))
    assert shown == "postgresql+psycopg://u:***@h/db?application_name=fastrm&sslpassword=hidden"


@pytest.mark.parametrize("form", [PASSWORD, "hunter2%2F%2541%20x", "hunter2%2F%2541+x"])
def test_driver_that_tells_the_password(form):
    """A driver's message with the password in it, quoted or not, is not repeated."""
    url = read_url("postgresql://u:hunter2%2F%2541%20x@h/db")
    with pytest.raises(StoreError) as caught, one_sentence(url, "opened"):
        raise IntegrityError("SELECT 1", {}, Exception(f"bad dsn {form}\nmore"))
    assert str(caught.value) == ("The store postgresql+psycopg://u:***@h/db cannot be opened: the database refused.")
    assert "hunter2" not in message(caught)


def test_safe_url(sqlite_store, url):
    """`safe_url` of a store without a password is its URL."""
    assert sqlite_store.safe_url == url


def test_closed_store_says_so(url):
    """Closing twice is harmless; using it afterwards is one sentence."""
    store = Store(url)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="is closed; open it again"):
        store.add([case()])


def test_a_store_for_reading_is_none_for_a_server(url):
    """`mode=ro` opens what is there, and writes nothing; a server, which writes, is told at once."""
    with Store(url) as store:
        store.add([case("a")])
    reading = f"sqlite:///file:{url.removeprefix('sqlite:///')}?mode=ro&uri=true"
    with Store(reading) as store:
        assert count(store, Case) == 1
        with pytest.raises(StoreError, match="cannot be written: attempt to write a readonly database"):
            store.add([case("b")])
    with pytest.raises(StoreError, match="is opened for reading only: leave out mode and immutable"):
        Store(reading, may_be_away=True)


def test_a_version_without_its_tables(url):
    """A database whose tables are gone and whose version is not is refused in one sentence, and left as it is."""
    Store(url).close()
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute("DROP TABLE case_pictures")
    with pytest.raises(StoreError, match="lacks tables of it: restore it from a backup, or name an empty database"):
        Store(url)


def test_a_database_that_is_away_is_connected_to_later(url, monkeypatch):
    """A server's store of a database that is locked while it starts raises nothing, and works when it is free."""
    monkeypatch.setattr(engine, "_BUSY_MILLISECONDS", 50)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        store = Store(url, may_be_away=True)
        assert not store.reached
        with pytest.raises(StoreAwayError, match="database is locked"):
            store.add([case("a")], 0.05)
        other.execute("ROLLBACK")
    assert store.add([case("a")]) == 1
    assert store.reached
    store.close()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('connection failed: FATAL:  password authentication failed for user "u"', StoreError),
        ('connection failed: FATAL:  database "db" does not exist', StoreError),
        ("connection failed: Connection refused", StoreAwayError),
        ("connection failed: FATAL:  the database system is starting up", StoreAwayError),
        ("consuming input failed: server closed the connection unexpectedly", StoreAwayError),
        ("database is locked", StoreAwayError),
        ("database or disk is full", StoreAwayError),
    ],
)
def test_away_or_mistaken(said, kind):
    """What a mistake in the set-up makes a database say is told from what passes by itself."""
    with pytest.raises(StoreError) as caught, one_sentence(read_url("postgresql://u@h/db"), "opened"):
        raise OperationalError("SELECT 1", {}, Exception(said))
    assert type(caught.value) is kind


def test_a_file_that_is_deleted_is_made_anew(sqlite_store, url):
    """When somebody deletes the SQLite file, the next case goes to a new one that has the schema."""
    path = Path(url.removeprefix("sqlite:///"))
    sqlite_store.add([case("a")])
    for file in path.parent.glob("store.db*"):
        file.unlink()
    sqlite_store.add([case("b")])
    with Store(url) as again, again.session() as session:
        assert session.scalars(select(Case.case_id)).all() == ["b"]


def test_a_file_that_is_deleted_while_it_is_written(sqlite_store, url):
    """A case that went to a file which is no longer there is not said to be stored."""
    path = Path(url.removeprefix("sqlite:///"))

    @event.listens_for(sqlite_store._engine, "commit")
    def delete(connection):
        path.unlink(missing_ok=True)

    with pytest.raises(StoreAwayError, match="was deleted while it was written"):
        sqlite_store.add([case("a")])


# --- cases -----------------------------------------------------------------------------------------------------------


def test_case_comes_back(store):
    """Every column of a case and of its pictures is read as it was written, times in UTC."""
    east = datetime(2026, 1, 2, 8, 4, tzinfo=timezone(timedelta(hours=5)))
    store.add([case("a", created_at=east, confidence=0.25, user_key="u", trace_id="t" * 32)])
    with store.session() as session:
        read = session.scalars(select(Case)).one()
        pictures = list(read.pictures)
    assert (read.case_id, read.created_at, read.created_at.tzinfo) == ("a", MINUTE, UTC)
    assert (read.confidence, read.features, read.user_key) == (0.25, {"map_entropy": 0.5}, "u")
    assert (read.verdict, read.version) == (None, 0)
    assert [(p.position, p.relevance, p.region) for p in pictures] == [(0, b"\0\0", [0.0, 0.0, 1.0, 1.0])]


def test_adding_again_changes_nothing(store):
    """A case that is there already is no error and is not overwritten, within a batch and between batches."""
    once = case("a")
    store.add([once, case("b")])
    store.add([once])
    store.add([case("a", answer="blue"), case("c"), case("c", answer="blue")])
    with store.session() as session:
        read = session.execute(select(Case.case_id, Case.answer).order_by(Case.case_id)).all()
    assert [tuple(row) for row in read] == [("a", "red"), ("b", "red"), ("c", "red")]
    assert count(store, CasePicture) == 3
    store.add([])


def test_adding_says_how_many_are_new(store):
    """The number of cases that were not there is returned, and an added case is not bound to a session."""
    one = case("a")
    assert store.add([one, case("b")]) == 2
    assert store.add([one, case("c")]) == 1
    assert inspect(one).transient


def test_batch_is_all_or_none(store):
    """When one case cannot be written, none of its batch is, and the next batch is written all the same."""
    with pytest.raises(StoreError, match="cannot be written"):
        store.add([case("a"), case("b", answer=None)])
    assert count(store, Case) == 0
    store.add([case("a")])
    assert count(store, Case) == 1


def test_errors_do_not_quote_what_users_wrote(store):
    """A failed write names the column, never the question."""
    with pytest.raises(StoreError) as caught:
        store.add([case("b", question="my secret illness", answer=None)])
    assert "answer" in str(caught.value)
    assert "illness" not in message(caught)
    assert "illness" not in str(caught.value.__context__)  # which some error reporters show all the same


def test_deleted_case_takes_its_rows_along(store):
    """Deleting a case in SQL deletes its pictures and reviews: foreign keys are on."""
    store.add([case("a")])
    store.review("a", "wrong", "eve")
    with store.session(write=True) as session:
        session.connection().exec_driver_sql("DELETE FROM cases")
    assert (count(store, CasePicture), count(store, Review)) == (0, 0)


# --- traffic ---------------------------------------------------------------------------------------------------------


def test_traffic_is_the_largest_count(store):
    """A count replaces a smaller one of the same server, minute, name and reason, and no larger one."""
    store.add_traffic("a", [(MINUTE, "seen", "", 2.0), (MINUTE, "skipped", "no_image", 1.0)])
    store.add_traffic("a", [(MINUTE, "seen", "", 5.5)])
    store.add_traffic("a", [(MINUTE, "seen", "", 2.0), (MINUTE, "skipped", "no_image", 1.0)])
    store.add_traffic("a", [(MINUTE + timedelta(minutes=1), "seen", "", 1.0)])
    store.add_traffic("b", [(MINUTE, "seen", "", 10.0)])
    store.add_traffic("b", [])
    assert store.totals() == {("seen", ""): 16.5, ("skipped", "no_image"): 1.0}
    with store.session() as session:
        keys = (Traffic.server, Traffic.minute, Traffic.name)
        rows = session.execute(select(*keys, Traffic.value).order_by(*keys)).all()
    assert [tuple(row) for row in rows] == [
        ("a", MINUTE, "seen", 5.5),
        ("a", MINUTE, "skipped", 1.0),
        ("a", MINUTE + timedelta(minutes=1), "seen", 1.0),
        ("b", MINUTE, "seen", 10.0),
    ]


def test_traffic_bears_any_reason(store):
    """A reason that is too long or holds what no database takes is cut and cleaned, and none of it is lost."""
    store.add_traffic("s" * 300, [(MINUTE, "failed", "x" * 64 + tail, 1.0) for tail in ("a", "b", "\x00\ud800")])
    assert store.totals() == {("failed", "x" * 64): 3.0}


# --- reviews ---------------------------------------------------------------------------------------------------------


def test_reviews_are_appended(store):
    """The newest review decides the verdict, "undone" reopens the case, and all reviews stay."""
    store.add([case("a")])
    assert store.review("a", "wrong", "eve", note="it is blue", tags=["colour"]) == 1
    assert store.review("a", "correct", "bob", expected_version=1) == 2
    with store.session() as session:
        assert session.execute(select(Case.verdict, Case.version)).one() == ("correct", 2)
    assert store.review("a", "undone", "bob", expected_version=2) == 3
    with store.session() as session:
        assert session.execute(select(Case.verdict, Case.version)).one() == (None, 3)
        reviews = session.scalars(select(Review).order_by(Review.id)).all()
    assert [(r.reviewer, r.verdict, r.note, r.tags) for r in reviews] == [
        ("eve", "wrong", "it is blue", ["colour"]),
        ("bob", "correct", "", []),
        ("bob", "undone", "", []),
    ]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_every_verdict_is_taken(store, verdict):
    """Each of `VERDICTS` can be given."""
    store.add([case("a")])
    store.review("a", verdict, "eve")
    with store.session() as session:
        assert session.scalar(select(Case.verdict)) == (None if verdict == "undone" else verdict)


def test_second_reviewer_is_told(store):
    """Whoever saw an older version is told that another was first, and changes nothing."""
    store.add([case("a")])
    store.review("a", "wrong", "eve", expected_version=0)
    with pytest.raises(ReviewConflict, match="Another reviewer was first at case a: load it again"):
        store.review("a", "correct", "bob", expected_version=0)
    with store.session() as session:
        assert session.execute(select(Case.verdict, Case.version)).one() == ("wrong", 1)
    assert count(store, Review) == 1


def test_review_of_nothing(store):
    """An unknown case or verdict is one sentence, and nothing is written."""
    store.add([case("a")])
    with pytest.raises(StoreError, match="There is no case 'b' in the store"):
        store.review("b", "wrong", "eve")
    with pytest.raises(StoreError, match="There is no verdict 'maybe'; choose one of correct, wrong, not_grounded"):
        store.review("a", "maybe", "eve")
    assert count(store, Review) == 0


@pytest.mark.parametrize(
    ("hostile", "stored"),
    [
        ("'); DROP TABLE reviews; --", "'); DROP TABLE reviews; --"),
        ("a\x00b", "ab"),
        ("\u202egnorw\u202c", "\u202egnorw\u202c"),
        ("👩🏽‍🚒", "👩🏽‍🚒"),
        ("\ud83d", "\ufffd"),
    ],
)
def test_reviewers_may_write_anything(store, hostile, stored):
    """SQL, right-to-left marks and emoji are kept; NUL and lone surrogates do not break the store."""
    store.add([case("a")])
    store.review("a", "wrong", hostile, note=hostile, tags=[hostile])
    with store.session() as session:
        review = session.scalars(select(Review)).one()
    assert (review.reviewer, review.note, review.tags) == (stored, stored, [stored])


# --- many at once ----------------------------------------------------------------------------------------------------


def in_threads(number, work):
    """Run `work(i)` in that many threads at once; every exception is raised here."""
    start, errors = threading.Barrier(number), []

    def run(i):
        start.wait()
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_write_side_by_side(store):
    """Eight threads writing cases and counts and reading lose nothing and meet no locked database."""

    def work(i):
        for k in range(8):
            store.add([case(f"{i}-{k}"), case(f"all-{k}")])
            store.add_traffic(f"s{i}", [(MINUTE, "seen", "", k + 1.0)])
            store.totals()

    in_threads(8, work)
    assert count(store, Case) == 8 * 8 + 8
    assert store.totals() == {("seen", ""): 64.0}


def test_reader_does_not_hold_up_the_writer(sqlite_store):
    """While a reader is in the middle of reading, a case is written at once, and the reader's view does not move."""
    sqlite_store.add([case()])
    with sqlite_store.session() as session:
        assert session.scalar(select(func.count()).select_from(Case)) == 1
        in_threads(1, lambda i: sqlite_store.add([case()]))
        assert session.scalar(select(func.count()).select_from(Case)) == 1
    assert count(sqlite_store, Case) == 2


def test_one_of_many_reviewers_is_first(store):
    """Of six reviewers who saw the same version exactly one is heard."""
    store.add([case("a")])
    outcome = []

    def work(i):
        try:
            outcome.append(store.review("a", "wrong", f"reviewer {i}", expected_version=0))
        except ReviewConflict:
            outcome.append("conflict")

    in_threads(6, work)
    assert sorted(map(str, outcome)) == ["1"] + ["conflict"] * 5
    assert count(store, Review) == 1


def test_threads_open_the_same_empty_database(url):
    """Six threads that open an empty database at once all succeed."""

    def work(i):
        with Store(url) as store:
            store.add([case(f"{i}")])

    in_threads(6, work)
    with Store(url) as store:
        assert count(store, Case) == 6


def test_processes_open_the_same_empty_database(url, tmp_path):
    """Four processes that open an empty database at the same moment all succeed, and write to it."""
    script = """
import sys, time, pathlib
from datetime import datetime, UTC
from fastrm_monitor.records.store import Store
url, name, folder = sys.argv[1:]
(pathlib.Path(folder) / name).touch()
deadline = time.monotonic() + 60
while not (pathlib.Path(folder) / "go").exists() and time.monotonic() < deadline:
    time.sleep(0.001)
with Store(url) as store:
    for count in range(1, 6):
        store.add_traffic(name, [(datetime(2026, 1, 1, tzinfo=UTC), "seen", "", float(count))])
"""
    ready = tmp_path / "ready"
    ready.mkdir()
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, url, f"child{i}", str(ready)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    while len(list(ready.iterdir())) < 4 and all(child.poll() is None for child in children):
        threading.Event().wait(0.01)
    (ready / "go").touch()
    assert [(child.communicate(timeout=60)[1], child.returncode) for child in children] == [("", 0)] * 4
    with Store(url) as store:
        assert store.totals() == {("seen", ""): 20.0}


@forks
def test_fork_waits_for_a_transaction_of_another_thread(store):
    """A child forked while another thread is writing may write; a copied transaction would lock it out for good."""
    inside, leave = threading.Event(), threading.Event()

    def write():
        with store.session(write=True) as session:
            session.add(case("parent"))
            session.flush()
            inside.set()
            leave.wait(0.3)

    thread = threading.Thread(target=write)
    thread.start()
    inside.wait()
    answer = in_child(lambda: store.add([case("child")]))
    thread.join()
    assert answer == "1"
    assert count(store, Case) == 2


@forks
def test_fork_inside_a_session_does_not_wait_for_itself(store):
    """A thread that forks while it is reading goes on at once, in the parent and in the child."""
    with store.session() as session:
        session.scalar(select(func.count()).select_from(Case))
        began = datetime.now(UTC)
        answer = in_child(lambda: "alive")
        seconds = (datetime.now(UTC) - began).total_seconds()
    assert answer == "'alive'"
    assert seconds < 1.5
    store.add([case()])
    assert count(store, Case) == 1


def test_locked_database_is_one_sentence(sqlite_store, url, monkeypatch):
    """A database that somebody else keeps locked is a StoreError after the patience, not a hang."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        @event.listens_for(sqlite_store._engine, "connect")
        def hurry(connection, record):
            connection.execute("PRAGMA busy_timeout = 50")

        with pytest.raises(FastRMError, match="cannot be written: database is locked") as caught:
            sqlite_store.add([case()])
        assert caught.value.__suppress_context__
        other.execute("ROLLBACK")
    sqlite_store.add([case("a")])
    assert count(sqlite_store, Case) == 1
