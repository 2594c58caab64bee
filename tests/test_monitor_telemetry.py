"""What the monitor tells of itself: drift of the traffic, skips and failures, as metrics and in the store."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlalchemy import select

from fastrm_monitor import Answer, Monitor
from fastrm_monitor.demo import PROXY_FOLDER
from fastrm_monitor.drift.reference import Reference
from fastrm_monitor.drift.watch import DriftWatch
from fastrm_monitor.errors import ProxyError
from fastrm_monitor.records.models import DriftValue
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.patches import PatchGrid
from fastrm_monitor.telemetry import setup

GRID = PatchGrid(np.arange(4).reshape(2, 2), 4)


@pytest.fixture
def reader():
    """What monitors that are opened inside the test measure."""
    made = InMemoryMetricReader()
    setup.use_providers(meter_provider=MeterProvider([made]))
    yield made
    setup.use_providers()


def points(reader, name):
    """Attributes -> value of a metric; without those that are 0."""
    return {
        tuple(point.attributes.values()): point.value
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if point.value
    }


def serve(monitor, probabilities):
    for number, probability in enumerate(probabilities):
        one = monitor.assess(f"r{number}", np.array([0.1, 0.9, 0.2, 0.0], np.float32), [GRID],
                             answer={"token_probability": float(probability), "token_entropy": 0.5})  # fmt: skip
        monitor.record(Answer(f"r{number}", "m", "q", "a", (), 1, 2, input_tokens=5, output_tokens=1), one)


def test_drift_is_measured_and_stored(reader, any_store_url):
    """Less probable answers than the first ones make the confidence drift: in the metrics, and in the store alike."""
    rng = np.random.default_rng(0)
    monitor = Monitor.open(proxy=PROXY_FOLDER, store=any_store_url, sample_rate=0.0)
    monitor._drift = DriftWatch(size=60, minimum=60, period=0)
    serve(monitor, rng.beta(8, 2, 60))
    serve(monitor, rng.beta(2, 8, 60))
    assert monitor.flush(20)
    monitor.close()
    measured = points(reader, "fastrm.drift")
    assert measured["m", "token_probability", "ks_p"] < 0.001
    assert measured["m", "map_entropy", "ks_p"] == 1.0  # the maps were all the same
    assert points(reader, "fastrm.drift.cases")["m", "confidence", "window"] == 60
    with Store(any_store_url) as store, store.session() as session:
        rows = list(session.scalars(select(DriftValue)))
    assert {(row.model, row.feature, row.statistic): row.value for row in rows if row.value} == measured
    assert {(row.n_reference, row.n_window, row.server) for row in rows} == {(60, 60, monitor.server)}


def test_reference_of_the_proxy_folder(reader, tmp_path):
    """A proxy folder with a reference needs no first answers; one of another proxy is refused when it is opened."""
    folder = shutil.copytree(PROXY_FOLDER, tmp_path / "proxy")
    monitor = Monitor.open(proxy=folder)
    Reference({"confidence": np.linspace(0, 1, 300)}, monitor.scorer.folder.version).save(folder)
    monitor.close()
    monitor = Monitor.open(proxy=folder)
    assert list(monitor._drift.reference.values) == ["confidence"]
    monitor.close()
    Reference({"confidence": np.linspace(0, 1, 300)}, "other").save(folder)
    with pytest.raises(ProxyError, match=r"reference\.json is the reference of proxy other"):
        Monitor.open(proxy=folder)


def test_skips_and_failures_are_metrics(reader, store_url, monkeypatch):
    """What could not be scored is counted at once; failures of every stage when the background thread comes round."""
    monitor = Monitor.open(proxy=PROXY_FOLDER, store=store_url)
    monitor.skip("r", "partial_prefill")
    assert points(reader, "fastrm.skipped") == {("partial_prefill",): 1}
    with monitor.guard("score"):
        raise ValueError("odd states")
    monkeypatch.setattr(monitor._drift, "add", lambda features: 1 / 0)
    serve(monitor, [0.5, 0.5])
    monitor.flush(20)
    monitor.close()
    assert points(reader, "fastrm.failed") == {("score",): 1, ("drift",): 2}
    assert monitor.counters.snapshot()["scored", ""] == 2
