"""Starts the dashboard: a Streamlit process of its own, told the store by its environment.

Without sign-in it listens on this machine alone unless told otherwise.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fastrm_monitor.config import load_settings
from fastrm_monitor.dashboard.providers import read_providers
from fastrm_monitor.errors import FastRMError, MissingExtraError

_THEME = {
    "base": "light",
    "baseRadius": "0.5rem",
    "baseFontSize": "15",
    "showSidebarBorder": "true",
    "metricValueFontSize": "1.6rem",
    "paddingTop": "2.25rem",
    "light.primaryColor": "#3557d6",
    "light.backgroundColor": "#ffffff",
    "light.secondaryBackgroundColor": "#f4f5f8",
    "light.textColor": "#1b2130",
    "light.borderColor": "#dfe2e8",
    "light.sidebar.backgroundColor": "#f7f8fa",
    "dark.primaryColor": "#6a89f8",
    "dark.backgroundColor": "#11141a",
    "dark.secondaryBackgroundColor": "#1c212b",
    "dark.textColor": "#e7eaf0",
    "dark.borderColor": "#303745",
    "dark.sidebar.backgroundColor": "#161a22",
}


def serve(
    store_url: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    open_browser: bool = False,
    allow_remote: bool = False,
    auth: Path | None = None,
    read_only: bool = False,
    model: str | None = None,
) -> int:
    """Serve the dashboard until it is interrupted or terminated.

    Args:
        store_url: SQLAlchemy URL of the store.
        host: address to listen on.
        port: port to listen on.
        open_browser: open the dashboard in the user's browser once it answers.
        allow_remote: listen on an address that other machines reach although nobody signs in.
        auth: TOML file with the provider that people sign in with (see `providers`); default `FASTRM_AUTH`.
        read_only: nobody can give verdicts, claim cases or publish thresholds.
        model: that cases are looked at closer with; see `FASTRM_MODEL`, which None leaves as it is.

    Returns:
        The process's exit status; 0 when it was interrupted or terminated.

    Raises:
        FastRMError: other machines would reach it without sign-in, the file for it is not usable, or the port is taken.
        MissingExtraError: Streamlit is not installed.
    """
    set_auth = load_settings().auth
    auth = auth or (Path(set_auth) if set_auth else None)
    if auth is not None:
        read_providers(auth)
    if not (allow_remote or auth is not None or _is_loopback(host)):
        raise FastRMError(
            f"Without sign-in the dashboard does not listen on {host}: pass --auth FILE, or use 127.0.0.1 with an SSH "
            "tunnel, or pass --allow-remote on a network that you trust."
        )
    if any(importlib.util.find_spec(name) is None for name in ("streamlit", "pandas", *(("authlib",) if auth else ()))):
        raise MissingExtraError("The dashboard", "dashboard")
    _check_port(host, port)
    with _terminable():
        own = {"FASTRM_STORE": store_url, **({"FASTRM_MODEL": model} if model else {})}
        own |= {"FASTRM_AUTH": str(auth.absolute())} if auth else {}
        own |= {"FASTRM_READ_ONLY": "true"} if read_only else {}
        process = subprocess.Popen(command(host, port, auth), env={**os.environ, **own})  # noqa: S603
        if open_browser:
            threading.Thread(target=_open_when_ready, args=(process, host, port), daemon=True).start()
        try:
            return process.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            _end(process)


def command(host: str, port: int, auth: Path | None = None) -> list[str]:
    """The command line of the Streamlit process; it names no store, because others on the machine can read it."""
    options = {
        "server.address": host,
        "server.port": str(port),
        "server.headless": "true",  # else it asks for an e-mail address
        "server.fileWatcherType": "none",
        "server.enableStaticServing": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",  # they send the error to search engines
        **({"secrets.files": str(auth.absolute())} if auth else {}),
        **{f"theme.{name}": value for name, value in _THEME.items()},
    }
    script = "guarded.py" if auth else "app.py"
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", str(Path(__file__).with_name(script)), *flags]


@contextmanager
def _terminable() -> Iterator[None]:
    """Termination works like an interrupt here: it would end this process alone and leave the server behind."""
    if threading.current_thread() is not threading.main_thread():  # only there signals can be handled
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_port(host: str, port: int) -> None:
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise FastRMError(f"The dashboard cannot listen on {host}:{port} ({error}): choose another port.") from None


def _open_when_ready(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=1):  # noqa: S310 - our own address
                webbrowser.open(url)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
