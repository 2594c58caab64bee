"""Which exporter a signal goes through: what the standard `OTEL_*` variables ask for, from whichever package has it.

OTLP over HTTP or gRPC for every signal, and for metrics also a page that Prometheus scrapes. Needs the SDK; imported
when something is to be sent.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from fastrm_monitor.guard import logger

if TYPE_CHECKING:
    from opentelemetry.sdk._logs.export import LogRecordExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

Signal = Literal["TRACES", "METRICS", "LOGS"]
SIGNALS: tuple[Signal, ...] = ("TRACES", "METRICS", "LOGS")

_PACKAGES = {"http/protobuf": ("http", "otel"), "grpc": ("grpc", "grpc")}
"""Protocol -> the last part of the exporter's package, and our extra that installs it."""
_CLASSES = {
    "TRACES": ("trace_exporter", "OTLPSpanExporter"),
    "METRICS": ("metric_exporter", "OTLPMetricExporter"),
    "LOGS": ("_log_exporter", "OTLPLogExporter"),
}


class ExportError(Exception):
    """A signal cannot be sent as the variables ask; one sentence that says what to do."""


def chosen(signal: Signal) -> tuple[str, ...]:
    """The exporters that `OTEL_TRACES_EXPORTER` and its like name; "otlp" is the standard's default."""
    named = os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip() or "otlp"
    return tuple(one.strip().lower() for one in named.split(","))


def endpoint(signal: Signal) -> bool:
    """Whether a variable names an OTLP endpoint for this signal."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    return any(os.environ.get(name, "").strip() for name in names)


def wanted(signal: Signal) -> bool:
    """Whether anything of this signal is to be sent over OTLP."""
    return endpoint(signal) and "otlp" in chosen(signal)


def span_exporter() -> SpanExporter:
    """See `_otlp`."""
    exporter: SpanExporter = _otlp("TRACES")
    return exporter


def log_exporter() -> LogRecordExporter:
    """See `_otlp`."""
    exporter: LogRecordExporter = _otlp("LOGS")
    return exporter


def metric_exporter() -> MetricExporter:
    """See `_otlp`."""
    exporter: MetricExporter = _otlp("METRICS")
    return exporter


def _otlp(signal: Signal) -> Any:
    """The OTLP exporter of a signal, by the protocol that `OTEL_EXPORTER_OTLP_PROTOCOL` or the signal's own names.

    Raises:
        ExportError: the protocol is unknown, or its package is not installed.
    """
    variable, protocol = "OTEL_EXPORTER_OTLP_PROTOCOL", ""
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", variable):
        protocol = os.environ.get(name, "").strip().lower()
        if protocol:
            variable = name
            break
    protocol = protocol or "http/protobuf"
    if protocol not in _PACKAGES:
        raise ExportError(f"{variable}={protocol} is not supported: use {' or '.join(_PACKAGES)}")
    package, extra = _PACKAGES[protocol]
    module, name = _CLASSES[signal]
    try:
        return getattr(import_module(f"opentelemetry.exporter.otlp.proto.{package}.{module}"), name)()
    except ModuleNotFoundError:
        raise ExportError(
            f"the OTLP exporter for {protocol} is not installed: pip install 'fastrm-monitor[{extra}]'"
        ) from None


# --- the page that Prometheus scrapes ---------------------------------------------------------------------------------

_page_lock = threading.Lock()
_page: MeterProvider | None = None


def prometheus_provider(resource: Resource) -> MeterProvider:
    """The meter provider behind `OTEL_METRICS_EXPORTER=prometheus`, one for the process and never closed.

    Its page is at `OTEL_EXPORTER_PROMETHEUS_HOST` (127.0.0.1) and `OTEL_EXPORTER_PROMETHEUS_PORT` (9464). A port has
    one process: where several serve, give each its own, or send OTLP to a collector.

    Raises:
        ExportError: the package is not installed, or the port cannot be opened.
    """
    global _page
    with _page_lock:
        if _page is None:
            _page = _open_page(resource)
        return _page


def _open_page(resource: Resource) -> MeterProvider:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import start_http_server
    except ModuleNotFoundError:
        raise ExportError(
            "the exporter for Prometheus is not installed: pip install 'fastrm-monitor[prometheus]'"
        ) from None
    host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST", "").strip() or "127.0.0.1"
    port = os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT", "").strip() or "9464"
    try:
        start_http_server(int(port), host)
    except (OSError, OverflowError, ValueError) as error:
        raise ExportError(
            f"the page for Prometheus cannot be opened at {host}:{port} ({error}): set OTEL_EXPORTER_PROMETHEUS_PORT"
        ) from None
    readers: list[MetricReader] = [PrometheusMetricReader()]
    if wanted("METRICS"):
        readers.append(PeriodicExportingMetricReader(metric_exporter()))
    logger.info("fastrm-monitor: metrics for Prometheus are at http://%s:%s/metrics", host, port)
    return MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
