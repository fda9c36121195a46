"""Whose job a worker runs next: tenants take turns, and each has its own queue.

The tenant that holds the fewest devices for its weight comes first, so one that waits and holds none never waits for
one that holds some. Of equals the one whose last claim began earliest in virtual time (start-time fair queuing, Goyal
et al. 1996): a claim of n devices takes n / weight of it, and a tenant that had nothing to run begins where the others
are, not where it stopped. Within a tenant jobs go by priority, then age. So a job waits for those of its own tenant
that are ahead, each for its share of the devices, however many jobs others have and whatever their priority.

A job that needs more devices than are free is passed over by its own tenant's jobs, until it has waited for
`overtaking_ms`. From then on, when its tenant's turn comes, nothing behind it starts on that worker. A tenant whose
quota is used up has no turn: what waits for its quota holds nothing free. A job with a method that the worker does not
have is left to others: while a deployment is upgraded, an old worker passes over what only new ones can do. So is a job
that takes at least more memory than the worker has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, case, false, func, literal, null, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.db import now_ms
from app.jobs import usage
from app.jobs.fleet import Worker
from app.jobs.models import DeviceLease, Job
from app.keys.models import Tenant

ORDER = (Job.priority.desc(), Job.created_at, Job.id)
"""Within a tenant."""
UNIT = 1_000_000
"""Virtual time of one device at weight 1."""


class Turn(NamedTuple):
    """A tenant whose job may be next."""

    tenant_id: str
    weight: int
    now: int
    """Virtual time."""
    job: Select[str]
    """The id of the tenant's next job, if it has one that fits."""


def turns(session: Session, worker: Worker, *, free: int, overtaking_ms: int) -> Iterator[Turn]:
    """The tenants that have jobs for `free` of the worker's devices, in the order in which they are to be asked."""
    now, waiting = _waiting(session, worker, free=free, overtaking_ms=overtaking_ms)
    for tenant_id, weight, kept_for in waiting:
        if not usage.may_start(session, tenant_id, lock=False):
            continue
        job = _due(worker).where(Job.tenant_id == tenant_id, Job.devices <= free).order_by(*ORDER).limit(1)
        if kept_for is None:
            yield Turn(tenant_id, weight, now, job)
            continue
        large = session.execute(select(Job.priority, Job.created_at, Job.id).where(Job.id == kept_for)).one()
        older = tuple_(Job.created_at, Job.id) < (large.created_at, large.id)
        ahead = (Job.priority > large.priority) | ((Job.priority == large.priority) & older)
        yield Turn(tenant_id, weight, now, job.where(ahead))
        return


def charge(session: Session, turn: Turn, *, devices: int) -> None:
    """Note that the tenant has got so many devices. The last lock that a claim takes."""
    start = case((Tenant.share_end > turn.now, Tenant.share_end), else_=turn.now)
    session.execute(
        update(Tenant)
        .where(Tenant.id == turn.tenant_id)
        .values(share_start=start, share_end=start + devices * UNIT // turn.weight),
        execution_options={"synchronize_session": False},
    )


def _waiting(
    session: Session, worker: Worker, *, free: int, overtaking_ms: int
) -> tuple[int, list[tuple[str, int, str | None]]]:
    """Virtual time, and of each tenant with due jobs, in order: (id, weight, the large job that it waits for)."""
    # With each id the job's methods, which begin with a space.
    due = _due(worker).where(Job.tenant_id == Tenant.id).order_by(*ORDER).limit(1)
    due = due.with_only_columns(Job.id.concat(Job.methods))
    small = due.where(Job.devices <= free).correlate(Tenant).scalar_subquery()
    large = due.where(Job.devices > free, Job.created_at < now_ms() - overtaking_ms).correlate(Tenant).scalar_subquery()
    # From the devices to their jobs: a database left to itself might go through all jobs.
    owner = select(Job.tenant_id).where(Job.id == DeviceLease.job_id).correlate(DeviceLease).scalar_subquery()
    held = (
        select(owner.label("tenant_id"), func.count().label("devices"))
        .select_from(DeviceLease)
        .group_by(owner)
        .subquery()
    )
    rows = session.execute(
        select(
            Tenant.id,
            Tenant.weight,
            Tenant.share_end,
            func.coalesce(held.c.devices, 0),
            small,
            large if free < len(worker.devices) else null(),
            select(func.max(Tenant.share_start)).correlate(None).scalar_subquery(),
        ).join_from(Tenant, held, held.c.tenant_id == Tenant.id, isouter=True)
    ).all()
    firsts = [first.partition(" ") for row in rows for first in (row[4], row[5]) if first is not None]
    if lacking := {name for _, _, methods in firsts for name in worker.missing(methods)}:
        worker.lacks.update(lacking)
        return _waiting(session, worker, free=free, overtaking_ms=overtaking_ms)
    now = rows[0][-1] if rows else 0
    order = sorted(
        (devices / weight, max(share_end, now), tenant_id, weight, large and large.partition(" ")[0])
        for tenant_id, weight, share_end, devices, small, large, _ in rows
        if small is not None or large is not None
    )
    return now, [(tenant_id, weight, kept_for) for _, _, tenant_id, weight, kept_for in order]


def _due(worker: Worker) -> Select[str]:
    """The jobs due now that the worker could take with all its devices, as far as it is known what it lacks."""
    return select(Job.id).where(
        Job.status == literal("queued", literal_execute=True),  # as the index has it: a parameter might be anything
        Job.not_before <= now_ms(),
        Job.queue.in_(worker.queues),
        Job.devices <= len(worker.devices),
        ~_too_large(worker),
        *(~_names(method) for method in sorted(worker.lacks)),
    )


def beyond(worker: Worker) -> ColumnElement[bool]:
    """Whether a job is one that the worker could not take with all its devices, as far as it is known what it lacks."""
    return or_(Job.devices > len(worker.devices), _too_large(worker), *map(_names, sorted(worker.lacks)))


def _too_large(worker: Worker) -> ColumnElement[bool]:
    """Whether a job takes more memory at least than `worker.room` of its devices. False where either is not known."""
    each = func.coalesce(Job.peak_memory_bytes, 0)
    if worker.kind == "gpu":
        return false() if worker.device_memory_bytes is None else each > worker.device_memory_bytes
    return false() if worker.memory_bytes is None else each * Job.devices > worker.memory_bytes


def _names(method: str) -> ColumnElement[bool]:
    return Job.methods.contains(f" {method} ", autoescape=True)
