"""The job's life: the only place a status changes.

    queued ──► running ──► succeeded | failed
      ▲           │
      └───────────┘  lease lost, retryable failure, worker shut down
    queued | running ──► cancelling ──► cancelled
    failed | cancelled ──► queued        by `retry`

Every change goes through `_transition`, which writes the job and its event together. Functions take a session inside
a write transaction and never commit: the caller decides what belongs together. Whoever acts for an attempt passes
its `Claim`; if the job has since been claimed by another, `Fenced` is raised and nothing is written.

Locks are taken in one order, so that no two transactions wait for each other: the sweep, its jobs in the order of
their ids, what hangs on a job (labels, attempts, events, artifacts, report, messages, sweep child), the
Idempotency-Key. Whoever writes what hangs on a job has locked the job first, whether a foreign key would or not. Chores
over many rows skip those that are locked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, delete, func, insert, tuple_, update
from sqlalchemy.orm import Session

from app.db import now_ms
from app.errors import InvalidTransition
from app.failure import Failure
from app.ids import new_id
from app.jobs import removals, repository
from app.jobs.models import TERMINAL, Artifact, Attempt, Event, IdempotencyKey, Job, JobLabel, Outbox, ReportRecord
from workers.engine.report import FileEntry, Report
from workers.engine.spec import CompressionSpec

ALLOWED: dict[str, frozenset[str]] = {
    "queued": frozenset({"running", "cancelling"}),
    "running": frozenset({"succeeded", "failed", "queued", "cancelling"}),
    "cancelling": frozenset({"cancelled"}),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
    "succeeded": frozenset(),
}
VERBS: dict[str, list[str]] = {
    "queued": ["cancel"],
    "running": ["cancel"],
    "cancelling": ["cancel"],
    "succeeded": ["delete"],
    "failed": ["retry", "delete"],
    "cancelled": ["cancel", "retry", "delete"],
}
"""What a client may do in each status."""
HELD = ("running", "cancelling")
"""A worker holds the job's lease."""


class Fenced(Exception):
    """The attempt no longer owns the job: its lease expired and the job went on without it."""


@dataclass(frozen=True)
class Claim:
    """The right to work on a job, as long as the fence stands."""

    job_id: str
    tenant_id: str
    attempt: int
    fence: int
    spec: dict[str, Any]
    deadline_s: int
    last: bool = False
    """No attempt is left after this one."""


@dataclass(frozen=True)
class Orders:
    """What the database tells a worker when it renews its lease."""

    cancel: bool
    overdue: bool


# -- the client's side -------------------------------------------------------------------------------------------------


def create(
    session: Session,
    *,
    tenant_id: str,
    spec: CompressionSpec,
    labels: dict[str, str],
    priority: int,
    max_attempts: int,
    deadline_s: int,
    request_id: str | None,
    job_id: str | None = None,
    now: int | None = None,
) -> Job:
    """Insert the job, its first event and its message to the workers. Of one `now`, lower ids run first."""
    now = now or repository.clock(session)
    job = Job(
        id=job_id or new_id("job"),
        tenant_id=tenant_id,
        status="queued",
        version=1,
        event_seq=1,
        spec=spec.model_dump(mode="json"),
        spec_digest=spec.digest(),
        model_id=spec.model.id,
        queue="gpu" if spec.compute.device == "cuda" else "any",
        priority=priority,
        deadline_s=deadline_s,
        max_attempts=max_attempts,
        attempts_left=max_attempts,
        attempt=0,
        fence=0,
        not_before=now,
        request_id=request_id,
        created_at=now,
        updated_at=now,
    )
    session.add(job)
    session.flush()
    session.add_all(JobLabel(job_id=job.id, key=key, value=value) for key, value in labels.items())
    session.add(Event(job_id=job.id, seq=1, type="queued", attempt=0, data={}, at=now))
    session.add(Outbox(job_id=job.id, queue=job.queue, due_at=now))
    session.flush()
    return job


def set_labels(session: Session, job: Job, changes: dict[str, str | None]) -> None:
    """Merge `changes` into the labels; None removes one."""
    session.execute(delete(JobLabel).where(JobLabel.job_id == job.id, JobLabel.key.in_(changes)))
    session.add_all(JobLabel(job_id=job.id, key=k, value=v) for k, v in changes.items() if v is not None)
    job.version += 1
    job.updated_at = repository.clock(session)
    session.flush()


def cancel(session: Session, job: Job, data: dict[str, Any] | None = None) -> None:
    """Stop the job, whatever it is doing. Idempotent; raises InvalidTransition once it has succeeded or failed."""
    if job.status in ("cancelling", "cancelled"):
        return
    was_queued = job.status == "queued"
    _transition(session, job, "cancelling", data)
    if was_queued:  # nobody is working on it
        _transition(session, job, "cancelled")


