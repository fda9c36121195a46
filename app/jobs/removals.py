"""Files that may go, and nothing else: a row says so, written with the deletion of the job or the end of the attempt,
or when nothing names a file of it any more (results.py). What a result names stays, whatever rows there are.

Whatever has no such row stays: a job that the database does not know may be another deployment's, or newer than the
backup the database was restored from. Rows are worked off after their commit, by the API at once and by the
reconciler for good; to do one twice is harmless. They are kept a while: scratch of a deleted job may lie on hosts that
are off, and a worker that was frozen may still upload.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

import structlog
from sqlalchemy import delete, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.db import Database, clock, now_ms
from app.jobs import upkeep_repository as repository
from app.jobs.models import ACTIVE, FileRemoval, Job
from app.storage import ArtifactStore, AttemptFolder, StorageError

log = structlog.get_logger(__name__)

LAST_FILE = "manifest.json"
"""Uploaded when all other files of a result are there."""
KEPT_MS = 30 * 86_400_000
FAILED_KEPT_S = 24 * 3600.0
AT_ONCE = 100
CLIENT_WAITS_S = 5.0
IDLE_S = 60.0
"""Grace for scratch: the folder may be an attempt's that is about to notice that it was fenced."""


def record_job(session: Session, job: Job) -> None:
    """All files of the job, which this transaction deletes."""
    now = clock(session)
    session.add(FileRemoval(tenant_id=job.tenant_id, job_id=job.id, recorded_at=now))


def record_attempt(session: Session, job: Job) -> None:
    """Record the uploads of the present attempt for removal, as this transaction ends it without a result. Its log
    stays."""
    now = clock(session)
    session.add(
        FileRemoval(tenant_id=job.tenant_id, job_id=job.id, attempt=job.attempt, fence=job.fence, recorded_at=now)
    )


def record_files(session: Session, folder: AttemptFolder) -> None:
    """Record those files of an ended attempt for removal that no result names."""
    tenant_id, job_id, attempt, fence = folder
    session.add(
        FileRemoval(tenant_id=tenant_id, job_id=job_id, attempt=attempt, fence=fence, recorded_at=clock(session))
    )


def work_off(
    database: Database, store: ArtifactStore, *, job_ids: Collection[str] = (), for_s: float = math.inf
) -> None:
    """Delete the files of removals that are due, of these jobs or of any, oldest first. None is begun after `for_s`: a
    store that is away is asked for a minute each time."""
    end = time.monotonic() + for_s
    after, late = 0, False
    while not late:
        with database.read() as session:
            due = repository.due_removals(session, job_ids=job_ids, after=after, limit=AT_ONCE)
        if not due:
            return
        after, done = due[-1].id, []
        for removal in due:
            try:
                _delete(database, store, removal)
                done.append(removal.id)
            except (OSError, StorageError) as error:  # tried again next time, and those behind it now
                log.warning("files_left_behind", job_id=removal.job_id, error=repr(error))
            if late := time.monotonic() > end:
                break
        if done:
            database.transact(partial(_close, done=done))


def work_off_now(database: Database, store: ArtifactStore, job_ids: Collection[str]) -> None:
    """The same for a client who has just deleted the jobs and waits: what cannot be done now, the reconciler does
    later."""
    try:
        if job_ids:
            work_off(database, store, job_ids=job_ids, for_s=CLIENT_WAITS_S)
    except SQLAlchemyError as error:
        log.warning("files_left_behind", error=repr(error))


def _close(session: Session, done: Sequence[int]) -> None:
    session.execute(
        update(FileRemoval).where(FileRemoval.id.in_(done)).values(done_at=now_ms()),
        execution_options={"synchronize_session": False},
    )


def due_again(session: Session, job_ids: Iterable[str]) -> None:
    """Files of deleted jobs that were uploaded after the deletion."""
    session.execute(
        update(FileRemoval)
        .where(FileRemoval.job_id.in_(list(job_ids)), FileRemoval.attempt.is_(None))
        .values(done_at=None),
        execution_options={"synchronize_session": False},
    )


def forget(session: Session) -> None:
    """Drop the rows that were worked off long ago."""
    session.execute(delete(FileRemoval).where(FileRemoval.done_at < now_ms() - KEPT_MS))


def nobodys(session: Session, job_ids: Collection[str]) -> set[str]:
    """Those of the ids that the database has neither as a job nor as one it has deleted: their files stay."""
    return set(job_ids) - repository.job_ids(session) - repository.deleted_job_ids(session)


def scratch_to_forget(session: Session, idle_s: Mapping[str, float]) -> list[str]:
    """The jobs, of those with scratch untouched for so many seconds, whose scratch no attempt will use again.

    That is so for jobs that have ended or are deleted. Finished blocks of a failed one wait a day for a retry.
    """
    statuses = repository.statuses(session, idle_s)
    deleted = repository.deleted_job_ids(session, idle_s.keys())
    kept_s = {job_id: FAILED_KEPT_S if status == "failed" else IDLE_S for job_id, status in statuses.items()}
    ended = deleted.union(job_id for job_id, status in statuses.items() if status not in ACTIVE)
    return [job_id for job_id in idle_s if job_id in ended and idle_s[job_id] > kept_s.get(job_id, IDLE_S)]


def keeps_whole_result(session: Session, store: ArtifactStore, removal: FileRemoval) -> bool:
    """Whether a whole result lies under an attempt that has none here, and so stays until its job is deleted.

    A database restored from a backup does not know that the attempt has succeeded since.
    """
    if removal.attempt is None or removal.fence is None:
        return False
    key = store.file_key(removal.tenant_id, removal.job_id, removal.attempt, removal.fence, LAST_FILE)
    return store.size(key) is not None and not repository.in_use(session, [key])


def _delete(database: Database, store: ArtifactStore, removal: FileRemoval) -> None:
    def in_use(keys: Sequence[str]) -> Collection[str]:
        with database.read() as session:
            return repository.in_use(session, keys)

    if removal.attempt is None or removal.fence is None:
        store.delete_job(removal.tenant_id, removal.job_id, in_use)
        return
    with database.read() as session:
        whole = keeps_whole_result(session, store, removal)
    if whole:
        log.warning("whole_result_kept", job_id=removal.job_id, attempt=removal.attempt)
    else:
        store.delete_files(removal.tenant_id, removal.job_id, removal.attempt, removal.fence, in_use)
