"""Where telemetry goes: to the SDK that the application configured, else to the OTLP endpoint that `OTEL_*` names.

An application that configured OpenTelemetry itself is left alone. Otherwise, when the standard variables name an OTLP
endpoint, providers of our own are made, which are not global: nothing else of the process begins to be traced.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from opentelemetry.trace import ProxyTracerProvider, get_tracer_provider

from fastrm_monitor.guard import logger
from fastrm_monitor.telemetry.emit import Telemetry

_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
)


def telemetry_from_environment(dashboard_url: str, provider: str, seconds: float = 2.0) -> Telemetry:
    """The telemetry of a monitor.

    Args:
        dashboard_url: makes the case link.
        provider: `gen_ai.provider.name`.
        seconds: longest wait for an exporter when flushing or closing.
    """
    configured = not isinstance(get_tracer_provider(), ProxyTracerProvider)
    if configured or not _wanted():
        return Telemetry(dashboard_url, provider)
    try:
        return _with_otlp(dashboard_url, provider, seconds)
    except ModuleNotFoundError:
        logger.warning(
            "fastrm-monitor: OTEL_* names an OTLP endpoint, but the exporter is not installed and nothing is sent: "
            "pip install 'fastrm-monitor[otel]'"
        )
        return Telemetry(dashboard_url, provider)
    except Exception as error:  # a value among OTEL_* that the SDK cannot use
        logger.warning("fastrm-monitor: nothing is sent, OpenTelemetry cannot be set up: check OTEL_* (%s)", error)
        return Telemetry(dashboard_url, provider)


def _wanted() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return any(os.environ.get(name) for name in _ENDPOINTS)


def _exports(signal: str) -> bool:
    """Whether `OTEL_TRACES_EXPORTER` and its like ask for this signal; "otlp" is the standard's default."""
    chosen = os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp")
    return "otlp" in [one.strip() for one in chosen.split(",")]


def _with_otlp(dashboard_url: str, provider: str, seconds: float) -> Telemetry:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # The monitor closes them in its own time; the SDK's own atexit handlers may wait half a minute.
    resource = Resource.create()
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
    readers = [PeriodicExportingMetricReader(OTLPMetricExporter())] if _exports("METRICS") else []
    meters = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
    if _exports("TRACES"):
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    if _exports("LOGS"):
        loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    providers = (tracers, loggers, meters)

    def flush() -> None:
        _within(seconds, [one.force_flush for one in providers])

    def close() -> None:
        _within(seconds, [one.shutdown for one in providers])

    return Telemetry(
        dashboard_url,
        provider,
        tracer_provider=tracers,
        logger_provider=loggers,
        meter_provider=meters,
        flush=flush,
        close=close,
    )


def _within(seconds: float, calls: list[Callable[[], object]]) -> None:
    """Make the calls side by side and wait at most `seconds`: an exporter may retry for long, the caller must not."""
    threads = [threading.Thread(target=_quietly, args=(call,), daemon=True) for call in calls]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:  # closed already, or the interpreter is ending
        logger.debug("fastrm-monitor: an exporter could not be flushed: %s", error)
