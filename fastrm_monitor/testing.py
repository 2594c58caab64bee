"""Helpers for tests of code that uses fastrm-monitor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastrm_monitor import guard


@contextmanager
def strict() -> Iterator[None]:
    """Inside, failures of monitoring are raised instead of swallowed and counted."""
    before = guard.STRICT
    guard.STRICT = True
    try:
        yield
    finally:
        guard.STRICT = before
