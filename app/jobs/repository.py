"""Every SELECT about jobs. What a request reads is scoped to its tenant here; nothing else may query these tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ScalarSelect, func, select
from sqlalchemy.orm import Session

from app.db import clock as clock
from app.db import now_ms
from app.jobs.models import Attempt, Job, Outbox

# -- the worker's and the reconciler's side: not scoped, they serve every tenant ---------------------------------------


def next_queued_id(queues: Sequence[str]) -> ScalarSelect[Any]:
    """The id of the job to run next, as a subquery that skips rows others are claiming."""
    return (
        select(Job.id)
        .where(Job.status == "queued", Job.not_before <= now_ms(), Job.queue.in_(queues))
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )


def locked(session: Session, job_id: str) -> Job | None:
    """The job, its row locked until the transaction ends."""
    return session.execute(
        select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
    ).scalar_one_or_none()


def open_attempt(session: Session, job: Job) -> Attempt | None:
    return session.get(Attempt, (job.id, job.attempt))


def expired(session: Session, *, limit: int) -> Sequence[Job]:
    """Jobs whose worker has been silent past its lease, locked; rows somebody else holds are left to them."""
    return session.scalars(
        select(Job)
        .where(Job.lease_expires_at < now_ms())
        .order_by(Job.lease_expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def unannounced(session: Session, *, older_than_ms: int, limit: int) -> Sequence[Job]:
    """Queued jobs due now whose last message is old or was never sent: it may be lost."""
    return session.scalars(
        select(Job)
        .where(
            Job.status == "queued",
            Job.not_before <= now_ms() - older_than_ms,
            func.coalesce(Job.dispatched_at, 0) < now_ms() - older_than_ms,
            ~select(Outbox.id).where(Outbox.job_id == Job.id).exists(),
        )
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def due_messages(session: Session, *, limit: int) -> Sequence[tuple[int, str, str]]:
    """(outbox id, job id, queue) of messages to publish now."""
    rows = session.execute(
        select(Outbox.id, Outbox.job_id, Outbox.queue).where(Outbox.due_at <= now_ms()).order_by(Outbox.id).limit(limit)
    )
    return [(row.id, row.job_id, row.queue) for row in rows]


def statuses(session: Session, job_ids: Sequence[str]) -> dict[str, str]:
    """The status of each job that exists."""
    rows = session.execute(select(Job.id, Job.status).where(Job.id.in_(job_ids)))
    return {row.id: row.status for row in rows}


def exists(session: Session, job_id: str) -> bool:
    return session.scalar(select(Job.id).where(Job.id == job_id)) is not None
