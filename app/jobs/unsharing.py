"""Files of results each stored for itself again, for versions from before equal files were stored once.

Those delete a job's folder whole, also what other jobs have in it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.db import Database
from app.jobs import removals, results, usage
from app.jobs.models import Artifact, Job
from app.storage import ArtifactStore

SINCE = "0015"
"""Revision of the schema that came with them."""


class Elsewhere(NamedTuple):
    """A file of a job that lies in another's folder."""

    job_id: str
    path: str
    bytes: int
    key: str
    tenant_id: str
    attempt: int
    fence: int


def elsewhere(session: Session) -> list[Elsewhere]:
    rows = session.execute(
        select(
            Artifact.job_id, Artifact.path, Artifact.bytes, Artifact.key, Job.tenant_id, Job.attempt, Job.fence
        ).join(Job, Job.id == Artifact.job_id)
    )
    return [found for row in rows if (found := Elsewhere(*row)).job_id not in found.key.split("/")[:2]]


def unshare(database: Database, store: ArtifactStore) -> int:
    """Copy them to their jobs' own folders; returns how many. Nobody else may be at work. Repeatable."""
    with database.read() as session:
        found = elsewhere(session)
    copied = 0
    for file in found:
        size = store.size(file.key)
        if size is None:  # lost before: there is nothing to copy
            continue
        key = store.file_key(file.tenant_id, file.job_id, file.attempt, file.fence, file.path)
        store.put_pieces(key, store.open_range(file.key, 0, size))
        database.transact(partial(_move, file=file, key=key))
        copied += 1
    removals.work_off(database, store)  # of what no job names any more
    return copied


def _move(session: Session, file: Elsewhere, key: str) -> None:
    mine = (Artifact.job_id == file.job_id) & (Artifact.path == file.path)
    session.execute(update(Artifact).where(mine).values(key=key))
    usage.count_stored(session, file.tenant_id, file.bytes)
    session.flush()
    results.forget(session, file.tenant_id, {file.key: file.bytes}, deleted=())
