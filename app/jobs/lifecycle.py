"""The job's life: the only place a status changes, but for `create`, which begins it, and `claim`.

    queued ──► running ──► succeeded | failed
      ▲           │
      └───────────┘  lease lost, retryable failure, worker shut down
    queued | running ──► cancelling ──► cancelled        also from pausing and paused
    running ──► pausing ──► paused ──► queued            by `pause` and `resume`; a queued job is paused at once
    failed | cancelled ──► queued                        by `retry`

An attempt that ends while its job is `pausing` ends it as it would have, but that the job is not queued again: it is
paused.

Every change goes through `transition`, which writes the job and its event together. Who changes what:

    service.py     clients      submit, label, cancel, pause, resume, retry, delete
    attempts.py    workers      claim, renew, record, succeed, fail, cancelled, release; fenced by a `Claim`
    upkeep.py      reconciler   take back from silent workers, announce again; messages that were sent

All functions there and here take a session inside a write transaction and never commit: the caller decides what
belongs together.

Locks are taken in one order, so that no two transactions wait for each other: the worker, the sweep, its jobs in the
order of their ids, what hangs on a job (labels, attempts, devices in the order of their keys, events, artifacts,
report, messages, publications, sweep child), the tenant (its turns and quotas), webhooks, the Idempotency-Key. Whoever
writes what hangs on a job has locked the job first, whether a foreign key would or not; but for the relay, which
forgets messages. It skips those that are locked, as chores over many rows do. A claim may lock the tenant before the
job, for which it does not wait.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.db import clock
from app.errors import InvalidTransition
from app.failure import Failure
from app.jobs import figures, removals, usage
from app.jobs.models import TERMINAL, Attempt, DeviceLease, Event, Job, Outbox
from app.webhooks import outbox

ALLOWED: dict[str, frozenset[str]] = {
    "queued": frozenset({"running", "cancelling", "paused"}),
    "running": frozenset({"succeeded", "failed", "queued", "cancelling", "pausing"}),
    "pausing": frozenset({"succeeded", "failed", "paused", "cancelling"}),
    "paused": frozenset({"queued", "cancelling"}),
    "cancelling": frozenset({"cancelled"}),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
    "succeeded": frozenset(),
}
VERBS: dict[str, list[str]] = {
    "queued": ["cancel", "pause"],
    "running": ["cancel", "pause"],
    "pausing": ["cancel", "pause"],
    "paused": ["cancel", "pause", "resume"],
    "cancelling": ["cancel"],
    "succeeded": ["delete"],
    "failed": ["retry", "delete"],
    "cancelled": ["cancel", "retry", "delete"],
}
"""Status -> actions that a client may take."""
HELD = ("running", "pausing", "cancelling")
"""A worker holds the job's lease."""


def transition(session: Session, job: Job, to: str, data: dict[str, Any] | None = None) -> None:
    """Change the status of a locked job and write its event: the one place for it outside `create` and `claim`."""
    if to not in ALLOWED[job.status]:
        raise InvalidTransition(
            f"The job is {job.status}, and a job that is {job.status} cannot become {to}.",
            allowed=VERBS[job.status],
            current=job.status,
        )
    now = clock(session)
    job.status = to
    job.version += 1
    job.event_seq += 1
    job.updated_at = now
    if to not in HELD and job.lease_expires_at is not None:
        job.lease_owner = job.lease_expires_at = None
        session.execute(delete(DeviceLease).where(DeviceLease.job_id == job.id))
    job.finished_at = now if to in TERMINAL else None
    job.queued_at = now if to == "queued" else job.queued_at
    job.paused_at = now if to == "paused" else None
    session.add(Event(job_id=job.id, seq=job.event_seq, type=to, attempt=job.attempt, data=data or {}, at=now))
    session.flush()
    outbox.note(
        session.connection(), tenant_id=job.tenant_id, job_id=job.id, seq=job.event_seq, kind=f"job.{to}", at=now
    )
    if to in TERMINAL:
        figures.job_ended(session, job, now)


def fail_or_retry(session: Session, job: Job, error: Failure, *, outcome: str, backoff_s: float) -> None:
    """End the attempt with `error`, and the job unless that is retryable and attempts are left."""
    close_attempt(session, job, outcome, error)
    job.error = error.as_json(job.attempt)
    if error.retryable and job.attempts_left > 0 and job.status == "pausing":
        transition(session, job, "paused", {"reason": error.code, "error": job.error})
    elif error.retryable and job.attempts_left > 0:
        transition(session, job, "queued", {"reason": error.code, "error": job.error})
        tried = job.max_attempts - job.attempts_left
        announce(session, job, delay_ms=int(backoff_s * 1000 * 2 ** max(tried - 1, 0)))
        job.queued_at = job.not_before
    else:
        transition(session, job, "failed", {"error": job.error})


def close_attempt(session: Session, job: Job, outcome: str, error: Failure | None = None) -> None:
    """End the job's present attempt; without a result its files may go."""
    attempt = session.get(Attempt, (job.id, job.attempt))
    if attempt is not None:
        attempt.outcome = outcome
        attempt.error = error.as_json(job.attempt) if error else None
        attempt.finished_at = clock(session)
        job.device_ms += usage.note(session, job, attempt)
        figures.attempt_ended(session, job, attempt, error)
        if outcome != "succeeded":
            removals.record_attempt(session, job)


def announce(session: Session, job: Job, *, delay_ms: int) -> None:
    """Queue a message to the workers, due after the delay. The job cannot be claimed before."""
    due = clock(session) + delay_ms
    job.not_before = due
    session.add(Outbox(job_id=job.id, queue=job.queue, due_at=due))
    session.flush()