def retry(session: Session, job: Job) -> None:
    """Queue a failed or cancelled job again, with all its attempts. A failed job goes on from its finished blocks."""
    if job.status not in ("failed", "cancelled"):  # a running job may become queued too, but not by this verb
        raise InvalidTransition(
            f"The job is {job.status}: only a failed or cancelled job can be retried.",
            allowed=VERBS[job.status],
            current=job.status,
        )
    _transition(session, job, "queued", {"reason": "retry"})
    job.attempts_left = job.max_attempts
    job.error = None
    job.deadline_at = None
    _announce(session, job, delay_ms=0)


def remove(session: Session, job: Job) -> None:
    """Delete a finished job and all its rows, and record that its files may go."""
    if job.status not in TERMINAL:
        raise InvalidTransition(
            f"The job is {job.status}: cancel it first, then delete it.", allowed=VERBS[job.status], current=job.status
        )
    remove_finished(session, [job])


def remove_finished(session: Session, jobs: Sequence[Job]) -> None:
    """Delete the jobs, which are locked and have ended, and all their rows, and record that their files may go."""
    for job in jobs:
        removals.record_job(session, job)
    session.flush()
    session.execute(delete(Job).where(Job.id.in_([job.id for job in jobs])))


# -- the worker's side -------------------------------------------------------------------------------------------------


