"""A sweep's life: its children made in one transaction, cancelled or removed together, and stopped by its rule.

Functions take a session inside a write transaction and never commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.db import clock
from app.errors import InvalidTransition
from app.ids import new_id
from app.jobs import retention, service
from app.jobs.models import ACTIVE, STATUSES
from app.sweeps import repository
from app.sweeps.expand import Child, parameters
from app.sweeps.models import Sweep, SweepChild
from app.sweeps.repository import ChildRow
from app.sweeps.schemas import SWEEP_LABEL, SweepSubmit


def create(
    session: Session,
    *,
    tenant_id: str,
    submit: SweepSubmit,
    children: Sequence[Child],
    max_attempts: int,
    deadline_s: int,
    request_id: str | None,
    asked_by: str | None = None,
    most_days: int | None = None,
    peaks: Sequence[int | None] = (),
) -> Sweep:
    """Insert the sweep and a job for each child; they run in their order. `peaks` are the memory that each child's
    worker must have, bytes; `most_days` is the service's bound on keeping files."""
    now = clock(session)
    sweep = Sweep(
        id=new_id("swp"),
        tenant_id=tenant_id,
        name=submit.name,
        parameters=parameters(children),
        created_at=now,
    )
    if submit.stop is not None:  # assigned, None would become a JSON null
        sweep.stop = submit.stop.model_dump()
    kept = submit.retention
    if kept is not None:
        sweep.retention = kept.model_dump()
    session.add(sweep)
    session.flush()
    asked = None if kept is None else (kept.keep, kept.days)
    policy = retention.policy(session, tenant_id, asked, most_days)
    job_ids = sorted(new_id("job") for _ in children)
    for child, job_id, peak in zip(children, job_ids, peaks or [None] * len(children), strict=True):
        service.create(
            session,
            tenant_id=tenant_id,
            spec=child.spec,
            labels={**submit.labels, SWEEP_LABEL: sweep.id},
            priority=submit.priority,
            max_attempts=max_attempts,
            deadline_s=deadline_s,
            request_id=request_id,
            asked_by=asked_by,
            job_id=job_id,
            now=now,
            policy=policy,
            peak_memory_bytes=peak,
        )
        session.add(SweepChild(sweep_id=sweep.id, number=child.number, job_id=job_id, values=child.values))
    session.flush()
    return sweep


def cancel(session: Session, sweep: Sweep) -> None:
    """Stop every child that has not ended. Idempotent."""
    repository.lock_sweep(session, sweep.id)
    for _, job in repository.lock_jobs(session, sweep.id, ACTIVE):
        service.cancel(session, job, {"reason": "sweep_cancelled"})


def remove(session: Session, sweep: Sweep) -> list[str]:
    """Delete the sweep and its jobs, and record that their files may go. Returns the jobs' ids."""
    repository.lock_sweep(session, sweep.id)
    found = [job for _, job in repository.lock_jobs(session, sweep.id, STATUSES)]
    if active := sum(job.status in ACTIVE for job in found):
        raise InvalidTransition(
            f"{active} of the sweep's jobs have not ended: cancel it first, then delete it.",
            allowed=["cancel"],
            current="running",
        )
    job_ids = [job.id for job in found]
    service.remove_finished(session, found)
    session.execute(delete(Sweep).where(Sweep.id == sweep.id))
    return job_ids


def enforce_stop(session: Session, sweep_id: str) -> list[str]:
    """Cancel what the stop rule says. Returns the jobs' ids. Whoever ends a child calls this, and the reconciler."""
    sweep = repository.lock_sweep(session, sweep_id)
    if sweep is None or sweep.stop is None:
        return []
    found = repository.children(session, sweep_id)
    doomed = {child.number: cause for child in found if (cause := _cause(sweep.stop, child, found)) is not None}
    if not doomed:
        return []
    stopped = []
    for child, job in repository.lock_jobs(session, sweep_id, ACTIVE):
        if child.number in doomed:
            child.stopped_by = doomed[child.number]
            service.cancel(session, job, {"reason": "sweep_stopped", "stopped_by": child.stopped_by})
            stopped.append(job.id)
    return stopped


def _cause(stop: dict[str, Any], child: ChildRow, found: Sequence[ChildRow]) -> int | None:
    """The number of the child whose end stops this one, if one does. A child is stopped once: retried, it may run."""
    if child.stopped_by is not None or child.status not in ACTIVE:
        return None
    failures = [other.number for other in found if other.status == "failed"]
    if stop["after_failures"] is not None and len(failures) >= stop["after_failures"]:
        return failures[-1]
    pointer = stop["ascending"]
    if pointer is None:
        return None
    return next(
        (
            other.number
            for other in found
            if other.verdict == "fail"
            and other.values[pointer] < child.values[pointer]
            and {**other.values, pointer: None} == {**child.values, pointer: None}
        ),
        None,
    )
