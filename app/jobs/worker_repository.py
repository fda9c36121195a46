"""The SELECTs of workers: over all tenants, and locking what they are about to change."""

from __future__ import annotations

from sqlalchemy import ScalarSelect, Select, select, tuple_
from sqlalchemy.orm import Session

from app.db import now_ms
from app.jobs.fleet import Worker
from app.jobs.models import Attempt, DeviceLease, FileRemoval, Job

_ORDER = (Job.priority.desc(), Job.created_at, Job.id)


def free_devices(session: Session, worker: Worker) -> list[str]:
    """Keys of the worker's devices that no job holds, in the worker's order."""
    held = set(session.scalars(select(DeviceLease.device).where(DeviceLease.device.in_(list(worker.devices)))))
    return [key for key in worker.devices if key not in held]


def next_to_run(session: Session, worker: Worker, *, free: int, overtaking_ms: int) -> Select[str]:
    """The id of the job to run next on `free` of the worker's devices.

    A job that needs more and has waited for longer than `overtaking_ms` is the end of the queue, be its row locked or
    not.
    """
    query = _due(worker).where(Job.devices <= free).order_by(*_ORDER).limit(1)
    if free == len(worker.devices):
        return query
    large = _due(worker).where(Job.devices > free, Job.created_at < now_ms() - overtaking_ms)
    kept_for = session.execute(
        large.with_only_columns(Job.priority, Job.created_at, Job.id).order_by(*_ORDER).limit(1)
    ).one_or_none()
    if kept_for is None:
        return query
    older = tuple_(Job.created_at, Job.id) < (kept_for.created_at, kept_for.id)
    return query.where((Job.priority > kept_for.priority) | ((Job.priority == kept_for.priority) & older))


def unlocked(job_id: Select[str]) -> ScalarSelect[str]:
    """The same as a subquery that passes over rows that others have locked, and locks its own."""
    return job_id.with_for_update(skip_locked=True).scalar_subquery()


def any_to_run(session: Session, worker: Worker, *, overtaking_ms: int) -> bool:
    """Whether a job waits that enough of the worker's devices are free for, be its row locked or not."""
    if not (free := len(free_devices(session, worker))):
        return False
    return session.execute(next_to_run(session, worker, free=free, overtaking_ms=overtaking_ms)).first() is not None


def lock_next(session: Session, worker: Worker, *, overtaking_ms: int) -> Job | None:
    """The next job that enough of the worker's devices are free for, locked."""
    free = len(free_devices(session, worker))
    found = next_to_run(session, worker, free=free, overtaking_ms=overtaking_ms)
    return session.scalars(select(Job).where(Job.id == unlocked(found))).one_or_none()


def _due(worker: Worker) -> Select[str]:
    """The jobs due now that the worker could take with all its devices."""
    return select(Job.id).where(
        Job.status == "queued",
        Job.not_before <= now_ms(),
        Job.queue.in_(worker.queues),
        Job.devices <= len(worker.devices),
    )


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
