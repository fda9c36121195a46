"""Operations of workers on jobs: claim one, report progress, end the attempt. See lifecycle.py.

Whoever acts for an attempt passes its `Claim`; if the job has since been claimed by another, `Fenced` is raised and
nothing is written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, case, func, update
from sqlalchemy.orm import Session

from app.db import clock, now_ms
from app.failure import Failure
from app.jobs import figures, fleet, results, retention, turns, usage
from app.jobs import worker_repository as repository
from app.jobs.fleet import Worker
from app.jobs.lifecycle import HELD, announce, close_attempt, fail_or_retry, transition
from app.jobs.models import Attempt, DeviceLease, Event, Job, Outbox, ReportRecord
from app.jobs.needs import Live, Needs, waiting_for
from app.jobs.turns import Turn
from app.publications import outbox as publications
from app.webhooks import outbox
from workers.engine.report import FileEntry, Report

PASSED_ON = 16
"""Of the jobs that a worker cannot take, so many are looked at."""
PASS_ON_MS = 500


class Fenced(Exception):
    """The attempt no longer owns the job: its lease expired and the job was requeued."""


@dataclass(frozen=True)
class Claim:
    """The right to work on a job, while its fencing token is the latest."""

    job_id: str
    tenant_id: str
    attempt: int
    fence: int
    spec: dict[str, Any]
    deadline_s: int
    devices: tuple[str, ...]
    """Names of those that the worker has given it."""
    waited_ms: int = 0
    """For a worker, since it could have run."""
    traceparent: str | None = None
    """Of the request that made it."""
    last: bool = False
    """No attempt is left after this one."""


@dataclass(frozen=True)
class Orders:
    """Orders that a worker gets when it renews its lease."""

    cancel: bool
    pause: bool
    overdue: bool


def claim(session: Session, worker: Worker, *, ttl_s: float, overtaking_ms: int) -> Claim | None:
    """Take the next queued job that enough of the worker's devices are free for, or None; it has them until it ends.

    One compare-and-set UPDATE: of many claimants one wins. Whose turn it is, and which of the tenant's jobs is next,
    says turns.py. A job that needs more devices than are free is passed over, but only for `overtaking_ms` from its
    submission: after that the worker takes nothing behind it in its tenant's turn, so that it starts at the latest when
    the worker's running jobs have ended.
    """
    fleet.make_known(session, worker, ttl_s=ttl_s)
    free = repository.free_devices(session, worker)
    if not free:
        return None
    turn, row = _take(session, worker, free=len(free), ttl_s=ttl_s, overtaking_ms=overtaking_ms)
    if turn is None or row is None:
        return None
    taken = free[: row.devices]
    session.add_all(DeviceLease(device=key, job_id=row.id) for key in sorted(taken))
    names = tuple(worker.devices[key] for key in taken)
    session.add(
        Attempt(
            job_id=row.id,
            number=row.attempt,
            fence=row.fence,
            worker=worker.name,
            started_at=row.updated_at,
            price=worker.price(taken),
            currency=worker.currency or None,
        )
    )
    session.add(
        Event(
            job_id=row.id,
            seq=row.event_seq,
            type="running",
            attempt=row.attempt,
            data={"worker": worker.name, "devices": names},
            at=row.updated_at,
        )
    )
    session.flush()
    outbox.note(
        session.connection(),
        tenant_id=row.tenant_id,
        job_id=row.id,
        seq=row.event_seq,
        kind="job.running",
        at=row.updated_at,
    )
    waited_ms = max(row.updated_at - (row.queued_at or row.created_at), 0)
    figures.taken(session, row.tenant_id, waited_ms)
    if row.devices > 1:
        _announce_another(session, worker, overtaking_ms)
    turns.charge(session, turn, devices=row.devices)
    last = row.attempts_left <= 0
    return Claim(
        row.id,
        row.tenant_id,
        row.attempt,
        row.fence,
        row.spec,
        row.deadline_s,
        names,
        waited_ms=waited_ms,
        traceparent=row.traceparent,
        last=last,
    )


def _take(
    session: Session, worker: Worker, *, free: int, ttl_s: float, overtaking_ms: int
) -> tuple[Turn | None, Row[Any] | None]:
    """The first turn that has a job nobody else is about to take, and that job, now running."""
    for turn in turns.turns(session, worker, free=free, overtaking_ms=overtaking_ms):
        if not usage.may_start(session, turn.tenant_id, lock=True):
            continue
        row = session.execute(
            update(Job)
            .where(Job.id == repository.unlocked(turn.job), Job.status == "queued")
            .values(
                status="running",
                attempt=Job.attempt + 1,
                attempts_left=Job.attempts_left - 1,
                fence=Job.fence + 1,
                version=Job.version + 1,
                event_seq=Job.event_seq + 1,
                lease_owner=worker.name,
                lease_expires_at=now_ms() + int(ttl_s * 1000),
                started_at=func.coalesce(Job.started_at, now_ms()),
                deadline_at=func.coalesce(Job.deadline_at, now_ms() + Job.deadline_s * 1000),
                updated_at=now_ms(),
                stage=None,
                progress=None,
                error=None,
            )
            .returning(
                Job.id,
                Job.tenant_id,
                Job.attempt,
                Job.fence,
                Job.spec,
                Job.devices,
                Job.deadline_s,
                Job.attempts_left,
                Job.event_seq,
                Job.updated_at,
                Job.queued_at,
                Job.created_at,
                Job.traceparent,
            )
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if row is not None:
            return turn, row
    return None, None


def _announce_another(session: Session, worker: Worker, overtaking_ms: int) -> None:
    """While a large job waited, others may have looked in vain, and their messages are gone."""
    job = repository.lock_next(session, worker, overtaking_ms=overtaking_ms)
    if job is not None:
        announce(session, job, delay_ms=0)


def pass_on(session: Session, worker: Worker) -> str | None:
    """Announce again a job whose message this worker has taken and that it cannot take itself, having fewer devices,
    less memory or lacking a method, if an idle worker can. Returns its id."""
    others = fleet.idle(session, worker)
    if not any(worker.lacks or _has_more(other, worker) for other in others):
        return None
    for job in repository.lock_beyond(session, worker, limit=PASSED_ON):
        needs = Needs(job.queue, job.devices, job.methods, job.peak_memory_bytes)
        if waiting_for(others, needs) is None and usage.may_start(session, job.tenant_id, lock=False):
            session.add(Outbox(job_id=job.id, queue=job.queue, due_at=clock(session) + PASS_ON_MS))
            session.flush()
            return job.id
    return None


def _has_more(other: Live, worker: Worker) -> bool:
    """Whether there may be a job that is too large for the worker and not for the other one."""
    if other.devices > len(worker.devices):
        return True
    rooms = ((other.room(devices), worker.room(devices)) for devices in range(1, other.devices + 1))
    return any(own is not None and (has is None or has > own) for has, own in rooms)


def renew(session: Session, held: Claim, *, ttl_s: float) -> Orders:
    """Extend the lease and return the orders for the attempt. Raises Fenced if another owns the job."""
    row = session.execute(
        update(Job)
        .where(Job.id == held.job_id, Job.fence == held.fence, Job.status.in_(HELD))
        .values(lease_expires_at=now_ms() + int(ttl_s * 1000))
        .returning(Job.status, case((Job.deadline_at < now_ms(), True), else_=False).label("overdue"))
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        raise Fenced
    return Orders(cancel=row.status == "cancelling", pause=row.status == "pausing", overdue=row.overdue)


def record(
    session: Session,
    held: Claim,
    events: list[tuple[str, dict[str, Any]]],
    progress: dict[str, Any] | None,
    finished: Sequence[tuple[str, float]] = (),
) -> None:
    """Append what the runner reported. `progress` replaces the one shown; its `stage` becomes the job's. `finished` are
    the stages that have ended since, and how long each took, s."""
    job = _held(session, held)
    figures.stages_finished(session, held.spec, finished)
    now = clock(session)
    for kind, data in events:
        job.event_seq += 1
        session.add(Event(job_id=job.id, seq=job.event_seq, type=kind, attempt=held.attempt, data=data, at=now))
    if progress is not None:
        job.progress = progress
        job.stage = progress["stage"]
    job.version += 1
    job.updated_at = now
    session.flush()


def succeed(
    session: Session,
    held: Claim,
    *,
    report: Report,
    manifest_sha256: str,
    files: list[tuple[FileEntry, str]],
    finished: Sequence[tuple[str, float]] = (),
    damaged: Collection[str] = (),
) -> None:
    """Make the attempt's files and report the job's. `files` are (entry, storage key), already uploaded; `finished` are
    the last stages; `damaged` keys of equal files that are not to be shared.

    Raises InvalidTransition if a cancel came first.
    """
    job = _held(session, held)
    close_attempt(session, job, "succeeded")
    transition(session, job, "succeeded")
    figures.stages_finished(session, held.spec, finished)
    job.manifest_sha256 = manifest_sha256
    job.metrics = {
        m.name: {"dense": m.dense, "pruned": m.pruned, "ratio": m.ratio, "unit": m.unit} for m in report.metrics
    }
    job.verdict = report.verdict
    if job.publications is not None:
        job.publications = publications.shown(publications.decide(session, job.id, job.verdict, job.updated_at))
    if job.progress is not None:
        job.progress = {**job.progress, "done": job.progress["total"], "eta_s": 0}
    session.add(ReportRecord(job_id=job.id, body=report.model_dump(mode="json")))
    retention.note_end(job)
    results.add(session, job, files, damaged)


def fail(session: Session, held: Claim, error: Failure, *, backoff_s: float) -> None:
    """End the attempt. A retryable failure queues the job again while attempts are left."""
    job = _held(session, held)
    if job.status == "cancelling":
        return cancelled(session, held)
    fail_or_retry(session, job, error, outcome="failed", backoff_s=backoff_s)


def cancelled(session: Session, held: Claim) -> None:
    """The runner is gone, as `cancel` asked."""
    job = _held(session, held)
    close_attempt(session, job, "cancelled")
    transition(session, job, "cancelled")


def release(session: Session, held: Claim) -> None:
    """Give the job back because this worker is shutting down, or the job is to pause; it does not count as an
    attempt."""
    job = _held(session, held)
    if job.status == "cancelling":
        return cancelled(session, held)
    if job.status == "pausing":
        close_attempt(session, job, "paused")
        transition(session, job, "paused")
        job.attempts_left += 1
        return
    close_attempt(session, job, "released")
    transition(session, job, "queued", {"reason": "worker_shutdown"})
    job.attempts_left += 1
    announce(session, job, delay_ms=0)


def ended_without_result(session: Session, held: Claim) -> bool:
    """Whether the database has recorded that the attempt has failed, was lost or cancelled, or its job deleted.

    Being fenced does not say so: the attempt may have succeeded by a commit whose answer was lost.
    """
    outcome = repository.attempt_outcome(session, held.job_id, held.attempt, held.fence)
    if outcome is None:
        return repository.is_deleted(session, held.job_id)
    return outcome not in ("running", "succeeded")


def _held(session: Session, held: Claim) -> Job:
    job = repository.lock_job(session, held.job_id)
    if job is None or job.fence != held.fence or job.status not in HELD:
        raise Fenced
    return job