def claim(session: Session, *, worker: str, queues: Iterable[str], ttl_s: float) -> Claim | None:
    """Take the next queued job, or None. One compare-and-set UPDATE: of many claimants one wins."""
    row = session.execute(
        update(Job)
        .where(Job.id == repository.next_queued_id(list(queues)), Job.status == "queued")
        .values(
            status="running",
            attempt=Job.attempt + 1,
            attempts_left=Job.attempts_left - 1,
            fence=Job.fence + 1,
            version=Job.version + 1,
            event_seq=Job.event_seq + 1,
            lease_owner=worker,
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
            Job.deadline_s,
            Job.attempts_left,
            Job.event_seq,
            Job.updated_at,
        )
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        return None
    session.add(Attempt(job_id=row.id, number=row.attempt, fence=row.fence, worker=worker, started_at=row.updated_at))
    session.add(
        Event(
            job_id=row.id,
            seq=row.event_seq,
            type="running",
            attempt=row.attempt,
            data={"worker": worker},
            at=row.updated_at,
        )
    )
    session.flush()
    return Claim(row.id, row.tenant_id, row.attempt, row.fence, row.spec, row.deadline_s, row.attempts_left <= 0)


def renew(session: Session, held: Claim, *, ttl_s: float) -> Orders:
    """Extend the lease; learn whether to stop. Raises Fenced if the job is no longer ours."""
    row = session.execute(
        update(Job)
        .where(Job.id == held.job_id, Job.fence == held.fence, Job.status.in_(HELD))
        .values(lease_expires_at=now_ms() + int(ttl_s * 1000))
        .returning(Job.status, case((Job.deadline_at < now_ms(), True), else_=False).label("overdue"))
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        raise Fenced
    return Orders(cancel=row.status == "cancelling", overdue=row.overdue)


def record(
    session: Session, held: Claim, events: list[tuple[str, dict[str, Any]]], progress: dict[str, Any] | None
) -> None:
    """Append what the runner reported. `progress` replaces the one shown; its `stage` becomes the job's."""
    job = _held(session, held)
    now = repository.clock(session)
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
    session: Session, held: Claim, *, report: Report, manifest_sha256: str, files: list[tuple[FileEntry, str]]
) -> None:
    """Make the attempt's files and report the job's. `files` are (entry, storage key), already uploaded.

    Raises InvalidTransition if a cancel came first.
    """
    job = _held(session, held)
    _close(session, job, "succeeded")
    _transition(session, job, "succeeded")
    job.manifest_sha256 = manifest_sha256
    job.metrics = {
        m.name: {"dense": m.dense, "pruned": m.pruned, "ratio": m.ratio, "unit": m.unit} for m in report.metrics
    }
    job.verdict = report.verdict
    if job.progress is not None:
        job.progress = {**job.progress, "done": job.progress["total"], "eta_s": 0}
    session.add(ReportRecord(job_id=job.id, body=report.model_dump(mode="json")))
    session.execute(
        insert(Artifact),
        [{"job_id": job.id, "path": f.path, "bytes": f.bytes, "sha256": f.sha256, "key": key} for f, key in files],
    )


def fail(session: Session, held: Claim, error: Failure, *, backoff_s: float) -> None:
    """End the attempt. A retryable failure queues the job again while attempts are left."""
    job = _held(session, held)
    if job.status == "cancelling":
        return cancelled(session, held)
    _fail(session, job, error, outcome="failed", backoff_s=backoff_s)


def cancelled(session: Session, held: Claim) -> None:
    """The runner is gone, as `cancel` asked."""
    job = _held(session, held)
    _close(session, job, "cancelled")
    _transition(session, job, "cancelled")


def release(session: Session, held: Claim) -> None:
    """Give the job back because this worker is shutting down; it does not count as an attempt."""
    job = _held(session, held)
    if job.status == "cancelling":
        return cancelled(session, held)
    _close(session, job, "released")
    _transition(session, job, "queued", {"reason": "worker_shutdown"})
    job.attempts_left += 1
    _announce(session, job, delay_ms=0)


def ended_without_result(session: Session, held: Claim) -> bool:
    """Whether the database has recorded that the attempt has failed, was lost or cancelled, or its job deleted.

    Being fenced does not say so: the attempt may have succeeded by a commit whose answer was lost.
    """
    outcome = repository.outcome(session, held.job_id, held.attempt, held.fence)
    if outcome is None:
        return held.job_id in repository.deleted(session, [held.job_id])
    return outcome not in ("running", "succeeded")


# -- the reconciler's side ---------------------------------------------------------------------------------------------


def reap(session: Session, *, backoff_s: float, limit: int = 100) -> list[tuple[str, int]]:
    """Take jobs back from workers silent past their lease. Returns (job id, attempt) of what no longer holds."""
    jobs = repository.expired(session, limit=limit)
    for job in jobs:
        if job.status == "cancelling":
            _close(session, job, "cancelled")
            _transition(session, job, "cancelled")
            continue
        overdue = job.deadline_at is not None and job.deadline_at < repository.clock(session)
        error = Failure(
            code="timeout" if overdue else "worker_lost",
            message=f"worker {job.lease_owner} fell silent in stage {job.stage or 'load'}",
            hint="The job goes on by itself while attempts are left. If this repeats, the worker is being killed: "
            "look at its host's memory.",
            retryable=not overdue,
            stage=job.stage,
        )
        _fail(session, job, error, outcome="lost", backoff_s=backoff_s)
    return [(job.id, job.attempt) for job in jobs]


def announce_again(session: Session, *, older_than_s: float, limit: int = 16) -> int:
    """Queue new messages for queued jobs whose last one may be lost. Few suffice: any message means "look"."""
    jobs = repository.unannounced(session, older_than_ms=int(older_than_s * 1000), limit=limit)
    for job in jobs:
        _announce(session, job, delay_ms=0)
    return len(jobs)


def mark_sent(session: Session, sent: list[tuple[int, str]]) -> None:
    """Forget published messages, given as (outbox id, job id)."""
    repository.lock_in_order(session, {job_id for _, job_id in sent})
    session.execute(delete(Outbox).where(Outbox.id.in_([outbox_id for outbox_id, _ in sent])))
    session.execute(
        update(Job).where(Job.id.in_([job_id for _, job_id in sent])).values(dispatched_at=now_ms()),
        execution_options={"synchronize_session": False},
    )


def forget_idempotency_keys(session: Session) -> None:
    """Remove the ones past their time, but for those that a submission is just replacing."""
    key = tuple_(IdempotencyKey.tenant_id, IdempotencyKey.route, IdempotencyKey.key)
    session.execute(
        delete(IdempotencyKey).where(key.in_(repository.expired_idempotency_keys())),
        execution_options={"synchronize_session": False},
    )


# -- shared ------------------------------------------------------------------------------------------------------------


def _held(session: Session, held: Claim) -> Job:
    job = repository.locked(session, held.job_id)
    if job is None or job.fence != held.fence or job.status not in HELD:
        raise Fenced
    return job


def _transition(session: Session, job: Job, to: str, data: dict[str, Any] | None = None) -> None:
    """Change the status of a locked job and write its event: the one place for it outside `create` and `claim`."""
    if to not in ALLOWED[job.status]:
        raise InvalidTransition(
            f"The job is {job.status}, and a job that is {job.status} cannot become {to}.",
            allowed=VERBS[job.status],
            current=job.status,
        )
    now = repository.clock(session)
    job.status = to
    job.version += 1
    job.event_seq += 1
    job.updated_at = now
    if to not in HELD:
        job.lease_owner = job.lease_expires_at = None
    job.finished_at = now if to in TERMINAL else None
    session.add(Event(job_id=job.id, seq=job.event_seq, type=to, attempt=job.attempt, data=data or {}, at=now))
    session.flush()


def _fail(session: Session, job: Job, error: Failure, *, outcome: str, backoff_s: float) -> None:
    _close(session, job, outcome, error)
    job.error = error.as_json(job.attempt)
    if error.retryable and job.attempts_left > 0:
        _transition(session, job, "queued", {"reason": error.code, "error": job.error})
        tried = job.max_attempts - job.attempts_left
        _announce(session, job, delay_ms=int(backoff_s * 1000 * 2 ** max(tried - 1, 0)))
    else:
        _transition(session, job, "failed", {"error": job.error})


def _close(session: Session, job: Job, outcome: str, error: Failure | None = None) -> None:
    attempt = repository.open_attempt(session, job)
    if attempt is not None:
        attempt.outcome = outcome
        attempt.error = error.as_json(job.attempt) if error else None
        attempt.finished_at = repository.clock(session)
        if outcome != "succeeded":
            removals.record_attempt(session, job)


def _announce(session: Session, job: Job, *, delay_ms: int) -> None:
    due = repository.clock(session) + delay_ms
    job.not_before = due
    session.add(Outbox(job_id=job.id, queue=job.queue, due_at=due))
    session.flush()
