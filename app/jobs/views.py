"""A job as it is shown: the columns every answer is made of, and the one function that renders them.

The body is a pure function of the row and of where the job stands in the queue, so `etag` names it exactly. The columns
are read raw and the JSON ones as text, which is pasted into the answer unparsed: this is what a status poll costs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple
from zlib import crc32

import orjson
from sqlalchemy import Text, cast, select

from app.db import json_object, table
from app.jobs.models import Job, JobLabel
from app.prices import money
from app.tracing import trace_id

JOB_ID = "job_01a201bb6ce13078a5210ce45142be09"
"""For examples."""


class JobView(NamedTuple):
    """One row of COLUMNS, in their order. JSON columns are text, times milliseconds."""

    id: str
    version: int
    status: str
    stage: str | None
    progress: str | None
    attempt: int
    max_attempts: int
    attempts_left: int
    priority: int
    deadline_s: int
    spec: str
    spec_digest: str
    metrics: str | None
    verdict: str | None
    error: str | None
    labels: str | None
    created_at: int
    updated_at: int
    started_at: int | None
    finished_at: int | None
    event_seq: int
    queue: str
    devices: int
    methods: str
    model_id: str
    asked_by: str | None
    tenant_id: str
    device_ms: int
    traceparent: str | None
    publications: str | None
    stored_bytes: int
    keep: str
    keep_days: int
    most_days: int | None
    pinned: bool
    files_due_at: int | None
    files_removed_at: int | None
    files_removed_because: str | None
    peak_memory_bytes: int | None
    price: int | None
    currency: str | None


class Place(NamedTuple):
    """Where a queued job stands."""

    position: int | None
    """In the tenant's queue, from 1; None beyond those that are counted."""
    waiting_for: str | None
    """The reason why no live worker can take the job; None if one can."""


_job = table(Job).c  # the table's, not the class's: rows come as they are, without the ORM's work on each
_labels = table(JobLabel).c
COLUMNS = (
    _job.id,
    _job.version,
    _job.status,
    _job.stage,
    cast(_job.progress, Text),
    _job.attempt,
    _job.max_attempts,
    _job.attempts_left,
    _job.priority,
    _job.deadline_s,
    cast(_job.spec, Text),
    _job.spec_digest,
    cast(_job.metrics, Text),
    _job.verdict,
    cast(_job.error, Text),
    select(json_object(_labels.key, _labels.value)).where(_labels.job_id == _job.id).scalar_subquery(),
    _job.created_at,
    _job.updated_at,
    _job.started_at,
    _job.finished_at,
    _job.event_seq,
    _job.queue,
    _job.devices,
    _job.methods,
    _job.model_id,
    _job.asked_by,
    _job.tenant_id,
    _job.device_ms,
    _job.traceparent,
    cast(_job.publications, Text),
    _job.stored_bytes,
    _job.keep,
    _job.keep_days,
    _job.most_days,
    _job.pinned,
    _job.files_due_at,
    _job.files_removed_at,
    _job.files_removed_because,
    _job.peak_memory_bytes,
    _job.price,
    _job.currency,
)


def etag(job: JobView, place: Place | None) -> str:
    """`"<version>"`, and of a queued job `"<version>-<position>"`, with a digest of what it waits for if it does."""
    if place is None:
        return f'"{job.version}"'
    waits = f"-{crc32(place.waiting_for.encode()):x}" if place.waiting_for else ""
    return f'"{job.version}-{place.position or 0}{waits}"'


def as_json(job: JobView, place: Place | None) -> dict[str, Any]:
    """A job as schemas.JobRead describes it, for orjson."""
    path = f"/v1/jobs/{job.id}"
    return {
        "id": job.id,
        "status": job.status,
        "stage": job.stage,
        "progress": _fragment(job.progress),
        "queue": place._asdict() if place else None,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "attempts_left": job.attempts_left,
        "labels": dict(sorted(orjson.loads(job.labels).items())) if job.labels else {},
        "priority": job.priority,
        "deadline_s": job.deadline_s,
        "spec": orjson.Fragment(job.spec),
        "spec_digest": job.spec_digest,
        "metrics": _fragment(job.metrics),
        "verdict": job.verdict,
        "error": _fragment(job.error),
        "asked_by": job.asked_by,
        "trace_id": trace_id(job.traceparent),
        "publications": _fragment(job.publications) or [],
        "created_at": iso(job.created_at),
        "updated_at": iso(job.updated_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "durations": {
            "queued_s": _seconds(job.created_at, job.started_at),
            "running_s": _seconds(job.started_at, job.finished_at),
            "device_s": job.device_ms / 1000,
        },
        "price": None if job.price is None else money(job.price, job.currency or "")._asdict(),
        "stored_bytes": job.stored_bytes,
        "retention": {
            "keep": job.keep,
            "days": job.keep_days,
            "limit_days": job.most_days,
            "pinned": job.pinned,
            "files_until": None if job.pinned or job.files_removed_at else iso(job.files_due_at),
            "removed": removed(job),
        },
        "links": {
            "self": path,
            "events": f"{path}/events",
            "attempts": f"{path}/attempts",
            "logs": f"{path}/logs",
            "artifacts": f"{path}/artifacts",
            "report": f"{path}/report",
        },
    }


def removed(job: JobView) -> dict[str, Any] | None:
    """As schemas.FilesRemoved has it."""
    if job.files_removed_at is None:
        return None
    return {"at": iso(job.files_removed_at), "because": job.files_removed_because}


def render(job: JobView, place: Place | None) -> bytes:
    return orjson.dumps(as_json(job, place))


def iso(milliseconds: int | None) -> str | None:
    """ISO 8601, UTC, to the millisecond."""
    if milliseconds is None:
        return None
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=4096)
def _second(since_epoch: int) -> str:
    return datetime.fromtimestamp(since_epoch, UTC).isoformat()[:-6]


def _fragment(text: str | None) -> orjson.Fragment | None:
    return None if text is None else orjson.Fragment(text)


def _seconds(start: int | None, end: int | None) -> float | None:
    return None if start is None or end is None else (end - start) / 1000
