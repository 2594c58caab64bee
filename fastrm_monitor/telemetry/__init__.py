"""OpenTelemetry: a span, an evaluation event and metrics for each answer, through the API alone.

Nothing is sent unless the application configured an SDK, or the standard `OTEL_*` variables name an OTLP endpoint.
"""
