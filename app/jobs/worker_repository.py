"""The SELECTs of workers: over all tenants, and locking what they are about to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ScalarSelect, select
from sqlalchemy.orm import Session

from app.db import now_ms
from app.jobs.models import Attempt, FileRemoval, Job


def next_to_run(queues: Sequence[str]) -> ScalarSelect[Any]:
    """The id of the job to run next, as a subquery that skips rows others are claiming."""
    return (
        select(Job.id)
        .where(Job.status == "queued", Job.not_before <= now_ms(), Job.queue.in_(queues))
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )


def any_due(session: Session, queues: Sequence[str]) -> bool:
    """Whether a job waits for a worker of these queues, be its row locked or not."""
    due = select(Job.id).where(Job.status == "queued", Job.not_before <= now_ms(), Job.queue.in_(queues))
    return session.execute(due.limit(1)).first() is not None


def lock_job(session: Session, job_id: str) -> Job | None:
    """The job, its row locked until the transaction ends."""
    return session.execute(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    ).scalar_one_or_none()


def attempt_outcome(session: Session, job_id: str, number: int, fence: int) -> str | None:
    """How the attempt ended, `running` if it has not; None where there is none with that fence."""
    return session.scalar(
        select(Attempt.outcome).where(Attempt.job_id == job_id, Attempt.number == number, Attempt.fence == fence)
    )


def is_deleted(session: Session, job_id: str) -> bool:
    """Whether this database has deleted the job, as far back as it remembers."""
    query = select(FileRemoval.id).where(FileRemoval.job_id == job_id, FileRemoval.attempt.is_(None))
    return session.execute(query.limit(1)).first() is not None
