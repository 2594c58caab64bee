"""`fastrm-monitor doctor`: what is installed, whether proxy and store can be used, and what was counted."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape

import fastrm_monitor
from fastrm_monitor.errors import FastRMError

_LIBRARIES = {
    "torch": "hf", "transformers": "hf", "vllm": "vllm", "opentelemetry-sdk": "otel", "streamlit": "dashboard",
    "psycopg": "postgres", "scikit-learn": "lab",
}  # fmt: skip


def examine(console: Console, store: str | None, proxy: Path) -> bool:
    """Print the findings.

    Args:
        console: where to print.
        store: URL of the store; None when none is configured.
        proxy: the proxy folder.

    Returns:
        Whether everything that is configured can be used.
    """
    console.print(f"fastrm-monitor {fastrm_monitor.__version__}, Python {platform.python_version()}")
    for library, extra in _LIBRARIES.items():
        console.print(f"  {library}: {_version(library) or f'not installed (extra {extra})'}", markup=False)
    healthy = _proxy(console, proxy)
    if store is None:
        console.print("store: none configured (FASTRM_STORE or --store)")
        return healthy
    return _store(console, store) and healthy


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _proxy(console: Console, path: Path) -> bool:
    if _version("torch") is None:
        console.print("proxy: cannot be read without the extra hf")
        return True
    from fastrm_monitor.scoring.checkpoint import load_proxy

    try:
        folder = load_proxy(path)
    except FastRMError as error:
        console.print(f"proxy: [red]{escape(str(error))}[/red]")
        return False
    config = folder.config
    state = "calibrated" if folder.confidence is not None else "uncalibrated"
    line = f"proxy: {path}, version {folder.version}, {config.form} of '{config.model_id}', {state}"
    console.print(line, markup=False)
    return True


def _store(console: Console, url: str) -> bool:
    from fastrm_monitor.records.store import Store

    try:
        with Store(url) as store:
            totals = store.totals()
            shown = store.safe_url
    except FastRMError as error:
        console.print(f"store: [red]{escape(str(error))}[/red]")
        return False
    console.print(f"store: {shown}", markup=False)
    for (name, reason), value in sorted(totals.items()):
        if name != "confidence_sum":
            console.print(f"  {name}{f' ({reason})' if reason else ''}: {value:.0f}", markup=False)
    return True
