"""What happens to counts, queues and connections when the process forks. Knows none of them.

A child must not write what its parent will write, must not wait for locks whose holders were not copied, and must not
inherit a transaction: SQLite believes for good that the child itself holds the copied locks ("database is locked").
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident
from typing import Protocol
from weakref import WeakSet

_PATIENCE = 2.0
"""Longest that a fork waits for transactions, in seconds; after it, the fork goes on."""


class Forkable(Protocol):
    """Something that a child process has to begin anew."""

    def after_fork(self) -> None:
        """Called in the child, where no other thread runs yet."""


_forkables: WeakSet[Forkable] = WeakSet()


def renew_in_child(thing: Forkable) -> None:
    """Have `thing.after_fork()` called in every child process for as long as `thing` lives."""
    _forkables.add(thing)


class ForkGate:
    """Lets the process fork between transactions only: `with gate.inside(): ...`."""

    def __init__(self) -> None:
        self._open_anew()

    def _open_anew(self) -> None:
        self._changed = Condition()
        self._inside: dict[int, int] = {}  # thread -> depth; a thread inside never waits for its own fork
        self._forking = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Hold back forks of other threads; waits while one is under way."""
        me = get_ident()
        with self._changed:
            if me not in self._inside:
                self._changed.wait_for(lambda: not self._forking, _PATIENCE)
            self._inside[me] = self._inside.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                depth = self._inside.pop(me, 1) - 1  # a child that was forked from inside finds nothing here
                if depth:
                    self._inside[me] = depth
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Let nobody in and wait, not for ever, until the other threads are out."""
        with self._changed:
            self._forking += 1
            self._changed.wait_for(lambda: self._inside.keys() <= {get_ident()}, _PATIENCE)

    def after_fork_in_parent(self) -> None:
        """Let everybody in again."""
        with self._changed:
            self._forking -= 1
            self._changed.notify_all()

    def after_fork(self) -> None:
        """In the child: forget the threads that were not copied."""
        self._open_anew()


TRANSACTIONS = ForkGate()
"""Every transaction of every store of this process passes here."""


def _begin_anew() -> None:
    TRANSACTIONS.after_fork()
    for thing in list(_forkables):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(
        before=TRANSACTIONS.before_fork,
        after_in_parent=TRANSACTIONS.after_fork_in_parent,
        after_in_child=_begin_anew,
    )
