"""From a store's URL to a SQLAlchemy engine, and from a database's errors to one sentence without the password.

Knows neither tables nor schema.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from sqlalchemy import URL, Connection, Dialect, Engine, ExceptionContext, NullPool, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fastrm_monitor.errors import MissingExtraError, StoreError
from fastrm_monitor.records.forks import TRANSACTIONS

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_SHAPES = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
_BUSY_MILLISECONDS = 5000
_STATEMENT_MILLISECONDS = 15_000
_POSTGRES = {
    "connect_timeout": 5,
    "keepalives_idle": 10,  # a server that is gone without a word is noticed within half a minute, not two hours
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_SQLITE_OPTIONS = ("uri", "timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements")
_SECRET_WORDS = ("pass", "pwd", "secret", "token")
_WRITES = "fastrm_writes"
_PATIENCE = "fastrm_patience"
_MISTAKES = (
    "file is not a database",
    "unable to open database file",
    "readonly database",
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "permission denied",
    "does not exist",
    "invalid",
)
"""What databases say when they are there and trying again is in vain."""


class StoreAwayError(StoreError):
    """The database cannot be used now; later it may."""


class StoreSilentError(StoreAwayError):
    """The database does not answer: whoever asks it again at once waits as long again."""


class RejectedError(StoreError):
    """The database is there and does not take these rows, today or later."""


def read_url(text: str) -> URL:
    """A store's URL with the driver that is used for it.

    Raises:
        StoreError: it cannot be read, or is of a database that is not supported. What is wrong with it is not quoted,
            since it may be the password.
    """
    try:
        url = make_url(text)
        text.encode()  # bytes of a command line that are no UTF-8
    except Exception:
        raise StoreError(f"The store's URL cannot be read; it looks like {_SHAPES}.") from None
    if url.drivername not in _DRIVERS:
        raise StoreError(f"A store cannot be of the kind {url.drivername!r}; use {_SHAPES}.")
    url = url.set(drivername=_DRIVERS[url.drivername])
    if url.drivername == "sqlite":
        if url.host or url.username or url.password:
            raise StoreError("The store's URL has too few slashes for a file; it looks like sqlite:///fastrm.db.")
        name = url.database or ":memory:"
        if ":memory:" in name or "memory" in _values(url, "mode"):
            raise StoreError("A store in memory would be lost at once; name a file, e.g. sqlite:///fastrm.db.")
        unknown = sorted(set(url.query) - set(_SQLITE_OPTIONS))
        if unknown and "uri" not in url.query:
            raise StoreError(
                f"The store's URL has the option {unknown[0]!r}, which SQLite knows only in the form "
                "sqlite:///file:PATH?mode=ro&uri=true."
            )
        if name.startswith("~/"):
            url = url.set(database=str(Path(name).expanduser()))
    elif _is_torn(text, url):
        raise StoreError(
            "The store's URL cannot be read: in user name and password write @ / ? # % as %40 %2F %3F %23 %25."
        )
    return url


def _is_torn(text: str, url: URL) -> bool:
    """Whether a password with a special character would pass for host, port or database, and be shown."""
    before, _, query = text.partition("?")
    if any("=" not in part for part in query.split("&") if part):
        return True
    return "@" in before and (url.username is None or "@" in f"{url.host or ''}{url.database or ''}")


def check_writable(url: URL) -> None:
    """Refuse an SQLite store that can only be read.

    Raises:
        StoreError: its URL says so, or the file's permissions do.
    """
    if url.drivername == "sqlite" and ("ro" in _values(url, "mode") or "immutable" in url.query):
        raise StoreError(f"The store {safe_url(url)} is opened for reading only: leave out mode and immutable.")
    path = file_of(url)
    if path is not None and path.exists() and not os.access(path, os.W_OK):
        raise StoreError(f"The store {safe_url(url)} may not be written: check the permissions of the file.")


def safe_url(url: URL) -> str:
    """The URL as it may be shown: without its password, wherever that stands."""
    query = {name: "hidden" if _is_secret(name) else value for name, value in url.query.items()}
    return url.set(query=query).render_as_string(hide_password=True)


def check_exists(text: str) -> None:
    """Refuse the URL of an SQLite file that is not there: opening it would make it, and whoever only reads must not.

    Raises:
        StoreError: see `read_url`, or there is no such file.
    """
    url = read_url(text)
    path = file_of(url)
    if path is not None and not path.exists():
        raise StoreError(
            f"There is no store at {safe_url(url)}: check the path, serve with it first, or make it with "
            "`fastrm-monitor db upgrade`."
        )


def insert_into(dialect: Dialect, table: Any) -> Any:
    """An INSERT that knows `ON CONFLICT`, which both databases write alike and SQLAlchemy has once for each."""
    return (postgresql if dialect.name == "postgresql" else sqlite).insert(table)


def open_engine(url: URL, *, impatient: bool = False) -> Engine:
    """An engine for threads; nothing is connected yet.

    SQLite connections live for one transaction only: one that lies idle would be copied by a fork, and SQLite's locks
    do not bear that (see `forks`).

    Args:
        url: see `read_url`.
        impatient: whether a PostgreSQL that does not answer is given up soon (see `silence`), for who cannot wait.

    Raises:
        StoreError: the folder of an SQLite file does not exist.
        MissingExtraError: psycopg is not installed.
    """
    if url.drivername == "sqlite":
        return _open_sqlite(url)
    arguments = {name: value for name, value in _POSTGRES.items() if name not in url.query}
    try:
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=arguments)
    except ImportError:
        raise MissingExtraError("A PostgreSQL store", "postgres") from None
    event.listen(engine, "begin", _limit_postgres)
    if impatient:
        _lose_patience(engine)
    return engine


def for_writing(engine: Engine, patience: float | None = None) -> Engine:
    """The same engine, its transactions taking SQLite's write lock at once.

    One that reads first and writes later can fail half-way, however long it waits.

    Args:
        engine: see `open_engine`.
        patience: seconds that a transaction waits for the locks of others; None is the database's default.
    """
    return engine.execution_options(**{_WRITES: True, _PATIENCE: patience})


@contextmanager
def one_sentence(url: URL, doing: str) -> Iterator[None]:
    """Turn a database's error into a `StoreError`: "The store URL cannot be `doing`: ...".

    Raises:
        RejectedError: the rows are at fault.
        StoreAwayError: nobody is, and the same may work later; `StoreSilentError` when it did not answer.
        StoreError: the set-up is at fault.
    """
    try:
        yield
    except (DBAPIError, PoolTimeoutError) as error:
        _forget_rows(error)
        raise _kind(error)(_sentence(url, doing, error)) from None


@contextmanager
def usable(url: URL) -> Iterator[None]:
    """Turn what a driver or a file system says of an odd name or option in a URL into a `StoreError`."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:
        detail = " ".join(str(error).split())[:120]
        raise StoreError(f"The store {safe_url(url)[:200]} cannot be opened ({detail}): check its URL.") from None


