"""Every SELECT about jobs. What a request reads is scoped to its tenant here; nothing else may query these tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, ScalarSelect, Select, bindparam, func, select, tuple_, union_all
from sqlalchemy.orm import Session

from app.db import clock as clock
from app.db import now_ms
from app.jobs.models import (
    Artifact,
    Attempt,
    Event,
    FileRemoval,
    IdempotencyKey,
    Job,
    JobLabel,
    Outbox,
    ReportRecord,
)
from app.jobs.views import COLUMNS, JobView
from app.keys.models import ApiKey
from app.keys.repository import KEY_COLUMNS, KeyView

Child = TypeVar("Child", Artifact, Attempt, Event, ReportRecord)

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


def any_due(session: Session, queues: Sequence[str]) -> bool:
    """Whether a job waits for a worker of these queues, be its row locked or not."""
    due = select(Job.id).where(Job.status == "queued", Job.not_before <= now_ms(), Job.queue.in_(queues))
    return session.execute(due.limit(1)).first() is not None


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


def lock_in_order(session: Session, job_ids: Iterable[str]) -> None:
    """Lock the rows of those of the jobs that exist, in the order of their ids."""
    session.execute(select(Job.id).where(Job.id.in_(list(job_ids))).order_by(Job.id).with_for_update()).all()


def statuses(session: Session, job_ids: Collection[str]) -> dict[str, str]:
    """The status of each job that exists."""
    rows = session.execute(select(Job.id, Job.status).where(Job.id.in_(list(job_ids))))
    return {row.id: row.status for row in rows}


def outcome(session: Session, job_id: str, number: int, fence: int) -> str | None:
    """How the attempt ended, `running` if it has not; None where there is none with that fence."""
    return session.scalar(
        select(Attempt.outcome).where(Attempt.job_id == job_id, Attempt.number == number, Attempt.fence == fence)
    )


def any_artifact(session: Session) -> bool:
    return session.execute(select(Artifact.job_id).limit(1)).first() is not None


def due_removals(session: Session, *, job_ids: Collection[str] = (), limit: int | None) -> Sequence[FileRemoval]:
    """Removals of files that are to be done, of these jobs or of any, oldest first."""
    query = select(FileRemoval).where(FileRemoval.done_at.is_(None))
    if job_ids:
        query = query.where(FileRemoval.job_id.in_(list(job_ids)))
    return session.scalars(query.order_by(FileRemoval.id).limit(limit)).all()


def deleted(session: Session, among: Collection[str] | None = None) -> set[str]:
    """The jobs, all or of these, that this database has deleted, as far back as it remembers."""
    query = select(FileRemoval.job_id).where(FileRemoval.attempt.is_(None))
    return set(session.scalars(query if among is None else query.where(FileRemoval.job_id.in_(list(among)))))


def job_ids(session: Session) -> set[str]:
    return set(session.scalars(select(Job.id)))


def expired_idempotency_keys() -> Select[str, str, str]:
    """The primary keys of answers past their time, as a subquery that skips rows others have locked."""
    return (
        select(IdempotencyKey.tenant_id, IdempotencyKey.route, IdempotencyKey.key)
        .where(IdempotencyKey.expires_at < now_ms())
        .with_for_update(skip_locked=True)
    )


# -- probes and metrics: counts over all tenants -----------------------------------------------------------------------


@dataclass(frozen=True)
class Backlog:
    """What waits now. Seconds are 0 where nothing does."""

    outbox_pending: int
    outbox_oldest_s: float
    queue_oldest_s: float
    leases_expired: int


def backlog(session: Session) -> Backlog:
    oldest_due = select(func.min(Job.not_before)).where(Job.status == "queued").scalar_subquery()
    return Backlog(
        outbox_pending=session.execute(select(func.count()).select_from(Outbox)).scalar_one(),
        outbox_oldest_s=outbox_oldest_s(session),
        queue_oldest_s=_age_s(session.execute(select(now_ms() - oldest_due)).scalar_one()),
        leases_expired=session.execute(select(func.count()).where(Job.lease_expires_at < now_ms())).scalar_one(),
    )


def outbox_oldest_s(session: Session) -> float:
    """How long the oldest unpublished message has been due."""
    return _age_s(session.execute(select(now_ms() - func.min(Outbox.due_at))).scalar_one())


def count_by_status(session: Session) -> dict[str, int]:
    rows = session.execute(select(Job.status, func.count().label("jobs")).group_by(Job.status))
    return {row.status: row.jobs for row in rows}


def count_failures(session: Session) -> dict[str, int]:
    """Attempts that failed or were lost, by error code. Deleting a job takes its attempts along."""
    code = Attempt.error["code"].as_string()
    rows = session.execute(
        select(code.label("code"), func.count().label("attempts"))
        .where(Attempt.outcome.in_(("failed", "lost")))
        .group_by(code)
    )
    return {row.code: row.attempts for row in rows}


def _age_s(milliseconds: int | None) -> float:
    return max(milliseconds or 0, 0) / 1000


# -- the client's side: scoped to one tenant ---------------------------------------------------------------------------

QUEUE_DEPTH = 1000
"""Places in the queue beyond this are not counted: nobody waits for the exact number."""
_NEWEST = (Job.created_at.desc(), Job.id.desc())


@dataclass(frozen=True)
class Filters:
    """What a list of jobs is narrowed to; an empty one is not."""

    statuses: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    model_id: str | None = None
    verdict: str | None = None
    created_after: int | None = None
    """Milliseconds, exclusive."""
    created_before: int | None = None


def view(session: Session, tenant_id: str, job_id: str) -> JobView | None:
    row = session.execute(select(*COLUMNS).where(Job.id == job_id, Job.tenant_id == tenant_id)).one_or_none()
    return None if row is None else JobView(*row)


def owned(session: Session, tenant_id: str, job_id: str) -> Job | None:
    """The tenant's job, its row locked until the transaction ends."""
    return session.execute(
        select(Job)
        .where(Job.id == job_id, Job.tenant_id == tenant_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()


def page(
    session: Session, tenant_id: str, filters: Filters, *, older_than: tuple[int, str] | None, limit: int
) -> list[JobView]:
    """The tenant's jobs that pass the filters, newest first, from behind `older_than` = (created_at, id)."""
    conditions = [Job.tenant_id == tenant_id]
    if filters.model_id is not None:
        conditions.append(Job.model_id == filters.model_id)
    if filters.verdict is not None:
        conditions.append(Job.verdict == filters.verdict)
    if filters.created_after is not None:
        conditions.append(Job.created_at > filters.created_after)
    if filters.created_before is not None:
        conditions.append(Job.created_at < filters.created_before)
    if older_than is not None:
        conditions.append(tuple_(Job.created_at, Job.id) < older_than)
    for key, value in filters.labels:
        conditions.append(Job.id.in_(select(JobLabel.job_id).where(JobLabel.key == key, JobLabel.value == value)))
    if filters.statuses:
        # An index gives one status in order; of several, each is read up to the limit, then merged.
        of_each = [
            select(Job.id).where(*conditions, Job.status == status).order_by(*_NEWEST).limit(limit).subquery()
            for status in filters.statuses
        ]
        conditions = [Job.id.in_(union_all(*(select(found.c.id) for found in of_each)))]
    rows = session.execute(select(*COLUMNS).where(*conditions).order_by(*_NEWEST).limit(limit))
    return [JobView(*row) for row in rows]


def queue_positions(connection: Connection | Session, job_ids: Sequence[str]) -> dict[str, int]:
    """Place in the order of claims, from 1, of those of the jobs that are among the first QUEUE_DEPTH queued."""
    order = (Job.priority.desc(), Job.created_at, Job.id)
    line = (
        select(Job.id, func.row_number().over(order_by=order).label("position"))
        .where(Job.status == "queued")
        .order_by(*order)
        .limit(QUEUE_DEPTH)
        .subquery()
    )
    rows = connection.execute(select(line.c.id, line.c.position).where(line.c.id.in_(job_ids)))
    return {row.id: row.position for row in rows}


_KEYS_AND_JOBS = (
    select(*KEY_COLUMNS, *COLUMNS)
    .join_from(
        ApiKey,
        Job,
        (Job.tenant_id == ApiKey.tenant_id) & Job.id.in_(bindparam("job_ids", expanding=True)),
        isouter=True,
    )
    .where(ApiKey.hash.in_(bindparam("key_hashes", expanding=True)))
)


def keys_and_jobs(
    connection: Connection, key_hashes: Sequence[str], job_ids: Sequence[str]
) -> tuple[dict[str, KeyView], dict[tuple[str, str], JobView]]:
    """The keys by hash, and by (tenant, id) those of the jobs that belong to the keys' tenants. One query."""
    keys: dict[str, KeyView] = {}
    jobs: dict[tuple[str, str], JobView] = {}
    width = len(KEY_COLUMNS)
    for row in connection.execute(_KEYS_AND_JOBS, {"key_hashes": key_hashes, "job_ids": job_ids}):
        key = KeyView(*row[:width])
        keys[key.hash] = key
        if row[width] is not None:
            jobs[key.tenant_id, row[width]] = JobView(*row[width:])
    return keys, jobs


def label_count(session: Session, job_id: str) -> int:
    return session.execute(select(func.count()).where(JobLabel.job_id == job_id)).scalar_one()


def events(session: Session, tenant_id: str, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
    return session.scalars(
        _of_job(Event, tenant_id, job_id).where(Event.seq > after).order_by(Event.seq).limit(limit)
    ).all()


def attempts(session: Session, tenant_id: str, job_id: str) -> Sequence[Attempt]:
    return session.scalars(_of_job(Attempt, tenant_id, job_id).order_by(Attempt.number)).all()


def attempt(session: Session, tenant_id: str, job_id: str, number: int) -> Attempt | None:
    return session.scalar(_of_job(Attempt, tenant_id, job_id).where(Attempt.number == number))


def artifacts(session: Session, tenant_id: str, job_id: str) -> Sequence[Artifact]:
    return session.scalars(_of_job(Artifact, tenant_id, job_id).order_by(Artifact.path)).all()


def artifact(session: Session, tenant_id: str, job_id: str, path: str) -> Artifact | None:
    return session.scalar(_of_job(Artifact, tenant_id, job_id).where(Artifact.path == path))


def report(session: Session, tenant_id: str, job_id: str) -> dict[str, Any] | None:
    record = session.scalar(_of_job(ReportRecord, tenant_id, job_id))
    return None if record is None else record.body


def idempotency_key(session: Session, tenant_id: str, route: str, key: str) -> IdempotencyKey | None:
    """The remembered answer, unless its time is over."""
    return session.scalar(
        select(IdempotencyKey).where(
            IdempotencyKey.tenant_id == tenant_id,
            IdempotencyKey.route == route,
            IdempotencyKey.key == key,
            IdempotencyKey.expires_at > now_ms(),
        )
    )


def _of_job(record: type[Child], tenant_id: str, job_id: str) -> Select[Child]:
    return select(record).join(Job, Job.id == record.job_id).where(record.job_id == job_id, Job.tenant_id == tenant_id)
