"""Starting the dashboard: for this machine alone, without secrets in sight, and gone when it is told to go."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from fastrm_monitor.dashboard import serve
from fastrm_monitor.errors import FastRMError, MissingExtraError


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NotStarted(Exception):  # noqa: N818
    """In place of a server."""


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """(command, environment) of every process that would have been started; none is."""
    wanted: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], env: dict[str, str]) -> None:
        wanted.append((command, env))
        raise NotStarted

    monkeypatch.setattr(subprocess, "Popen", start)
    return wanted


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", ""])
def test_other_machines_are_kept_out(host: str, port: int) -> None:
    """An address that others reach is refused, because nobody logs in; the sentence says what to do instead."""
    with pytest.raises(FastRMError, match=r"Without sign-in .*--auth FILE.*SSH tunnel.*--allow-remote"):
        serve.serve("sqlite:///x.db", host=host, port=port)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.usefixtures("no_process")
def test_this_machine_is_let_in(host: str, port: int) -> None:
    """Names of this machine alone are served, and so is any other where that was asked for."""
    with pytest.raises(NotStarted):
        serve.serve("sqlite:///x.db", host=host, port=port)
    with pytest.raises(NotStarted):
        serve.serve("sqlite:///x.db", host="0.0.0.0", port=port, allow_remote=True)


@pytest.mark.usefixtures("no_process")
def test_taken_port_is_named() -> None:
    """A port that something else listens on is said to be taken before anything is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(FastRMError, match=f"cannot listen on 127.0.0.1:{taken} .* choose another port"):
            serve.serve("sqlite:///x.db", port=taken)


def test_missing_streamlit_is_said(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Without Streamlit the sentence says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastrm-monitor\[dashboard\]'"):
        serve.serve("sqlite:///x.db", port=port)


def test_importing_needs_no_streamlit() -> None:
    """The command line can import `serve` where Streamlit is not installed."""
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('streamlit', 'pandas', 'altair')))\n"
        "from fastrm_monitor.dashboard.serve import command; print(command('127.0.0.1', 1)[-1])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout[:2]) == (0, "--"), found.stderr


def test_store_is_told_by_the_environment(no_process: list[tuple[list[str], dict[str, str]]], port: int) -> None:
    """The server learns its store, password and all, where others on the machine cannot read it."""
    with pytest.raises(NotStarted):
        serve.serve("postgresql://user:hunter2@host/db", port=port)
    ((command, environment),) = no_process
    assert environment["FASTRM_STORE"] == "postgresql://user:hunter2@host/db"
    assert not [word for word in command if "hunter2" in word]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_it_is_told_to_stop(tmp_path: Path, port: int, number: signal.Signals) -> None:
    """It answers at its address; interrupted or terminated it ends with status 0 and takes the server along."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    program = f"import sys; from fastrm_monitor.dashboard.serve import serve; sys.exit(serve({url!r}, port={port}))"
    arguments = [sys.executable, "-c", program]
    # A group of its own, as a terminal makes; the signal goes to the first process alone, as from a supervisor.
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            end = time.monotonic() + 60
            while not answers(port):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            process.send_signal(number)
            said = process.communicate(timeout=30)[1]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, "Traceback" in said) == (0, False), said
    assert not answers(port)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
