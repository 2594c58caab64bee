"""Tests against the real vLLM. They have an environment of their own (`make test-vllm`), where vLLM is installed.

Without vLLM nothing here is collected; where FASTRM_REQUIRE_VLLM is 1, `make test-vllm` fails instead.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.with_vllm.asked import ENGINE, switch_on

    switch_on(VLLM_USE_V2_MODEL_RUNNER="0")


def environment(**more: str) -> dict[str, str]:
    """Of a child process: what a CPU machine needs, and this repository on the path."""
    return {**os.environ, "PYTHONPATH": f"{HERE / 'site'}{os.pathsep}{ROOT}", **more}


@pytest.fixture(scope="session")
def script() -> Callable[..., str]:
    """Run one of this folder's scripts in a process of its own; returns its standard output."""

    def run(name: str, *arguments: str, seconds: float = 400, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, HERE / name, *arguments],
            env=environment(**more), capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def llm() -> Any:
    """The embedded LVLM in an offline engine of this process, watched, with model runner V1."""
    from vllm import LLM

    return LLM(**ENGINE, enforce_eager=True, max_num_seqs=32, max_logprobs=-1)


@pytest.fixture
def desk(llm: Any, store_url: str) -> Iterator[Any]:
    """The engine's desk, with a monitor of its own that stores every answer."""
    from fastrm_monitor.monitor import Monitor
    from fastrm_monitor.records.schema import upgrade

    upgrade(store_url)
    desk = llm.llm_engine.fastrm
    before = desk.monitor
    desk.monitor = Monitor.open(store=store_url, provider="vllm", sample_rate=1.0)
    llm.reset_prefix_cache()
    yield desk
    desk.monitor.close()
    desk.monitor = before
