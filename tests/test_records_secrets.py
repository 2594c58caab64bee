"""The password of a store's URL is in no message, log, traceback or print, whatever goes wrong."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastrm_monitor import cli
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records import schema
from fastrm_monitor.records.engine import check_exists, read_url
from fastrm_monitor.records.store import Store
from tests.servers import serve, serving

SECRET = "hunter2"
UNREACHABLE = f"postgresql://me:{SECRET}@127.0.0.1:1/db"
TORN = [
    f"postgresql://me:12?{SECRET}@host/db",
    f"postgresql://me:{SECRET}@@host/db",
    f"postgresql://me:1@{SECRET}/x@host/db",
    f"postgresql://me:{SECRET}@host:port/db",
]
ODD = [
    UNREACHABLE,
    f"postgresql://127.0.0.1:1/db?user=me&password={SECRET}",
    f"postgresql://me@127.0.0.1:1/db?sslpassword={SECRET}",
    f"mysql://me:{SECRET}@host/db",
    f"sqlite://me:{SECRET}@/x.db",
    f"postgresql://me:{SECRET}@127.0.0.1:1/db?nonsense={SECRET[:3]}",
    f"postgresql://me:12/{SECRET}@127.0.0.1:1/db",
    f"postgresql://me:12#/{SECRET}@127.0.0.1:1/db",
    *TORN,
]


def said_by(call: Callable[[], object]) -> str:
    """Everything that is printed of what it raises."""
    try:
        call()
    except Exception as error:
        return "".join(traceback.format_exception(error))
    return ""


@pytest.mark.parametrize("url", ODD)
def test_no_call_tells(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Opening, reading, upgrading and asking for the schema raise one sentence without the secret."""
    with caplog.at_level(logging.DEBUG):
        for call in (Store, schema.upgrade, schema.current, check_exists, read_url):
            assert SECRET not in said_by(lambda call=call: call(url)), call
    assert SECRET not in caplog.text


@pytest.mark.parametrize("url", ODD)
@pytest.mark.parametrize(
    "words", ["db check", "db purge --case c -y", "db purge --older-than 3d -y", "db upgrade", "doctor"]
)
def test_no_command_tells(url: str, words: str) -> None:
    """The commands print no secret, and fail."""
    done = CliRunner().invoke(cli.app, [*words.split(), "--store", url])
    assert done.exit_code != 0
    assert SECRET not in done.output
    assert done.exception is not None
    assert SECRET not in "".join(traceback.format_exception(done.exception))


@pytest.mark.parametrize("url", TORN)
def test_a_torn_url_is_explained(url: str) -> None:
    """A password whose special characters tear the URL is refused, not taken for a host or a database."""
    with pytest.raises(FastRMError, match="cannot be read"):
        read_url(url)


def test_encoded_characters_work() -> None:
    """Written as the message says, any password is read as it is."""
    url = read_url("postgresql://me:a%40b%2Fc%3Fd%23e%25f@host:5432/db")
    assert (url.password, url.host, url.database) == ("a@b/c?d#e%f", "host", "db")
    assert read_url("postgresql:///db?host=/tmp/a@b").query == {"host": "/tmp/a@b"}


def test_a_server_does_not_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server whose store is away logs where cases wait, and not the password."""
    with caplog.at_level(logging.DEBUG):
        monitor = serving(UNREACHABLE, spool=str(tmp_path))
        serve(monitor, range(4))
        monitor.close()
    assert "cannot be" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in repr(monitor.settings)
    assert all(SECRET.encode() not in one.read_bytes() for one in tmp_path.rglob("*") if one.is_file())
