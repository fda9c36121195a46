"""Retention: how much stays of a job's result, and for how long.

    keep      all: everything; front: everything, of the children of a sweep that are on its Pareto front, and of the
              others the report; report: the report
    days      that many days after the job's end this is applied; until then everything stays
    limit     the service may have a bound: from then on the report stays alone, whatever `keep` says

The report is its files (REPORT) and its rows. A policy is a job's own, or its tenant's, and counts as it was when the
job was submitted. Times are of the database's clock, a day is 86,400 s. `files_due_at` says when the files may go: it
is written when the job succeeds, or of a sweep's child when it is known not to be on the front (app/sweeps/front.py).

The reconciler removes them, one job after another: in one transaction its files are no longer the job's, and recorded
for deletion (results.py). Whoever is killed then leaves the rest to the next. A job that is pinned is left alone, and
one whose files something reads until that has ended.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import clock
from app.jobs import results
from app.jobs import upkeep_repository as repository
from app.jobs.models import Event, Job
from app.keys.models import Tenant

REPORT = ("manifest.json", "report.json", "report.html", "README.md")
DAY_MS = 86_400_000


class Policy(NamedTuple):
    """As Job has it."""

    keep: str = "all"
    keep_days: int = 0
    most_days: int | None = None


KEEP_ALL = Policy()


def policy(session: Session, tenant_id: str, asked: tuple[str, int] | None, most_days: int | None) -> Policy:
    """Of a job that is submitted with that (keep, days), or without."""
    if asked is None:
        keep, days = session.execute(select(Tenant.keep, Tenant.keep_days).where(Tenant.id == tenant_id)).one()
        asked = (keep or "all", days or 0)
    return Policy(*asked, most_days)


def note_end(job: Job) -> None:
    """Note when the files of a job that has succeeded may go, where that is known."""
    days = [days for days in (job.keep_days if job.keep == "report" else None, job.most_days) if days is not None]
    if days and job.finished_at is not None:
        job.files_due_at = job.finished_at + min(days) * DAY_MS


def note_not_on_front(job: Job) -> None:
    """Note that the policy of its sweep does not keep the files of a job that has succeeded."""
    assert job.finished_at is not None
    due_at = job.finished_at + job.keep_days * DAY_MS
    job.files_due_at = due_at if job.files_due_at is None else min(due_at, job.files_due_at)


def remove_next(session: Session) -> str | None:
    """Take the files that are not of the report from the job whose are due longest; returns its id, if there is one."""
    job = repository.lock_files_due(session)
    if job is None or job.finished_at is None or repository.files_needed(session, job.id):
        return None
    now = clock(session)
    because = job.keep if job.keep != "all" and now >= job.finished_at + job.keep_days * DAY_MS else "limit"
    gone = results.remove(session, job, but=REPORT)
    job.files_removed_at, job.files_removed_because = now, because
    job.version += 1
    job.updated_at = now
    job.event_seq += 1
    data = {"because": because, "files": gone.files, "bytes": gone.bytes}
    session.add(Event(job_id=job.id, seq=job.event_seq, type="files_removed", attempt=job.attempt, data=data, at=now))
    session.get_one(Tenant, job.tenant_id).removed_bytes += gone.bytes
    session.flush()
    return job.id
