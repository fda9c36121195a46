"""Jobs, their events, attempts and files."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from espalier.documents.base import Document
from espalier.documents.publications import Publication

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Progress(Document):
    """How far the present stage is: `done` of `total`, at `rate` a second, `eta_s` seconds before its end."""

    stage: str
    done: int
    total: int
    unit: str
    rate: float | None = None
    eta_s: float | None = None
    loss: float | None = None


class Queue(Document):
    """A queued job's place, from 1, and what no live worker has that it needs."""

    position: int | None = None
    waiting_for: str | None = None


class JobFailure(Document):
    """Why an attempt failed. `code` is stable, `hint` says what to change, `field` points into the spec."""

    code: str
    message: str
    hint: str
    retryable: bool
    stage: str | None = None
    field: str | None = None
    attempt: int


class MetricSummary(Document):
    """A measurement on both models; `ratio` is pruned / dense."""

    dense: float
    pruned: float
    ratio: float | None = None
    unit: str


class Durations(Document):
    """Seconds: in the queue, from the first start to the end, and of the devices that were held."""

    queued_s: float | None = None
    running_s: float | None = None
    device_s: float


class Price(Document):
    """`amount` is a decimal."""

    amount: str
    currency: str


class FilesRemoved(Document):
    """`because`: report (the job's policy), front (that of its sweep) or limit (the service's bound)."""

    at: datetime
    because: str


class Retention(Document):
    """What stays of the result, and until when all of it does."""

    keep: str
    """all, front or report."""
    days: int
    limit_days: int | None = None
    pinned: bool
    files_until: datetime | None = None
    removed: FilesRemoved | None = None


class JobDocument(Document):
    """A job as it was when the service last said so."""

    id: str
    status: str
    """queued, running, pausing, paused, cancelling, succeeded, failed or cancelled."""
    stage: str | None = None
    progress: Progress | None = None
    queue: Queue | None = None
    attempt: int
    max_attempts: int
    attempts_left: int
    labels: dict[str, str]
    priority: int
    deadline_s: int
    spec: dict[str, Any]
    """With all defaults filled in."""
    spec_digest: str
    metrics: dict[str, MetricSummary] | None = None
    """The report's measurements by name."""
    verdict: str | None = None
    """Of the spec's gates: pass, fail or inconclusive."""
    error: JobFailure | None = None
    trace_id: str | None = None
    """Of the request's trace, where the service traces."""
    asked_by: str | None = None
    publications: list[Publication] = Field(default_factory=list)
    """Places that its result is brought to."""
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    durations: Durations
    price: Price | None = None
    """Of its device time; None where the service has no prices."""
    stored_bytes: int
    """Of its files, equal ones of other jobs counted in."""
    retention: Retention

    @property
    def ended(self) -> bool:
        """Whether it has succeeded, failed or been cancelled."""
        return self.status in ENDED


class Event(Document):
    """Something that happened to a job. `seq` counts from 1 without gaps."""

    seq: int
    type: str
    attempt: int
    data: dict[str, Any]
    at: datetime


class Attempt(Document):
    """One try at a job by one worker."""

    number: int
    worker: str
    outcome: str
    error: JobFailure | None = None
    started_at: datetime
    finished_at: datetime | None = None


class Artifact(Document):
    """A file of a result."""

    path: str
    bytes: int
    sha256: str
    media_type: str
    url: str
