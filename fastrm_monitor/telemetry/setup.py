"""Where telemetry goes: to given providers, to the SDK that the application configured, else where `OTEL_*` says.

An application that configured OpenTelemetry itself is left alone. Otherwise, when the standard variables name an OTLP
endpoint or Prometheus, providers of our own are made, which are not global: nothing else of the process begins to be
traced. What cannot be set up is one line in the log, and answers are served.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import ProxyTracerProvider, TracerProvider, get_tracer_provider

from fastrm_monitor.guard import logger
from fastrm_monitor.telemetry import exporters, semconv
from fastrm_monitor.telemetry.emit import Telemetry, capture_mode

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

_given: dict[str, Any] = {}
"""Providers of `use_providers`, by the names of the arguments of `Telemetry`."""


def use_providers(
    *,
    tracer_provider: TracerProvider | None = None,
    logger_provider: LoggerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Have monitors that are opened from now on use these, and the global ones in place of those not given.

    Without arguments things are again as if this had never been called.
    """
    providers = {
        "tracer_provider": tracer_provider,
        "logger_provider": logger_provider,
        "meter_provider": meter_provider,
    }
    _given.clear()
    _given.update({name: one for name, one in providers.items() if one is not None})


def telemetry_from_environment(dashboard_url: str, provider: str, seconds: float = 2.0) -> Telemetry:
    """The telemetry of a monitor.

    Args:
        dashboard_url: makes the case link.
        provider: `gen_ai.provider.name`.
        seconds: longest wait for an exporter when flushing or closing.
    """
    if capture_mode() not in semconv.CAPTURE_MODES:
        logger.warning(
            "fastrm-monitor: %s=%s has no meaning, so no question and no answer is sent: use one of %s",
            semconv.CAPTURE_CONTENT, capture_mode(), ", ".join(semconv.CAPTURE_MODES),
        )  # fmt: skip
    if _given:
        return Telemetry(dashboard_url, provider, **_given)
    configured = not isinstance(get_tracer_provider(), ProxyTracerProvider)
    if configured or not _wanted():
        return Telemetry(dashboard_url, provider)
    try:
        return _of_our_own(dashboard_url, provider, seconds)
    except ModuleNotFoundError:
        logger.warning(
            "fastrm-monitor: OTEL_* asks for telemetry, but the SDK is not installed and nothing is sent: "
            "pip install 'fastrm-monitor[otel]'"
        )
        return Telemetry(dashboard_url, provider)
    except Exception as error:  # a value among OTEL_* that the SDK cannot use
        logger.warning("fastrm-monitor: nothing is sent, OpenTelemetry cannot be set up: check OTEL_* (%s)", error)
        return Telemetry(dashboard_url, provider)


def _wanted() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    return "prometheus" in exporters.chosen("METRICS") or any(exporters.wanted(one) for one in exporters.SIGNALS)


def _of_our_own(dashboard_url: str, provider: str, seconds: float) -> Telemetry:
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # The monitor closes them in its own time; the SDK's own atexit handlers may wait half a minute.
    resource = Resource.create()
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
    problems: dict[str, list[str]] = {}
    if exporters.wanted("TRACES"):
        with _Problem(problems, "traces"):
            tracers.add_span_processor(BatchSpanProcessor(exporters.span_exporter()))
    if exporters.wanted("LOGS"):
        with _Problem(problems, "logs"):
            loggers.add_log_record_processor(BatchLogRecordProcessor(exporters.log_exporter()))
    meters, shared = _meters(resource, problems)
    for problem, signals in problems.items():
        logger.warning("fastrm-monitor: no %s will be sent, %s", " and no ".join(signals), problem)
    flushed = (tracers, loggers, meters)
    closed = (tracers, loggers) if shared else flushed

    def flush() -> None:
        _within(seconds, [one.force_flush for one in flushed])

    def close() -> None:
        if shared:
            flush()
        _within(seconds, [one.shutdown for one in closed])

    return Telemetry(
        dashboard_url,
        provider,
        tracer_provider=tracers,
        logger_provider=loggers,
        meter_provider=meters,
        flush=flush,
        close=close,
    )


def _meters(resource: Resource, problems: dict[str, list[str]]) -> tuple[Any, bool]:
    """The SDK's meter provider, and whether other monitors of the process share it."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    if "prometheus" in exporters.chosen("METRICS"):
        with _Problem(problems, "metrics"):
            return exporters.prometheus_provider(resource), True
    readers: list[MetricReader] = []
    if exporters.wanted("METRICS"):
        with _Problem(problems, "metrics"):
            readers.append(PeriodicExportingMetricReader(exporters.metric_exporter()))
    return MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False), False


class _Problem:
    """Notes why a signal cannot be sent, and goes on without it: sentence -> signals."""

    def __init__(self, problems: dict[str, list[str]], signal: str) -> None:
        self._problems, self._signal = problems, signal

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, exporters.ExportError):
            self._problems.setdefault(str(error), []).append(self._signal)
            return True
        return False


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
