"""`db check` and `db purge` as their user types them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from fastrm_monitor import cli
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records.engine import read_url
from fastrm_monitor.records.frames import HEADER, encode_case
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.spool import Spool
from fastrm_monitor.records.store import Store

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in an empty folder, with an answer to its question; returns exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRM_STORE", raising=False)

    def run(*words: str, answer: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, list(words), input=answer)
        if isinstance(done.exception, FastRMError):
            return 2, str(done.exception)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, re.sub(r"\s*\n", "\n", done.output)

    return run


@pytest.fixture
def url(any_store_url: str, make_case: Callable[..., Case]) -> str:
    """A store with cases of 0, 10 and 20 days, the first two of a user."""
    with Store(any_store_url) as store:
        store.add(
            [
                make_case(
                    days, created_at=datetime.now(UTC) - timedelta(days=days), user_key="ann" if days < 20 else None
                )
                for days in (0, 10, 20)
            ]
        )
    return any_store_url


def left(url: str) -> int:
    with Store(url) as store, store.session() as session:
        return session.scalar(select(func.count()).select_from(Case)) or 0


def test_check_of_a_whole_store(run: Run, url: str) -> None:
    """A store in order: exit code 0, its schema, rows, size and times are there."""
    code, said = run("db", "check", "--store", url)
    assert code == 0, said
    assert said.endswith("OK\n")
    for words in ("cases 3, case_pictures 3", "which is this version's", "every picture, review and claim", "MiB"):
        assert words in said


def test_check_changes_nothing(run: Run, store_url: str, tmp_path: Path) -> None:
    """A store that is not there is not made; one without a schema gets none, and the command to run is named."""
    assert run("db", "check", "--store", store_url)[0] == 1
    assert list(tmp_path.iterdir()) == []
    path = Path(store_url.removeprefix("sqlite:///"))
    sqlite3.connect(path).close()
    code, said = run("db", "check", "--store", store_url)
    assert code == 1
    assert "db upgrade" in said
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_check_finds_orphans_and_lacking_indices(run: Run, store_url: str, make_case: Callable[..., Case]) -> None:
    """A picture without its case and an index that is gone are said, with exit code 1."""
    with Store(store_url) as store:
        store.add([make_case(1)])
    with closing(sqlite3.connect(store_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("DELETE FROM cases")
        connection.execute("DROP INDEX ix_cases_created")
        connection.commit()
    code, said = run("db", "check", "--store", store_url)
    assert code == 1
    assert "1 rows of case_pictures have no case" in said
    assert "ix_cases_created" in said


def test_check_of_a_damaged_file(run: Run, store_url: str, make_case: Callable[..., Case]) -> None:
    """A file with a page of noise in it is not OK, and no traceback tells so."""
    with Store(store_url) as store:
        store.add([make_case(number) for number in range(40)])
    path = Path(store_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8192] = b"\xa5" * 8192
    path.write_bytes(data)
    code, said = run("db", "check", "--store", store_url)
    assert code == 1
    assert said.endswith("Not OK: see the red lines.\n")


def test_check_tells_of_the_spool(run: Run, store_url: str, make_case: Callable[..., Case]) -> None:
    """How many cases wait on disk, and since when; looking takes none of them."""
    Store(store_url).close()
    spool = Spool(Path(f"{store_url.removeprefix('sqlite:///')}.spool"), 1 << 20)
    at = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    for number in range(2):
        spool.add(encode_case(make_case(number, created_at=at + timedelta(days=number))), flagged=bool(number))
    code, said = run("db", "check", "--store", store_url)
    assert code == 0
    assert "2 cases wait in" in said
    assert "the oldest of 2026-01-02 03:04 UTC" in said
    assert spool.waiting == 2
    spool.close()


def test_check_tells_of_damage_in_the_spool(run: Run, store_url: str, make_case: Callable[..., Case]) -> None:
    """Cases behind a damaged length are counted as waiting, and how many bytes cannot be read is said."""
    Store(store_url).close()
    spool = Spool(Path(f"{store_url.removeprefix('sqlite:///')}.spool"), 1 << 20)
    payloads = [encode_case(make_case(number)) for number in range(3)]
    for payload in payloads:
        spool.add(payload, flagged=True)
    spool.close()
    (path,) = spool.folder.glob("*.flagged")
    data = bytearray(path.read_bytes())
    data[len(HEADER) + 2] ^= 0x40  # the length of the first record
    path.write_bytes(data)
    (spool.folder / "x.damaged").write_bytes(b"?" * 100)
    _, said = run("db", "check", "--store", store_url)
    assert "3 cases wait in" in said
    assert "1 of them are damaged" in said
    assert f"{8 + len(payloads[0]) + 100} bytes of its files cannot be read" in said


def test_purge_asks(run: Run, url: str) -> None:
    """Without --yes it says what would go and asks; no is no."""
    code, said = run("db", "purge", "--store", url, "--older-than", "5d", answer="n\n")
    assert code == 1
    assert "2 cases, 2 pictures, 0 reviews" in said
    assert left(url) == 3
    code, said = run("db", "purge", "--store", url, "--older-than", "5d", answer="y\n")
    assert code == 0
    assert "Deleted: 2 cases, 2 pictures" in said
    assert left(url) == 1


def test_purge_reaches_the_spool(run: Run, store_url: str, make_case: Callable[..., Case]) -> None:
    """By age, too, what a server left on disk is taken out, and what a running one holds is said."""
    Store(store_url).close()
    folder = Path(f"{store_url.removeprefix('sqlite:///')}.spool")
    old, running = Spool(folder, 1 << 20), Spool(folder, 1 << 20)
    for spool, days in ((old, 20), (old, 1), (running, 30)):
        spool.add(encode_case(make_case(days, created_at=datetime.now(UTC) - timedelta(days=days))), flagged=True)
    old.close()
    code, said = run("db", "purge", "--store", store_url, "--older-than", "5d", "--yes")
    assert code == 0
    assert "Taken out of the spool" in said
    assert f"{folder}: 1 cases." in said
    assert "1 cases to be deleted wait in files of a running server" in said
    running.close()
    assert Spool(folder, 1 << 20).adopt() == 2


def test_purge_by_user_and_case(run: Run, url: str, make_case: Callable[..., Case]) -> None:
    """One user's cases go, then one case; --vacuum works on both engines."""
    assert run("db", "purge", "--store", url, "--user-key", "ann", "--yes", "--vacuum")[0] == 0
    assert left(url) == 1
    assert run("db", "purge", "--store", url, "--case", str(make_case(20).case_id), "-y")[0] == 0
    assert left(url) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Say what to delete: one of"),
        (["--older-than", "5d", "--case", "c"], "Say what to delete: one of"),
        (["--older-than", "soon"], "'soon' is no age"),
        (["--case", "c", "--keep-labelled"], "--keep-labelled goes with --older-than"),
        (["--case", "c"], "There is no store at"),
    ],
)
def test_purge_mistakes(run: Run, words: list[str], said: str) -> None:
    """Each is one sentence, before anything is touched."""
    code, told = run("db", "purge", "--yes", *words)
    assert code == 2
    assert said in told


def test_home_in_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home folder, in the URL of a store and behind an option."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_url("sqlite:///~/x.db").database == str(tmp_path / "x.db")
    assert cli._at_home("--questions=~/q.json") == f"--questions={tmp_path}/q.json"
    assert cli._at_home("~/q.json") == f"{tmp_path}/q.json"
    assert cli._at_home("--question=is ~ here?") == "--question=is ~ here?"
