"""A TCP proxy that can stop forwarding with its connections open, as a paused container or a hung server does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class StallingProxy:
    """Forwards to a server, until it is to `stall`: then nothing gets through, and nothing is closed.

    Args:
        target: path of the server's UNIX socket.

    Attributes:
        port: of 127.0.0.1, where it listens.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._moving = threading.Event()
        self._moving.set()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """From now on nothing gets through."""
        self._moving.clear()

    def go_on(self) -> None:
        """What waited gets through, and all that comes."""
        self._moving.set()

    def close(self) -> None:
        """Close every connection."""
        self._moving.set()
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._target)
                self._open += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._moving.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def stalling_proxy(target: str) -> Iterator[StallingProxy]:
    """A proxy that listens inside the context."""
    proxy = StallingProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
