"""What the commands share: the console, the option that names a store, and how files are written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastrm_monitor.config import DEFAULT_STORE, load_settings
from fastrm_monitor.errors import FastRMError

console = Console()

StoreOption = Annotated[
    str | None, typer.Option(help=f"SQLAlchemy URL of the store; default FASTRM_STORE, else {DEFAULT_STORE}.")
]


def given_store() -> str | None:
    """The URL of `FASTRM_STORE`; None when it is not set."""
    given = load_settings().store
    return given.get_secret_value() if given is not None else None


def store_url(store: str | None) -> str:
    """The store that a command works on: the one given, that of the environment, or the default."""
    return store or given_store() or DEFAULT_STORE


def make_folder(path: Path) -> None:
    """Make the folder of `--output`.

    Raises:
        FastRMError: nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise FastRMError(f"--output {path} cannot be written: {error.strerror}.") from None


def one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a value that is none of the known ones.

    Raises:
        FastRMError: the sentence names them.
    """
    if value not in known:
        raise FastRMError(f"--{option} '{value}' is not known: choose {' or '.join(known)}.")


def printable(text: str) -> str:
    """The text on one line, without what a terminal obeys or cannot show: names of files may hold anything."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def progress() -> Progress:
    """A bar on the error stream; of several processes the main one has it."""
    from fastrm_monitor.lab import sharing

    # Without markup: the names of files and data sets stand there, and may hold anything.
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not sharing.is_main())


def write_text(path: Path, text: str) -> None:
    """Write a file with a line break at its end.

    Raises:
        FastRMError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise FastRMError(f"{path} cannot be written: {error.strerror}.") from None
