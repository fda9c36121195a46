"""The SELECTs of workers: over all tenants, and locking what they are about to change."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ScalarSelect, Select, literal, select
from sqlalchemy.orm import Session

from app.db import now_ms
from app.jobs.fleet import Worker
from app.jobs.models import Attempt, DeviceLease, FileRemoval, Job, Outbox
from app.jobs.turns import beyond, turns


def free_devices(session: Session, worker: Worker) -> list[str]:
    """Keys of the worker's devices that no job holds, in the worker's order."""
    held = set(session.scalars(select(DeviceLease.device).where(DeviceLease.device.in_(list(worker.devices)))))
    return [key for key in worker.devices if key not in held]


def unlocked(job_id: Select[str]) -> ScalarSelect[str]:
    """The same as a subquery that passes over rows that others have locked, and locks its own."""
    return job_id.with_for_update(skip_locked=True).scalar_subquery()


def any_to_run(session: Session, worker: Worker, *, overtaking_ms: int) -> bool:
    """Whether a job waits that enough of the worker's devices are free for, be its row locked or not."""
    if not (free := len(free_devices(session, worker))):
        return False
    return any(
        session.execute(turn.job).first() is not None
        for turn in turns(session, worker, free=free, overtaking_ms=overtaking_ms)
    )


def lock_next(session: Session, worker: Worker, *, overtaking_ms: int) -> Job | None:
    """The next job that enough of the worker's devices are free for, locked."""
    free = len(free_devices(session, worker))
    for turn in turns(session, worker, free=free, overtaking_ms=overtaking_ms):
        job = session.scalars(select(Job).where(Job.id == unlocked(turn.job))).one_or_none()
        if job is not None:
            return job
    return None


def lock_beyond(session: Session, worker: Worker, *, limit: int) -> Sequence[Job]:
    """Jobs due now that the worker cannot take, and that have no message waiting, locked; oldest first."""
    return session.scalars(
        select(Job)
        .where(
            Job.status == literal("queued", literal_execute=True),  # as the index has it
            Job.not_before <= now_ms(),
            Job.queue.in_(worker.queues),
            beyond(worker),
            ~select(Outbox.id).where(Outbox.job_id == Job.id).exists(),
        )
        .order_by(Job.created_at, Job.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


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
