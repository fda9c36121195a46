"""What the relay and the reconciler do to jobs: messages that were sent or lost, workers that fell silent, old keys.

See lifecycle.py.
"""

from __future__ import annotations

from sqlalchemy import delete, tuple_, update
from sqlalchemy.orm import Session

from app.db import clock, now_ms
from app.failure import Failure
from app.jobs import upkeep_repository as repository
from app.jobs.lifecycle import announce, close_attempt, fail_or_retry, transition
from app.jobs.models import IdempotencyKey, Job, Outbox


def reap(session: Session, *, backoff_s: float, limit: int = 100) -> list[tuple[str, int]]:
    """Take jobs back from workers silent past their lease. Returns (job id, attempt) of what no longer holds."""
    jobs = repository.lock_silent(session, limit=limit)
    for job in jobs:
        if job.status == "cancelling":
            close_attempt(session, job, "cancelled")
            transition(session, job, "cancelled")
            continue
        overdue = job.deadline_at is not None and job.deadline_at < clock(session)
        error = Failure(
            code="timeout" if overdue else "worker_lost",
            message=f"worker {job.lease_owner} fell silent in stage {job.stage or 'load'}",
            hint="The job goes on by itself while attempts are left. If this repeats, the worker is being killed: "
            "look at its host's memory.",
            retryable=not overdue,
            stage=job.stage,
        )
        fail_or_retry(session, job, error, outcome="lost", backoff_s=backoff_s)
    return [(job.id, job.attempt) for job in jobs]


def announce_again(session: Session, *, older_than_s: float, limit: int = 16) -> int:
    """Queue new messages for queued jobs whose last one may be lost. Few suffice: any message means "look"."""
    jobs = repository.lock_unannounced(session, older_than_ms=int(older_than_s * 1000), limit=limit)
    for job in jobs:
        announce(session, job, delay_ms=0)
    return len(jobs)


def mark_sent(session: Session, sent: list[tuple[int, str]]) -> None:
    """Forget published messages, given as (outbox id, job id)."""
    repository.lock_jobs(session, {job_id for _, job_id in sent})
    session.execute(delete(Outbox).where(Outbox.id.in_([outbox_id for outbox_id, _ in sent])))
    session.execute(
        update(Job).where(Job.id.in_([job_id for _, job_id in sent])).values(dispatched_at=now_ms()),
        execution_options={"synchronize_session": False},
    )


def forget_idempotency_keys(session: Session) -> None:
    """Remove the ones past their time, but for those that a submission is just replacing."""
    key = tuple_(IdempotencyKey.tenant_id, IdempotencyKey.route, IdempotencyKey.key)
    session.execute(
        delete(IdempotencyKey).where(key.in_(repository.expired_idempotency_keys())),
        execution_options={"synchronize_session": False},
    )
