"""Faults around the server: the database and the server itself are killed, disks fill up, OTLP receivers fail."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from benchmarks.faults.disk import SmallDisk
from benchmarks.faults.server import FORK, Server
from tests.servers import Postgres

During = Callable[[Server], None]
"""Called once the server runs, in another process; returns when there is nothing more to do."""

Failure = Literal["500", "429", "hangs"]


def killed_database(postgres: Postgres) -> During:
    """PostgreSQL is killed with SIGKILL at 40 % and restarted at 70 %."""

    def during(server: Server) -> None:
        server.wait_for(0.4)
        postgres.kill()
        server.wait_for(0.7)
        postgres.restart()

    return during


def signalled(*, at_once: bool) -> During:
    """The server gets SIGTERM, or SIGKILL, at 60 %."""

    def during(server: Server) -> None:
        server.wait_for(0.6)
        server.end(at_once=at_once)

    return during


def freed(disk: SmallDisk, size: int) -> During:
    """The disk is small until 70 %; then it has `size` bytes."""

    def during(server: Server) -> None:
        server.wait_for(0.7)
        disk.resize(size)

    return during


@contextmanager
def failing_receiver(failure: Failure) -> Iterator[None]:
    """An OTLP receiver in a process of its own, which the servers that begin meanwhile send everything to."""
    port = FORK.RawValue("i", 0)
    process = FORK.Process(target=_receive, args=(failure, port), daemon=True)
    process.start()
    while not port.value:
        time.sleep(0.01)
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{port.value}"
    try:
        yield
    finally:
        stop_sending()
        process.kill()
        process.join()


def stop_sending() -> None:
    """Servers that begin from now on send no telemetry."""
    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)


def _receive(failure: Failure, port: object) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if failure == "hangs":
                threading.Event().wait()
            self.send_response(int(failure))
            if failure == "429":
                self.send_header("Retry-After", "1")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.daemon_threads = True
    port.value = receiver.server_port  # type: ignore[attr-defined]
    receiver.serve_forever()
