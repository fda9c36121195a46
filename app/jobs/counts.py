"""Counts over all tenants, for probes and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import now_ms
from app.jobs.models import Attempt, DeviceLease, Job, Outbox, WorkerRecord


@dataclass(frozen=True)
class Backlog:
    """Waiting messages and jobs. Seconds are 0 where none wait."""

    outbox_pending: int
    outbox_oldest_s: float
    queue_oldest_s: float
    leases_expired: int
    devices_held: int


def backlog(session: Session) -> Backlog:
    oldest_due = select(func.min(Job.not_before)).where(Job.status == "queued").scalar_subquery()
    return Backlog(
        outbox_pending=session.execute(select(func.count()).select_from(Outbox)).scalar_one(),
        outbox_oldest_s=outbox_oldest_s(session),
        queue_oldest_s=_age_s(session.execute(select(now_ms() - oldest_due)).scalar_one()),
        devices_held=session.execute(select(func.count()).select_from(DeviceLease)).scalar_one(),
        leases_expired=session.execute(select(func.count()).where(Job.lease_expires_at < now_ms())).scalar_one(),
    )


def outbox_oldest_s(session: Session) -> float:
    """How long the oldest unpublished message has been due."""
    return _age_s(session.execute(select(now_ms() - func.min(Outbox.due_at))).scalar_one())


def count_by_status(session: Session) -> dict[str, int]:
    rows = session.execute(select(Job.status, func.count().label("jobs")).group_by(Job.status))
    return {row.status: row.jobs for row in rows}


def count_devices(session: Session) -> dict[str, int]:
    """Devices of live workers by kind, `cpu` or `gpu`."""
    devices = func.sum(WorkerRecord.devices).label("devices")
    rows = session.execute(
        select(WorkerRecord.kind, devices).where(WorkerRecord.expires_at > now_ms()).group_by(WorkerRecord.kind)
    )
    return {row.kind: row.devices for row in rows}


def count_failures(session: Session) -> dict[str, int]:
    """Attempts that failed or were lost, by error code. Deleting a job takes its attempts along."""
    code = Attempt.error["code"].as_string()
    rows = session.execute(
        select(code.label("code"), func.count().label("attempts"))
        .where(Attempt.outcome.in_(("failed", "lost")))
        .group_by(code)
    )
    return {row.code: row.attempts for row in rows}


def _age_s(milliseconds: int | None) -> float:
    return max(milliseconds or 0, 0) / 1000
