"""Which schema a database has, and how it gets the current one: Alembic, without its command line or an ini file.

The migrations lie beside this module and travel with the wheel. `Store` calls `prepare`; the command line the rest.
"""

from __future__ import annotations

import io
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Lock
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import URL, Connection, Engine, inspect, text

from fastrm_monitor.errors import StoreError
from fastrm_monitor.records.engine import for_writing, one_sentence, open_engine, read_url, safe_url, transaction
from fastrm_monitor.records.forks import TRANSACTIONS
from fastrm_monitor.records.models import Base

MIGRATIONS = Path(__file__).parent / "migrations"

_Status = Literal["empty", "foreign", "older", "current", "unknown", "damaged"]
_migrating = Lock()  # Alembic's `op` and `context` are one for the whole process
_ADVISORY_LOCK = 0x666173747266  # of PostgreSQL, taken while the schema is made
_WAL_SECONDS = 5.0


def head() -> str:
    """The revision that this version reads and writes."""
    revision = _scripts().get_current_head()
    assert revision is not None  # noqa: S101  # the package has migrations
    return revision


def current(url: str) -> str | None:
    """The revision of a database; None for one without a schema, a missing SQLite file included.

    Raises:
        StoreError: the database cannot be opened.
    """
    parsed = read_url(url)
    name = parsed.database or ""
    if parsed.drivername == "sqlite" and not name.startswith("file:") and not Path(name).exists():
        return None  # asking must not make it
    with _engine(parsed) as engine, transaction(engine) as connection:
        return ", ".join(_heads(connection)) or None


def upgrade(url: str) -> str:
    """Bring a database to the current schema, from an older one or from none, and return its revision.

    Raises:
        StoreError: the database cannot be opened, or has a schema that this version does not know.
    """
    parsed = read_url(url)
    with _engine(parsed) as engine:
        with alone(engine) as connection:
            status = _status(connection)
            if status in ("unknown", "damaged"):
                raise _refusal(status, parsed, connection)
            command.upgrade(alembic_config(connection), "head")
        _use_wal(engine)
    return head()


def sql(dialect: str = "postgresql") -> str:
    """The SQL that makes the current schema, for a database whose owner runs it by hand."""
    out = io.StringIO()
    config = alembic_config()
    config.output_buffer = out
    config.attributes["dialect"] = dialect
    with _migrating:
        command.upgrade(config, "head", sql=True)
    return out.getvalue()


def prepare(engine: Engine, url: URL) -> None:
    """Make the schema of an empty database; any number of processes may do so at once.

    Raises:
        StoreError: the database has another schema than this version's; the sentence says what to run.
    """
    with transaction(engine) as connection:
        status = _status(connection)
    if status in ("empty", "foreign"):  # or half-way, while another process makes it: look again alone
        with alone(engine) as connection:
            status = _status(connection)
            if status == "empty":
                command.upgrade(alembic_config(connection), "head")
                status = "current"
    if status != "current":
        with transaction(engine) as connection:
            raise _refusal(status, url, connection)
    _use_wal(engine)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for the packaged migrations, run on `connection`."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def history() -> list[Script]:
    """Every step from an empty database to the current schema, the newest first."""
    return list(_scripts().walk_revisions())


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config())


def _heads(connection: Connection) -> tuple[str, ...]:
    return MigrationContext.configure(connection).get_current_heads()


def _status(connection: Connection) -> _Status:
    heads = _heads(connection)
    if not heads:
        return "empty" if set(inspect(connection).get_table_names()) <= {"alembic_version"} else "foreign"
    if heads == (head(),):
        return "current" if set(Base.metadata.tables) <= set(inspect(connection).get_table_names()) else "damaged"
    known = {script.revision for script in history()}
    return "older" if known.issuperset(heads) else "unknown"


def _refusal(status: _Status, url: URL, connection: Connection) -> StoreError:
    shown = safe_url(url)
    revision = ", ".join(_heads(connection))
    run = f"run `fastrm-monitor db upgrade --store {shown}`"
    if status == "older":
        return StoreError(f"The store {shown} has the older schema {revision}: {run}.")
    if status == "unknown":
        return StoreError(
            f"The store {shown} has the schema {revision}, which this version does not know: upgrade fastrm-monitor "
            "to the version that made it."
        )
    if status == "damaged":
        return StoreError(
            f"The store {shown} says that it has the schema {revision} but lacks tables of it: restore it from a "
            "backup, or name an empty database."
        )
    return StoreError(
        f"The store {shown} holds tables of something else: name an empty database, or to share it {run}."
    )


@contextmanager
def _engine(url: URL) -> Iterator[Engine]:
    engine = open_engine(url)
    try:
        with one_sentence(url, "opened"):
            yield engine
    finally:
        engine.dispose()


@contextmanager
def alone(engine: Engine) -> Iterator[Connection]:
    """A transaction that no other thread or process can change the schema beside.

    Without SQLite's foreign keys: a migration that copies a table drops the old one, and would take the rows that
    refer to it along.
    """
    with _migrating, TRANSACTIONS.inside(), for_writing(engine).connect() as connection:
        if engine.dialect.name == "sqlite":
            driver = connection.connection.driver_connection
            assert driver is not None  # noqa: S101  # it is connected
            driver.execute("PRAGMA foreign_keys = OFF")  # before the transaction, inside it has no effect
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            yield connection


def _use_wal(engine: Engine) -> None:
    """Let readers and a writer work side by side; SQLite keeps this in the file. Some file systems do not allow it."""
    if engine.dialect.name != "sqlite":
        return
    patience = time.monotonic() + _WAL_SECONDS
    with TRANSACTIONS.inside(), closing(engine.raw_connection()) as connection:
        while True:
            try:
                connection.cursor().execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                # The change waits for nobody, whatever the busy timeout says. Without it everything works, only slower.
                if "locked" in str(error) and time.monotonic() < patience:
                    time.sleep(0.02)
                    continue
            return
