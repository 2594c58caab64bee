"""For tests that fork beside threads: how they are marked, and how their children are waited for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import pytest


def forks(test: Callable[..., None]) -> Callable[..., None]:
    """Skip where nothing can fork, run without coverage's tracer (see `untraced`), and allow threads beside the fork.

    Python 3.12 and later warn of forks beside threads, which is what these tests are about.
    """
    test = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")(test)
    test = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")(test)
    return pytest.mark.usefixtures("untraced")(test)


def forked(work: Callable[[], bool]) -> int:
    """The id of a child process that does `work` and ends: with 0 when that is true, 2 when not, 1 when it raises."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return pid


def in_child(work: Callable[[], object]) -> str:
    """Do `work` in a forked child and return the repr of its outcome, or its error's name and sentence."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = repr(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def exit_codes(children: Sequence[int], seconds: float = 20) -> list[int | None]:
    """The exit codes of child processes; None for one that had to be killed because it hung."""
    patience = time.monotonic() + seconds
    ended: dict[int, int] = {}
    while len(ended) < len(children) and time.monotonic() < patience:
        for pid in set(children) - set(ended):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for pid in set(children) - set(ended):
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return [ended.get(pid) for pid in children]
