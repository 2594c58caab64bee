"""`fastrm-monitor doctor`: what is installed, whether proxy and store can be used, and what was counted."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from rich.console import Console
from rich.markup import escape

import fastrm_monitor
from fastrm_monitor.errors import FastRMError

_LIBRARIES = {
    "torch": "hf", "transformers": "hf", "vllm": "vllm", "opentelemetry-sdk": "otel", "streamlit": "dashboard",
    "psycopg": "postgres", "scikit-learn": "lab",
}  # fmt: skip


def examine(console: Console, store: str | None, proxy: Path, *, vllm: bool = False) -> bool:
    """Print the findings.

    Args:
        console: where to print.
        store: URL of the store; None when none is configured.
        proxy: the proxy folder.
        vllm: whether to look at vLLM too: version, plug-in, and whether everything that it hooks into is there.

    Returns:
        Whether everything that is configured can be used.
    """
    console.print(f"fastrm-monitor {fastrm_monitor.__version__}, Python {platform.python_version()}")
    for library, extra in _LIBRARIES.items():
        console.print(f"  {library}: {_version(library) or f'not installed (extra {extra})'}", markup=False)
    healthy = _proxy(console, proxy)
    if vllm:
        healthy = _vllm(console) and healthy
    if store is None:
        console.print("store: none configured (FASTRM_STORE or --store)")
        return healthy
    return _store(console, store) and healthy


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:  # some builds have another distribution's name
        return "installed" if importlib.util.find_spec(library.replace("-", "_")) is not None else None


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
    line = f"proxy: {path}, version {folder.version}, {config.form} of {config.model_id!r}, {state}"
    console.print(line, markup=False)
    return True


def _vllm(console: Console) -> bool:
    if importlib.util.find_spec("vllm") is None:
        console.print("vLLM: [red]not installed in this environment[/red]: run the doctor where vLLM runs.")
        return False
    from fastrm_monitor.integrations.vllm.internals import NEEDED, NEEDED_BY_SERVER, missing, version

    lacking = missing({**NEEDED, **NEEDED_BY_SERVER})
    loaded = any(one.value.startswith("fastrm_monitor.") for one in entry_points(group="vllm.general_plugins"))
    allowed = os.environ.get("VLLM_PLUGINS")
    if not loaded:
        lacking.append("the plug-in fastrm_monitor among its entry points (install fastrm-monitor beside it)")
    elif allowed is not None and "fastrm_monitor" not in allowed.split(","):
        lacking.append("the plug-in fastrm_monitor in VLLM_PLUGINS")
    state = "on" if os.environ.get("FASTRM_PROXY") else "off (FASTRM_PROXY is not set)"
    console.print(f"vLLM {version()}: plug-in {state}", markup=False)
    for name in lacking:
        console.print(f"  [red]lacks {escape(name)}[/red]")
    if not lacking:
        console.print("  everything that monitoring hooks into is there")
    return not lacking


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
    for (_, engine), starts in sorted((key, value) for key, value in totals.items() if key[0] == "engine"):
        console.print(f"  engine: {engine}, started {starts:.0f} times", markup=False)
    for (name, reason), value in sorted(totals.items()):
        if name not in ("confidence_sum", "engine"):
            console.print(f"  {name}{f' ({reason})' if reason else ''}: {value:.0f}", markup=False)
    return True
