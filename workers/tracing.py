"""The spans of an attempt and of its stages, and of the wait before it, in the trace of the request that made the job.

The engine knows nothing of it: stages are spans by the events that announce them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from celery import signals
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from app import tracing
from app.failure import Failure
from app.jobs.attempts import Claim
from workers.progress import Finished

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@cache
def _provider() -> TracerProvider | None:
    """Of this process of the pool: its thread would be missing in a fork."""
    return tracing.provider("worker")


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def _end(**_: object) -> None:
    if (provider := _provider()) is not None:
        provider.shutdown()


class Trace:
    """Of one attempt. Without a tracer its spans go nowhere."""

    def __init__(self, held: Claim, worker: str) -> None:
        provider = _provider()
        self._tracer: Tracer = trace.NoOpTracer() if provider is None else provider.get_tracer("espalier")
        self._parent = tracing.context_of(held.traceparent)
        self._attributes: dict[str, str | int] = {"espalier.job_id": held.job_id, "espalier.attempt": held.attempt}
        self._clocks = time.time_ns() - time.monotonic_ns()
        self._waited_ms = held.waited_ms
        self._worker = worker
        self._span: Span = trace.INVALID_SPAN

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """The attempt is all that is done meanwhile."""
        now = time.time_ns()
        waited = self._tracer.start_span(
            "queued", self._parent, attributes=self._attributes, start_time=now - self._waited_ms * 1_000_000
        )
        waited.end(now)
        attributes: dict[str, str | int] = {**self._attributes, "espalier.worker": self._worker}
        with self._tracer.start_as_current_span(
            "attempt", self._parent, kind=SpanKind.CONSUMER, attributes=attributes, start_time=now
        ) as self._span:
            yield

    def stages(self, finished: Sequence[Finished], failure: Failure | None = None) -> None:
        """Stages that are over; of the last one `failure` is the end."""
        for stage in finished:
            ended_ns = int(stage.at * 1e9) + self._clocks
            span = self._tracer.start_span(
                stage.stage, attributes=self._attributes, start_time=ended_ns - int(stage.seconds * 1e9)
            )
            if failure is not None and stage is finished[-1]:
                span.set_status(Status(StatusCode.ERROR, failure.code))
            span.end(ended_ns)

    def ended(self, outcome: str, failure: Failure | None = None) -> None:
        """How the attempt ended: what its row says, or `fenced`."""
        self._span.set_attribute("espalier.outcome", outcome)
        if failure is not None:
            self._span.set_attribute("espalier.error_code", failure.code)
            self._span.set_status(Status(StatusCode.ERROR, failure.message))
