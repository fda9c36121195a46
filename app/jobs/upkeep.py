"""Operations of the relay and the reconciler on jobs: sent or lost messages, expired leases, old idempotency keys.

See lifecycle.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, tuple_
from sqlalchemy.orm import Session

from app.db import clock
from app.failure import Failure
from app.jobs import figures
from app.jobs import upkeep_repository as repository
from app.jobs.lifecycle import announce, close_attempt, fail_or_retry, transition
from app.jobs.models import IdempotencyKey, Outbox

GOES_ON = (
    "The job goes on by itself while attempts are left. If this repeats, the worker is being killed: look at its "
    "host's memory."
)
PAST_DEADLINE = "By then the job was past its deadline: submit it with a larger deadline_s."


def reap(session: Session, *, backoff_s: float, limit: int = 100) -> list[tuple[str, int]]:
    """End attempts whose lease has expired. Returns their (job id, attempt)."""
    jobs = repository.lock_silent(session, limit=limit)
    figures.leases_lost(session, len(jobs))
    for job in jobs:
        if job.status == "cancelling":
            close_attempt(session, job, "cancelled")
            transition(session, job, "cancelled")
            continue
        overdue = job.deadline_at is not None and job.deadline_at < clock(session)
        error = Failure(
            code="timeout" if overdue else "worker_lost",
            message=f"worker {job.lease_owner} fell silent in stage {job.stage or 'load'}",
            hint=PAST_DEADLINE if overdue else GOES_ON,
            retryable=not overdue,
            stage=job.stage,
        )
        fail_or_retry(session, job, error, outcome="lost", backoff_s=backoff_s)
    return [(job.id, job.attempt) for job in jobs]


def announce_again(session: Session, *, older_than_s: float, limit: int = 16) -> int:
    """Queue new messages for queued jobs whose last one may be lost. Few suffice: any message means "look"."""
    jobs = repository.lock_unannounced(session, older_than_ms=int(older_than_s * 1000), limit=limit)
    for job in jobs:
        announce(session, job, delay_ms=0)
    return len(jobs)


def forget_sent(session: Session, message_ids: Sequence[int]) -> int:
    """Forget published messages; returns how many. Those that another process is deleting are skipped.

    The jobs are not touched: a claim passes over jobs that are locked, and would take a later one from the queue.
    """
    forgotten = session.execute(
        delete(Outbox).where(Outbox.id.in_(repository.unlocked_messages(message_ids))).returning(Outbox.id),
        execution_options={"synchronize_session": False},
    )
    return len(forgotten.all())


def forget_idempotency_keys(session: Session) -> None:
    """Remove the ones past their time, but for those that a submission is just replacing."""
    key = tuple_(IdempotencyKey.tenant_id, IdempotencyKey.route, IdempotencyKey.key)
    session.execute(
        delete(IdempotencyKey).where(key.in_(repository.expired_idempotency_keys())),
        execution_options={"synchronize_session": False},
    )
