"""Operations of clients on jobs: submit, label, cancel, pause, resume, retry, delete. See lifecycle.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import BigInteger, Connection, Text, bindparam, cast, delete, func, insert, update
from sqlalchemy.orm import Session

from app import tracing
from app.db import clock, now_ms, table
from app.errors import InvalidTransition
from app.ids import new_id
from app.jobs import removals, results
from app.jobs.lifecycle import VERBS, announce, transition
from app.jobs.models import TERMINAL, Event, Job, JobLabel, Outbox
from app.jobs.needs import methods_of, queue_of
from app.jobs.retention import KEEP_ALL, Policy
from app.jobs.views import JobView
from app.publications import outbox as publications
from app.publications.contract import Params
from app.webhooks import messages, outbox
from workers.engine.spec import CompressionSpec

_JOBS = table(Job)
_INSERT_LABEL, _INSERT_EVENT, _INSERT_MESSAGE = (insert(table(each)) for each in (JobLabel, Event, Outbox))
_NOW = func.coalesce(bindparam("now", type_=BigInteger()), now_ms())
_INSERT_JOB = (
    insert(_JOBS)
    .values(not_before=_NOW, queued_at=_NOW, created_at=_NOW, updated_at=_NOW)
    .returning(_JOBS.c.created_at, cast(_JOBS.c.spec, Text))
)


def create(
    session: Session,
    *,
    tenant_id: str,
    spec: CompressionSpec,
    labels: dict[str, str],
    priority: int,
    max_attempts: int,
    deadline_s: int,
    request_id: str | None,
    asked_by: str | None = None,
    publish: Sequence[Params] = (),
    job_id: str | None = None,
    now: int | None = None,
    policy: Policy = KEEP_ALL,
    peak_memory_bytes: int | None = None,
) -> JobView:
    """Insert the job, its first event and its message to the workers; return it as reading it would.

    `now` is the database's clock where that has been asked. Of one `now`, lower ids run first.
    """
    job_id = job_id or new_id("job")
    queue = queue_of(spec)
    traceparent = tracing.traceparent()
    spec_digest = spec.digest()
    document = spec.model_dump(mode="json")
    methods = methods_of(document)
    written = {
        "id": job_id,
        "tenant_id": tenant_id,
        "status": "queued",
        "version": 1,
        "event_seq": 1,
        "spec": document,
        "spec_digest": spec_digest,
        "model_id": spec.model.id,
        "methods": methods,
        "queue": queue,
        "devices": spec.compute.devices,
        "priority": priority,
        "deadline_s": deadline_s,
        "max_attempts": max_attempts,
        "attempts_left": max_attempts,
        "attempt": 0,
        "fence": 0,
        "request_id": request_id,
        "asked_by": asked_by,
        "traceparent": traceparent,
        "peak_memory_bytes": peak_memory_bytes,
        **policy._asdict(),
    }
    at, spec_text = _insert(session.connection(), written, labels, now)
    shown = None
    if publish:
        made = publications.ask(session, tenant_id=tenant_id, job_id=job_id, asked=publish, asked_by=asked_by, now=at)
        show = update(_JOBS).where(_JOBS.c.id == job_id).values(publications=publications.shown(made))
        shown = session.execute(show.returning(cast(_JOBS.c.publications, Text))).scalar_one()
    return JobView(
        id=job_id,
        version=1,
        status="queued",
        stage=None,
        progress=None,
        attempt=0,
        max_attempts=max_attempts,
        attempts_left=max_attempts,
        priority=priority,
        deadline_s=deadline_s,
        spec=spec_text,
        spec_digest=spec_digest,
        metrics=None,
        verdict=None,
        error=None,
        labels=orjson.dumps(labels).decode() if labels else None,
        created_at=at,
        updated_at=at,
        started_at=None,
        finished_at=None,
        event_seq=1,
        queue=queue,
        devices=spec.compute.devices,
        methods=methods,
        model_id=spec.model.id,
        asked_by=asked_by,
        tenant_id=tenant_id,
        device_ms=0,
        traceparent=traceparent,
        publications=shown,
        stored_bytes=0,
        **policy._asdict(),
        pinned=False,
        files_due_at=None,
        files_removed_at=None,
        files_removed_because=None,
        peak_memory_bytes=peak_memory_bytes,
        price=None,
        currency=None,
    )


def _insert(
    connection: Connection, written: dict[str, Any], labels: dict[str, str], now: int | None
) -> tuple[int, str]:
    """Write the job and what goes with it; returns (when, its spec as the database has it)."""
    job_id = written["id"]
    at, spec_text = connection.execute(_INSERT_JOB, {**written, "now": now}).one()
    if labels:
        connection.execute(
            _INSERT_LABEL,
            [{"job_id": job_id, "key": key, "value": value} for key, value in labels.items()],
        )
    event = {"job_id": job_id, "seq": 1, "type": "queued", "attempt": 0, "data": {}, "at": at}
    connection.execute(_INSERT_EVENT, event)
    outbox.note(connection, tenant_id=written["tenant_id"], job_id=job_id, seq=1, kind="job.queued", at=at)
    connection.execute(_INSERT_MESSAGE, {"job_id": job_id, "queue": written["queue"], "due_at": at})
    return at, spec_text


def set_labels(session: Session, job: Job, changes: dict[str, str | None]) -> None:
    """Merge `changes` into the labels; None removes one."""
    session.execute(delete(JobLabel).where(JobLabel.job_id == job.id, JobLabel.key.in_(changes)))
    session.add_all(JobLabel(job_id=job.id, key=k, value=v) for k, v in changes.items() if v is not None)
    job.version += 1
    job.updated_at = clock(session)
    session.flush()


def pin(session: Session, job: Job, pinned: bool) -> None:
    """Have no policy touch its files, or let policies have them again. Raises InvalidTransition if they are gone."""
    if pinned and job.files_removed_at is not None:
        raise InvalidTransition(
            "The job's files have been removed: there is nothing to keep. The same spec gives the same weights.",
            code="files_removed",
            current=job.status,
        )
    if job.pinned != pinned:
        job.pinned = pinned
        job.version += 1
        job.updated_at = clock(session)
        session.flush()


def cancel(session: Session, job: Job, data: dict[str, Any] | None = None) -> None:
    """Stop the job, whatever it is doing. Idempotent; raises InvalidTransition once it has succeeded or failed."""
    if job.status in ("cancelling", "cancelled"):
        return
    waited = job.status in ("queued", "paused")
    transition(session, job, "cancelling", data)
    if waited:  # nobody is working on it
        transition(session, job, "cancelled")


def pause(session: Session, job: Job) -> None:
    """Have the job keep what it has finished and give its worker back, until it is resumed. Idempotent; raises
    InvalidTransition once it is being cancelled or has ended."""
    if job.status not in ("pausing", "paused"):
        transition(session, job, "pausing" if job.status == "running" else "paused")


def resume(session: Session, job: Job) -> None:
    """Queue a paused job again, at the place it had, with the time it had left. Idempotent; raises InvalidTransition
    while it is still pausing, and once it is being cancelled or has ended."""
    if job.status in ("queued", "running"):
        return
    if job.status != "paused":  # a failed job may become queued too, but not by this verb
        raise InvalidTransition(
            f"The job is {job.status}: only a paused job can be resumed.",
            allowed=VERBS[job.status],
            current=job.status,
        )
    paused_at = job.paused_at
    transition(session, job, "queued", {"reason": "resumed"})
    if job.deadline_at is not None and paused_at is not None:
        job.deadline_at += job.updated_at - paused_at
    announce(session, job, delay_ms=0)


def retry(session: Session, job: Job) -> None:
    """Queue a failed or cancelled job again, with all its attempts. A failed job goes on from its finished blocks."""
    if job.status not in ("failed", "cancelled"):  # a running job may become queued too, but not by this verb
        raise InvalidTransition(
            f"The job is {job.status}: only a failed or cancelled job can be retried.",
            allowed=VERBS[job.status],
            current=job.status,
        )
    transition(session, job, "queued", {"reason": "retry"})
    job.attempts_left = job.max_attempts
    job.error = None
    job.deadline_at = None
    announce(session, job, delay_ms=0)


def remove(session: Session, job: Job) -> None:
    """Delete a finished job and all its rows, and record that its files may go."""
    if job.status not in TERMINAL:
        raise InvalidTransition(
            f"The job is {job.status}: cancel it first, then delete it.", allowed=VERBS[job.status], current=job.status
        )
    remove_finished(session, [job])


def remove_finished(session: Session, jobs: Sequence[Job]) -> None:
    """Delete the tenant's jobs, which are locked and have ended, and all their rows, and record that their files may
    go."""
    if not jobs:
        return
    job_ids = [job.id for job in jobs]
    untold = messages.not_made(session, job_ids)
    keys = results.keys_of(session, job_ids)
    tenant_id = jobs[0].tenant_id
    for job in jobs:
        removals.record_job(session, job)
    session.flush()
    session.execute(delete(Job).where(Job.id.in_(job_ids)))
    results.forget(session, tenant_id, keys, deleted=job_ids)
    messages.keep(session, untold)
