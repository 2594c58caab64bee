"""fastrm-monitor: reliability monitoring for vision-language models in production.

    handle = fastrm_monitor.instrument(model, processor, proxy="proxy/", store="sqlite:///fastrm.db")

Importing this package imports neither torch nor transformers; the names below are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrm_monitor.config import Settings
    from fastrm_monitor.errors import FastRMError
    from fastrm_monitor.integrations.hf import Handle, Request, instrument
    from fastrm_monitor.monitor import Monitor
    from fastrm_monitor.scoring.scorer import Scorer
    from fastrm_monitor.types import Answer, Assessment, RelevanceMap

try:
    __version__ = version("fastrm-monitor")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0.0.0"

_HOMES = {
    "Answer": "types",
    "Assessment": "types",
    "FastRMError": "errors",
    "Handle": "integrations.hf",
    "Monitor": "monitor",
    "RelevanceMap": "types",
    "Request": "integrations.hf",
    "Scorer": "scoring.scorer",
    "Settings": "config",
    "instrument": "integrations.hf",
}

__all__ = [
    "Answer",
    "Assessment",
    "FastRMError",
    "Handle",
    "Monitor",
    "RelevanceMap",
    "Request",
    "Scorer",
    "Settings",
    "instrument",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
