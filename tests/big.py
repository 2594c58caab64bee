"""The benchmarks' stores and queries, for tests: `benchmarks` is a folder of programs, with no import name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def program(name: str) -> Any:
    """The module of a program in `benchmarks`, loaded once."""
    known = f"benchmarks.{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[known] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[known]


fill = program("big_store").fill
