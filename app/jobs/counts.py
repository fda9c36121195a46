"""Counts over all tenants, for probes and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import now_ms
from app.jobs.models import DeviceLease, Job, Outbox, WorkerRecord
from app.keys.models import Tenant


@dataclass(frozen=True)
class Backlog:
    """Waiting messages and jobs. Seconds are 0 where none wait."""

    outbox_pending: int
    outbox_oldest_s: float
    queue_oldest_s: float
    leases_expired: int
    devices_held: int


def backlog(session: Session) -> Backlog:
    oldest_due = select(func.min(Job.queued_at)).where(Job.status == "queued").scalar_subquery()
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


def stored_bytes(session: Session) -> dict[str, int]:
    """Tenant -> bytes of its results."""
    return {row.id: row.stored_bytes for row in session.execute(select(Tenant.id, Tenant.stored_bytes))}


def oldest_tenants(session: Session) -> list[tuple[str, str]]:
    """(id, name) of all tenants, those made first at the front."""
    rows = session.execute(select(Tenant.id, Tenant.name).order_by(Tenant.created_at, Tenant.id))
    return [(row.id, row.name) for row in rows]


def _age_s(milliseconds: int | None) -> float:
    return max(milliseconds or 0, 0) / 1000
