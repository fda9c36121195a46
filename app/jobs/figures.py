"""Measurements of jobs, noted by whoever ends a stage, an attempt or a job, or takes one from the queue.

Label values are few, whatever is submitted: methods that this process has, else `other`; statuses and codes of ours;
tenants by their id, which the exposition names or leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sqlalchemy.orm import Session

from app.failure import Failure
from app.jobs.models import Attempt, Job
from app.metrics.observations import Series, note
from workers.engine.contracts.params import STAGES
from workers.engine.registry import methods

JOB = Series(
    "espalier_job_duration_seconds",
    "Of jobs that ended: from their first start, or that after a retry by hand, without pauses. Since the database was "
    "made.",
    ("method", "status"),
)
ATTEMPT = Series(
    "espalier_attempt_duration_seconds",
    "Of attempts that ended, with their outcome. Since the database was made.",
    ("method", "outcome"),
)
STAGE = Series(
    "espalier_stage_duration_seconds",
    "Of stages that were finished. Since the database was made.",
    ("stage", "method"),
)
WAIT = Series(
    "espalier_queue_wait_seconds",
    "From when a job was queued, or its backoff over, until a worker took it. Since the database was made.",
    ("tenant",),
)
FAILURES = Series(
    "espalier_job_failures",
    "Attempts that failed or were lost, by error code. Since the database was made.",
    ("code",),
    counter=True,
)
LEASE_LOSSES = Series(
    "espalier_lease_losses",
    "Attempts whose worker fell silent past its lease. Since the database was made.",
    counter=True,
    always=((),),
)
EVERY = (JOB, ATTEMPT, STAGE, WAIT, FAILURES, LEASE_LOSSES)
OTHER, SEVERAL, NONE = "other", "several", "none"
CHANGES = ("train", "grow", "prune")
"""Stages whose method is the job's: the first that its spec has."""
WITHOUT_METHOD = ("load", "calibrate", "verify", "package", "upload")
"""Stages that are not of one method."""


def job_ended(session: Session, job: Job, now: int) -> None:
    """Of a job that was never begun there is nothing to note."""
    if job.deadline_at is not None:
        note(session, JOB, (_of_job(job.spec), job.status), now - (job.deadline_at - job.deadline_s * 1000))


def attempt_ended(session: Session, job: Job, attempt: Attempt, error: Failure | None) -> None:
    lasted_ms = (attempt.finished_at or attempt.started_at) - attempt.started_at
    note(session, ATTEMPT, (_of_job(job.spec), attempt.outcome), lasted_ms)
    if error is not None:
        note(session, FAILURES, (error.code,))


def stages_finished(session: Session, spec: Mapping[str, Any], finished: Iterable[tuple[str, float]]) -> None:
    """`finished` are stages that an attempt is done with, and how long each took, s."""
    for stage, seconds in finished:
        known = stage in STAGES or stage in WITHOUT_METHOD
        note(session, STAGE, (stage if known else OTHER, _of_stage(spec, stage)), int(seconds * 1000))


def taken(session: Session, tenant_id: str, waited_ms: int) -> None:
    note(session, WAIT, (tenant_id,), waited_ms)


def leases_lost(session: Session, count: int) -> None:
    note(session, LEASE_LOSSES, (), times=count)


def _of_job(spec: Mapping[str, Any]) -> str:
    return next((_of_stage(spec, stage) for stage in CHANGES if spec.get(stage)), NONE)


def _of_stage(spec: Mapping[str, Any], stage: str) -> str:
    chosen = spec.get(stage) if stage in STAGES else None
    if isinstance(chosen, list):
        chosen = chosen[0] if len(chosen) == 1 else {"method": SEVERAL} if chosen else None
    name = chosen["method"] if chosen else NONE
    return name if name in _known(stage) else OTHER


@cache
def _known(stage: str) -> frozenset[str]:
    return frozenset({NONE, SEVERAL, *(method.name for method in methods(stage))} if stage in STAGES else {NONE})
