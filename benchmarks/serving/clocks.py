"""Clocks around the monitor's entries."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def clocks(clock: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Clocks around the monitor's entries; where a device works by itself they show the host's time only."""
    from fastrm_monitor import monitor
    from fastrm_monitor.integrations.vllm import frontend, pictures, worker
    from fastrm_monitor.integrations.vllm.internals import core, front
    from fastrm_monitor.records.store import Store
    from fastrm_monitor.telemetry.emit import Telemetry

    entries: list[tuple[str, Any, str]] = [
        ("prompts: tags", worker.WorkerMonitor, "admit"),
        ("states: keys, relevance", worker.WorkerMonitor, "read"),
        ("tokens: before sampling", worker.Step, "before_sampling"),
        ("tokens: after sampling", worker.Step, "after_sampling"),
        ("transfer", worker.Step, "send"),
        ("transfer", worker.Step, "collect"),
        ("engine core: ledger", core, "_stamp"),
        ("front end: request", front, "_served"),
        ("front end: picture", pictures.PictureShelf, "put"),
        ("front end: parts", frontend.Desk, "receive"),
        ("front end: answer", frontend.Desk, "finish"),
        ("background: telemetry", Telemetry, "emit"),
        ("background: cases", monitor, "make_case"),
        ("background: store", Store, "add"),
        ("background: store", Store, "add_traffic"),
    ]
    spent: dict[str, float] = defaultdict(float)
    originals = [(owner, name, getattr(owner, name)) for _, owner, name in entries if hasattr(owner, name)]
    for title, owner, name in entries:
        if hasattr(owner, name):
            # The background thread waits for locks and disks; only its processor time is taken from the engine.
            own = time.thread_time if title.startswith("background") else clock
            setattr(owner, name, _clocked(getattr(owner, name), title, spent, own))
    try:
        yield spent
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _clocked(
    original: Callable[..., Any], title: str, spent: dict[str, float], clock: Callable[[], float]
) -> Callable[..., Any]:
    def clocked(*args: Any, **kwargs: Any) -> Any:
        began = clock()
        try:
            return original(*args, **kwargs)
        finally:
            spent[title] += clock() - began

    return clocked
