"""The tables of a job's life. All `*_at` are milliseconds since the epoch on the database's clock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Json, Serial
from app.keys.models import Tenant

ACTIVE = ("queued", "running", "pausing", "paused", "cancelling")
TERMINAL = ("succeeded", "failed", "cancelled")
STATUSES = ACTIVE + TERMINAL
FILES_DUE = "files_due_at is not null and files_removed_at is null"


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(f"status in {STATUSES}", name="status"),
        Index("ix_jobs_list", "tenant_id", "created_at", "id"),
        Index("ix_jobs_list_status", "tenant_id", "status", "created_at", "id"),
        Index("ix_jobs_list_model", "tenant_id", "model_id", "created_at", "id"),
        Index("ix_jobs_list_verdict", "tenant_id", "verdict", "created_at", "id"),
        Index("ix_jobs_list_updated", "tenant_id", "updated_at", "id"),
        Index("ix_jobs_list_priority", "tenant_id", "priority", "created_at", "id"),
        Index(
            "ix_jobs_queue",
            "tenant_id",
            text("priority DESC"),
            "created_at",
            "id",
            postgresql_where=text("status = 'queued'"),
            sqlite_where=text("status = 'queued'"),
        ),
        Index(
            "ix_jobs_files_due",
            "files_due_at",
            postgresql_where=text(FILES_DUE),
            sqlite_where=text(FILES_DUE),
        ),
        Index(
            "ix_jobs_front",
            "finished_at",
            postgresql_where=text("keep = 'front'"),
            sqlite_where=text("keep = 'front'"),
        ),
        Index(
            "ix_jobs_lease",
            "lease_expires_at",
            postgresql_where=text("lease_expires_at is not null"),
            sqlite_where=text("lease_expires_at is not null"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(40), ForeignKey(Tenant.id))
    status: Mapped[str] = mapped_column(String(16), default="queued")
    version: Mapped[int] = mapped_column(default=1)
    """Bumped by every visible change; the ETag."""
    event_seq: Mapped[int] = mapped_column(default=0)

    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    spec_digest: Mapped[str] = mapped_column(String(80))
    model_id: Mapped[str] = mapped_column(String(200))
    methods: Mapped[str] = mapped_column(String(500), server_default=text("''"))
    """Names of the spec's methods, a space before and behind each: what lists are filtered by."""
    queue: Mapped[str] = mapped_column(String(16))
    """`any`, or `gpu` for what only a GPU worker may take."""
    devices: Mapped[int] = mapped_column(server_default=text("1"))
    """How many of a worker's devices it takes: the spec's `compute.devices`."""
    priority: Mapped[int] = mapped_column(default=0)
    deadline_s: Mapped[int]
    max_attempts: Mapped[int]
    attempts_left: Mapped[int]
    attempt: Mapped[int] = mapped_column(default=0)

    fence: Mapped[int] = mapped_column(default=0)
    """Raised by every claim. A write for an attempt must carry the present value."""
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[int | None] = mapped_column(BigInteger)
    not_before: Mapped[int] = mapped_column(BigInteger)
    """The job cannot be claimed earlier. Its last message to the workers is due then too."""
    queued_at: Mapped[int | None] = mapped_column(BigInteger)
    """Since when it could have been claimed: when it was last queued, or its backoff over. None: not since 0017."""
    deadline_at: Mapped[int | None] = mapped_column(BigInteger)
    device_ms: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Of the attempts that have ended: their time, times their devices."""
    price: Mapped[int | None] = mapped_column(BigInteger)
    """Of the same, billionths of the currency that the last of them was priced in; None where none was."""
    currency: Mapped[str | None] = mapped_column(String(8))
    stored_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Of its result's files, whether others share them or not."""
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Memory that each of its processes must have, a prediction: of jobs that older versions accepted, the most that
    one may take. None where there was none when it was submitted."""
    keep: Mapped[str] = mapped_column(String(8), server_default=text("'all'"))
    """all, front or report: what stays of its result, `keep_days` after its end. See retention.py."""
    keep_days: Mapped[int] = mapped_column(server_default=text("0"))
    most_days: Mapped[int | None]
    """The service's bound when it was submitted: then the report stays alone, whatever `keep` says."""
    pinned: Mapped[bool] = mapped_column(server_default=text("false"))
    """No policy touches its result."""
    files_due_at: Mapped[int | None] = mapped_column(BigInteger)
    """When all but the report may go."""
    files_removed_at: Mapped[int | None] = mapped_column(BigInteger)
    files_removed_because: Mapped[str | None] = mapped_column(String(16))
    """report (its policy), front (of its sweep) or limit (the service's)."""
    paused_at: Mapped[int | None] = mapped_column(BigInteger)
    """Since when it has been `paused`; the deadline moves by that time when it is resumed."""

    stage: Mapped[str | None] = mapped_column(String(32))
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    metrics: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """The report's measurements by name, `{dense, pruned, ratio, unit}`, as list pages show them."""
    verdict: Mapped[str | None] = mapped_column(String(16))
    """The report's (pass, fail or inconclusive); None until the job has succeeded, and where its spec has no gates."""
    manifest_sha256: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str | None] = mapped_column(String(128))
    traceparent: Mapped[str | None] = mapped_column(String(55))
    """The request's place in its trace, as W3C writes it; None where nobody traces."""
    asked_by: Mapped[str | None] = mapped_column(String(100))
    """Name of the key that submitted it; None of jobs that are older than this column."""
    publications: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    """Of the table `publications`, as bodies show them: written with each change there, so a poll reads no more."""

    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    """Of the first attempt."""
    finished_at: Mapped[int | None] = mapped_column(BigInteger)


