"""Traces from a request to the stages of its job, by OpenTelemetry, where the standard OTEL_* variables ask for them.

A request's place in its trace is kept in the job's row, not in the message to the workers: a message means "look for a
due job", and who looks may be given another.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import structlog
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_W3C = TraceContextTextMapPropagator()


def provider(process: str) -> TracerProvider | None:
    """Sends spans of this process, `api` or `worker`, to the OTLP endpoint of the environment; None without one."""
    if not _asked_for():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no_traces", detail="OTEL_EXPORTER_OTLP_ENDPOINT is set: pip install 'espalier-llm[tracing]'")
        return None
    if (protocol := next(filter(None, map(os.environ.get, PROTOCOLS)), "http/protobuf")) != "http/protobuf":
        log.warning("no_traces", detail=f"of OTLP's protocols http/protobuf is spoken here, and not {protocol}")
        return None
    name = os.environ.get("OTEL_SERVICE_NAME") or f"espalier-{process}"
    made = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


def traceparent() -> str | None:
    """The place in its trace of what is done now, as W3C writes it; None outside of a trace."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent")


def context_of(traceparent: str | None) -> Any:
    """The context of that place, for spans to begin in."""
    return _W3C.extract({"traceparent": traceparent} if traceparent else {})


def trace_id(traceparent: str | None) -> str | None:
    return traceparent.split("-")[1] if traceparent else None


def add_ids(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Put the ids of the trace and the span into a line of the log, where there are any."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event


def _asked_for() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(os.environ.get(name) for name in ENDPOINTS)
