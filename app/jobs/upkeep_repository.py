"""The SELECTs of the relay, the reconciler and the operator: over all tenants. Those named `lock_…` lock their rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, literal, select
from sqlalchemy.orm import Session

from app.db import now_ms
from app.jobs.models import Artifact, FileRemoval, IdempotencyKey, Job, Outbox
from app.publications.models import TO_DO, Publication

KEYS_AT_ONCE = 500


def due_messages(session: Session, *, limit: int) -> Sequence[tuple[int, str, str]]:
    """(outbox id, job id, queue) of messages to publish now."""
    rows = session.execute(
        select(Outbox.id, Outbox.job_id, Outbox.queue).where(Outbox.due_at <= now_ms()).order_by(Outbox.id).limit(limit)
    )
    return [(row.id, row.job_id, row.queue) for row in rows]


def unlocked_messages(message_ids: Sequence[int]) -> Select[int]:
    """Ids of the messages that are not locked, as a subquery that locks them."""
    return select(Outbox.id).where(Outbox.id.in_(message_ids)).with_for_update(skip_locked=True)


def lock_silent(session: Session, *, limit: int) -> Sequence[Job]:
    """Jobs whose lease has expired, locked; rows that are locked already are skipped."""
    return session.scalars(
        select(Job)
        .where(Job.lease_expires_at < now_ms())
        .order_by(Job.lease_expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def lock_unannounced(session: Session, *, older_than_ms: int, limit: int) -> Sequence[Job]:
    """Queued jobs whose last message was due so long ago, and is sent: it may be lost."""
    return session.scalars(
        select(Job)
        .where(
            Job.status == "queued",
            Job.not_before <= now_ms() - older_than_ms,
            ~select(Outbox.id).where(Outbox.job_id == Job.id).exists(),
        )
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()


def statuses(session: Session, job_ids: Collection[str]) -> dict[str, str]:
    """The status of each job that exists."""
    rows = session.execute(select(Job.id, Job.status).where(Job.id.in_(list(job_ids))))
    return {row.id: row.status for row in rows}


def job_ids(session: Session) -> set[str]:
    return set(session.scalars(select(Job.id)))


def any_artifact(session: Session) -> bool:
    return session.execute(select(Artifact.job_id).limit(1)).first() is not None


def due_removals(
    session: Session, *, job_ids: Collection[str] = (), after: int = 0, limit: int | None
) -> Sequence[FileRemoval]:
    """Removals of files that are to be done, of these jobs or of any, oldest first, behind that of the id `after`."""
    query = select(FileRemoval).where(FileRemoval.done_at.is_(None), FileRemoval.id > after)
    if job_ids:
        query = query.where(FileRemoval.job_id.in_(list(job_ids)))
    return session.scalars(query.order_by(FileRemoval.id).limit(limit)).all()


def lock_files_due(session: Session) -> Job | None:
    """The succeeded job whose files have been due longest and are not needed, locked; rows that are locked already are
    skipped. Whether they are needed is to be asked again, now that nobody can begin to."""
    return session.scalars(
        select(Job)
        .where(
            Job.files_due_at <= now_ms(),
            Job.files_removed_at.is_(None),
            Job.pinned.is_(False),
            ~_needed(Job.id),
        )
        .order_by(Job.files_due_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).one_or_none()


def files_needed(session: Session, job_id: str) -> bool:
    return bool(session.execute(select(_needed(literal(job_id)))).scalar_one())


def _needed(job_id: Any) -> ColumnElement[bool]:
    """Whether something has yet to read the files of a job's result: here stands all that may."""
    return select(Publication.id).where(Publication.job_id == job_id, Publication.state.in_(TO_DO)).exists()


def in_use(session: Session, keys: Sequence[str]) -> set[str]:
    """Those of the keys that a result names."""
    found: set[str] = set()
    for first in range(0, len(keys), KEYS_AT_ONCE):
        among = keys[first : first + KEYS_AT_ONCE]
        found |= set(session.scalars(select(Artifact.key).where(Artifact.key.in_(among)).distinct()))
    return found


def deleted_job_ids(session: Session, among: Collection[str] | None = None) -> set[str]:
    """The jobs, all or of these, that this database has deleted, as far back as it remembers."""
    query = select(FileRemoval.job_id).where(FileRemoval.attempt.is_(None))
    return set(session.scalars(query if among is None else query.where(FileRemoval.job_id.in_(list(among)))))


def expired_idempotency_keys() -> Select[str, str, str]:
    """The primary keys of answers past their time, as a subquery that skips rows others have locked."""
    return (
        select(IdempotencyKey.tenant_id, IdempotencyKey.route, IdempotencyKey.key)
        .where(IdempotencyKey.expires_at < now_ms())
        .with_for_update(skip_locked=True)
    )
