"""A sink, and writers that deliver to it."""

import pytest

from fastrm_monitor import guard
from fastrm_monitor.records.writer import Writer
from tests.writer.sink import Sink


@pytest.fixture
def sink():
    made = Sink()
    yield made
    made.gate.set()


@pytest.fixture
def make(sink):
    """Make a writer to the sink; it is closed at the end."""
    made = []

    def make(**options):
        writer = Writer(sink.deliver, dropped=sink.dropped, **{"size": 100, "flush_seconds": 5.0, **options})
        made.append(writer)
        return writer

    yield make
    sink.gate.set()
    for writer in made:
        writer.close()


@pytest.fixture(autouse=True)
def unlimited_log(monkeypatch):
    """Each test logs as if nothing had been logged before."""
    monkeypatch.setattr(guard, "_last_logged", {})