def _forget_rows(error: Exception) -> None:
    """PostgreSQL quotes the whole row below an error's first line, and some error reporters show an error's context."""
    for one in (error, getattr(error, "orig", None)):
        if one is not None and one.args and isinstance(one.args[0], str):
            one.args = (one.args[0].split("\n")[0], *one.args[1:])


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction, committed at the end."""
    with TRANSACTIONS.inside(), engine.begin() as connection:
        yield connection


def file_of(url: URL) -> Path | None:
    """The file of an SQLite URL; None for other databases and for SQLite's own URIs, which speak for themselves."""
    name = url.database or ""
    return Path(name) if url.drivername == "sqlite" and not name.startswith("file:") else None


def _kind(error: Exception) -> type[StoreError]:
    if isinstance(error, (IntegrityError, DataError)):
        return RejectedError
    if _is_silent(getattr(error, "orig", None)):
        return StoreSilentError
    said = str(getattr(error, "orig", None) or error)
    return StoreError if any(words in said for words in _MISTAKES) else StoreAwayError


def _open_sqlite(url: URL) -> Engine:
    path = file_of(url)
    if path is not None:
        if path.is_dir():
            raise StoreError(f"The store {safe_url(url)} is a folder; name a file in it.")
        if not path.absolute().parent.is_dir():
            raise StoreError(f"The folder of the store {safe_url(url)} does not exist; make it first.")
    try:
        engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    except ValueError:
        raise StoreError(
            f"An option behind the ? of the store {safe_url(url)} has no such value; correct it."
        ) from None

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where `begin` below says, not where sqlite3 guesses
        try:
            connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # what was deleted is not left in free pages
            connection.execute("PRAGMA synchronous = NORMAL")  # with WAL, a power cut costs the last moments at most
        except BaseException:
            connection.close()  # nobody else knows of it yet
            raise

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get(_PATIENCE) is not None:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {_milliseconds(options[_PATIENCE])}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_WRITES) else "BEGIN")

    return engine


def _lose_patience(engine: Engine) -> None:
    from fastrm_monitor.records.silence import SILENCE_SECONDS, ImpatientConnection

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        options["connect_timeout"] = min(int(options.get("connect_timeout", SILENCE_SECONDS)), SILENCE_SECONDS)
        return ImpatientConnection.connect(*arguments, **options)

    @event.listens_for(engine, "handle_error")
    def silent(context: ExceptionContext) -> None:
        """A ping without an answer is an error, not a reason to wait for a new connection as long again."""
        if context.is_pre_ping and _is_silent(context.original_exception):
            context.is_disconnect = False


def _is_silent(error: object) -> bool:
    return type(error).__name__ == "ConnectionTimeout"  # of psycopg, which need not be installed


def _limit_postgres(connection: Connection) -> None:
    """Within a transaction, so that it binds nobody else behind a connection pooler."""
    patience = connection.get_execution_options().get(_PATIENCE)
    if patience is not None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_milliseconds(patience)}")
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {_STATEMENT_MILLISECONDS}")


def _milliseconds(seconds: float) -> int:
    return max(int(1000 * seconds), 1)


def _sentence(url: URL, doing: str, error: Exception) -> str:
    shown = safe_url(url)
    detail = str(getattr(error, "orig", None) or error).strip().split("\n")[0].rstrip(". ")
    if "file is not a database" in detail:
        return f"The store {shown} is not an SQLite database; name another file."
    if "unable to open database file" in detail:
        return f"The store {shown} cannot be opened; check the permissions of the file and its folder."
    if any(secret in detail for secret in _secrets(url)):
        detail = "the database refused"
    return f"The store {shown} cannot be {doing}: {detail}."


def _secrets(url: URL) -> Iterator[str]:
    found = [str(url.password or "")]
    for name in url.query:
        if _is_secret(name):
            found += _values(url, name)
    for secret in filter(None, found):
        yield from {secret, quote(secret, safe=""), quote_plus(secret)}


def _values(url: URL, name: str) -> list[str]:
    value = url.query.get(name, ())
    return [value] if isinstance(value, str) else list(value)


def _is_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_WORDS)
