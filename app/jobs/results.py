"""Files of results: which a job has, and that equal ones of a tenant are stored once.

A row of `artifacts` names the place of its file in the store; equal files of a tenant's jobs have the same place, that
of the job which came first. Whatever lies in a folder of an attempt that has ended and that no row names may go
(removals.py), so a file goes when the last row that names it has gone. Two tenants never share a file: nothing that one
of them does or sees depends on the files of another.

Rows are made and go while the tenant is locked, and a row is made for a file of another job only while that job's row
is there. So from when no row names a file on, none ever will, and the removal need not be locked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from app.jobs import removals, usage
from app.jobs import upkeep_repository as repository
from app.jobs.models import Artifact, Job, RemovedArtifact
from app.keys.models import Tenant
from app.storage import attempt_of
from workers.engine.report import FileEntry


class Gone(NamedTuple):
    """Files of a job that were removed."""

    files: int
    bytes: int


def stored(session: Session, tenant_id: str, digests: Collection[str], but: Collection[str] = ()) -> dict[str, str]:
    """sha256 -> key of the tenant's files that have one of the digests, without the keys in `but`."""
    rows = session.execute(
        select(Artifact.sha256, func.min(Artifact.key))
        .where(Artifact.tenant_id == tenant_id, Artifact.sha256.in_(sorted(digests)), Artifact.key.not_in(but))
        .group_by(Artifact.sha256)
    )
    return {row[0]: row[1] for row in rows}


def add(session: Session, job: Job, files: Sequence[tuple[FileEntry, str]], damaged: Collection[str] = ()) -> None:
    """Make the files the job's. `files` are (entry, key), uploaded by its present attempt; those that are equal to
    others of the tenant are recorded for removal. `damaged` are keys that no row may be made for.

    The manifest is the job's own always: that it lies in the attempt's folder says that the attempt was completed.
    """
    _lock(session, job.tenant_id)
    shareable = [entry.sha256 for entry, _ in files if entry.path != removals.LAST_FILE]
    keys = stored(session, job.tenant_id, shareable, damaged)
    rows, new_bytes, doubled = [], 0, False
    for entry, key in files:
        used = keys.setdefault(entry.sha256, key) if entry.path != removals.LAST_FILE else key
        doubled |= used != key
        new_bytes += entry.bytes if used == key else 0
        rows.append(
            {
                "job_id": job.id,
                "path": entry.path,
                "bytes": entry.bytes,
                "sha256": entry.sha256,
                "key": used,
                "tenant_id": job.tenant_id,
            }
        )
    session.execute(insert(Artifact), rows)
    if doubled:
        removals.record_attempt(session, job)
    job.stored_bytes = sum(entry.bytes for entry, _ in files)
    session.flush()
    usage.count_stored(session, job.tenant_id, new_bytes)


def remove(session: Session, job: Job, *, but: Collection[str]) -> Gone:
    """Take its files from the job, but for those of these names; a download of one is told so from then on."""
    rows = session.scalars(select(Artifact).where(Artifact.job_id == job.id, Artifact.path.not_in(but))).all()
    if not rows:
        return Gone(0, 0)
    session.execute(
        insert(RemovedArtifact),
        [{"job_id": job.id, "path": row.path, "bytes": row.bytes, "sha256": row.sha256} for row in rows],
    )
    keys = {row.key: row.bytes for row in rows}
    gone = Gone(len(rows), sum(row.bytes for row in rows))
    session.execute(delete(Artifact).where(Artifact.job_id == job.id, Artifact.path.not_in(but)))
    job.stored_bytes -= gone.bytes
    session.flush()
    forget(session, job.tenant_id, keys, deleted=())
    return gone


def keys_of(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """Key -> bytes of the jobs' files."""
    rows = session.execute(select(Artifact.key, Artifact.bytes).where(Artifact.job_id.in_(job_ids)))
    return {row.key: row.bytes for row in rows}


def forget(session: Session, tenant_id: str, keys: Mapping[str, int], *, deleted: Collection[str]) -> None:
    """Record for removal those of the keys that no row names any more. `keys` are key -> bytes of rows that this
    transaction has deleted; folders of the jobs in `deleted` are recorded already.

    The last that a transaction does with a tenant's files: it locks the tenant.
    """
    _lock(session, tenant_id)
    named = repository.in_use(session, list(keys))
    freed = {key: size for key, size in keys.items() if key not in named}
    for attempt in sorted({found for key in freed if (found := attempt_of(key)) and found.job_id not in deleted}):
        removals.record_files(session, attempt)
    usage.count_stored(session, tenant_id, -sum(freed.values()))


def _lock(session: Session, tenant_id: str) -> None:
    session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))
