"""A PostgreSQL connection that does not wait for ever: for a server that hangs with its connections open.

Keepalives notice a machine that is gone; they are answered by the kernel of one whose database has stopped, by proxies
and by paused containers. Nothing but the time tells that no answer is coming. Needs psycopg; imported when it is used.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from psycopg import Connection
from psycopg.errors import ConnectionTimeout

SILENCE_SECONDS = 3
"""Longest wait for an answer; the queue holds what is served meanwhile. A commit that takes longer is tried again."""


class ImpatientConnection(Connection[Any]):
    """Waiting for the database ends after `SILENCE_SECONDS` with a `ConnectionTimeout`, and so does the connection."""

    def wait(self, gen: Generator[Any, Any, Any], *arguments: Any, **options: Any) -> Any:
        """See `psycopg.Connection.wait`.

        Raises:
            ConnectionTimeout: no answer in time; the connection is closed, the database may have done what was asked.
        """
        try:
            return super().wait(_bounded(gen), *arguments, **options)
        except ConnectionTimeout:
            self.close()
            raise


def _bounded(gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """The same generator of psycopg, which is told now and then that nothing came; too late, that is an error."""
    until = time.monotonic() + SILENCE_SECONDS
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > until:
                gen.close()
                raise ConnectionTimeout(f"no answer within {SILENCE_SECONDS} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value