class JobLabel(Base):
    __tablename__ = "job_labels"
    __table_args__ = (Index("ix_job_labels_key_value", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[str] = mapped_column(String(200))


class Attempt(Base):
    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    fence: Mapped[int]
    worker: Mapped[str] = mapped_column(String(200))
    outcome: Mapped[str] = mapped_column(String(16), default="running")
    """running, succeeded, failed, cancelled, lost (its lease expired), released (its worker shut down) or paused."""
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    started_at: Mapped[int] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)
    price: Mapped[int | None] = mapped_column(BigInteger)
    """Of a second of the devices that it holds, billionths of the currency; None where its worker knows none."""
    currency: Mapped[str | None] = mapped_column(String(8))


class DeviceTime(Base):
    """Time that an ended attempt held devices. Rows outlive their job, and are summed up by month."""

    __tablename__ = "device_times"
    __table_args__ = (Index("ix_device_times_tenant", "tenant_id", "at", "device_ms"),)

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey(Tenant.id))
    job_id: Mapped[str] = mapped_column(String(40))
    attempt: Mapped[int]
    at: Mapped[int] = mapped_column(BigInteger)
    """When it ended."""
    device_ms: Mapped[int] = mapped_column(BigInteger)
    price: Mapped[int | None] = mapped_column(BigInteger)
    """Of all of it, billionths of the currency."""
    currency: Mapped[str | None] = mapped_column(String(8))


class WorkerRecord(Base):
    """A worker that is alive, or was until `expires_at`; see fleet.py."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(8))
    """cpu or gpu."""
    devices: Mapped[int]
    expires_at: Mapped[int] = mapped_column(BigInteger)
    seen_at: Mapped[int | None] = mapped_column(BigInteger)
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """The host's, or of it what the worker may take."""
    device_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of its smallest GPU; None where that is not known."""
    parts: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    """Its devices in their order: `{key, name, model, memory_bytes}`."""
    use: Mapped[list[dict[str, Any]] | None] = mapped_column(Json)
    """Use of devices now, `{device, memory_bytes, memory_used_bytes, busy}`, as the worker last saw it."""
    methods: Mapped[dict[str, list[str]] | None] = mapped_column(Json)
    """Stage -> names of the methods that it has."""


class DeviceLease(Base):
    """A device that a job holds together with its own lease: written by the claim, gone with the lease."""

    __tablename__ = "device_leases"

    device: Mapped[str] = mapped_column(String(300), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)


class Event(Base):
    """Events of a job, in order. SSE, long-poll and the events page read this one table."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    attempt: Mapped[int]
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    at: Mapped[int] = mapped_column(BigInteger)


class Artifact(Base):
    """A file of a succeeded job. Rows are written by the fenced finish, so uploads of an attempt that lost its lease
    are never listed. Rows of equal files of a tenant share a key (results.py)."""

    __tablename__ = "artifacts"
    __table_args__ = (
        Index("ix_artifacts_content", "tenant_id", "sha256", "key"),
        Index("ix_artifacts_key", "key"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(500), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(700))
    tenant_id: Mapped[str | None] = mapped_column(String(40))
    """None of files that are older than this column: those are shared with nobody."""


class RemovedArtifact(Base):
    """A file of a result that a retention policy has removed: what a download of it is told."""

    __tablename__ = "removed_artifacts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(String(500), primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))


class ReportRecord(Base):
    """A succeeded job's report, whole. Apart from `jobs` so that list pages and polls never read it."""

    __tablename__ = "reports"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    body: Mapped[dict[str, Any]] = mapped_column(Json)


class Outbox(Base):
    """Messages to publish, written in the transaction that makes them true. A row is deleted once published."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    queue: Mapped[str] = mapped_column(String(16))
    due_at: Mapped[int] = mapped_column(BigInteger, index=True)


class FileRemoval(Base):
    """Files that may be deleted, written with the deletion of their job or the end of their attempt (removals.py).

    No foreign key: it outlives the job. `attempt` and `fence` are None where all of the job's files may go.
    """

    __tablename__ = "file_removals"
    __table_args__ = (
        Index(
            "ix_file_removals_due",
            "id",
            postgresql_where=text("done_at is null"),
            sqlite_where=text("done_at is null"),
        ),
    )

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    tenant_id: Mapped[str] = mapped_column(String(40))
    job_id: Mapped[str] = mapped_column(String(40), index=True)
    attempt: Mapped[int | None]
    fence: Mapped[int | None]
    recorded_at: Mapped[int] = mapped_column(BigInteger)
    done_at: Mapped[int | None] = mapped_column(BigInteger)


class IdempotencyKey(Base):
    """The answer given to a keyed request; written in the same transaction as what the request made."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(ForeignKey(Tenant.id), primary_key=True)
    route: Mapped[str] = mapped_column(String(100), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(40))
    """The job or the sweep that was made."""
    body: Mapped[str] = mapped_column(Text)
    """The response body as sent; with `resource_id` it suffices for a replay."""
    expires_at: Mapped[int] = mapped_column(BigInteger, index=True)
