"""Every SELECT about sweeps. What a request reads is scoped to its tenant here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, literal, select, tuple_
from sqlalchemy.orm import Session

from app.jobs.models import ACTIVE, Job, ReportRecord
from app.jobs.repository import TOTAL_MOST
from app.sweeps.models import Sweep, SweepChild


@dataclass(frozen=True)
class ChildRow:
    """A child and what is shown of its job; of a deleted job all of that is None."""

    number: int
    values: dict[str, Any]
    stopped_by: int | None
    job_id: str | None
    status: str | None
    verdict: str | None
    metrics: dict[str, Any] | None
    error: dict[str, Any] | None
    version: int | None


_CHILD = (
    SweepChild.number,
    SweepChild.values,
    SweepChild.stopped_by,
    Job.id,
    Job.status,
    Job.verdict,
    Job.metrics,
    Job.error,
    Job.version,
)


def sweep_of_tenant(session: Session, tenant_id: str, sweep_id: str) -> Sweep | None:
    return session.scalar(select(Sweep).where(Sweep.id == sweep_id, Sweep.tenant_id == tenant_id))


def lock_sweep(session: Session, sweep_id: str) -> Sweep | None:
    """The sweep, its row locked until the transaction ends. Whoever changes several of its jobs locks it first, and
    then the jobs in the order of their ids, so that two of them cannot wait for each other."""
    return session.scalar(select(Sweep).where(Sweep.id == sweep_id).with_for_update())


def children(session: Session, sweep_id: str) -> list[ChildRow]:
    rows = session.execute(
        select(*_CHILD)
        .join(Job, Job.id == SweepChild.job_id, isouter=True)
        .where(SweepChild.sweep_id == sweep_id)
        .order_by(SweepChild.number)
    )
    return [ChildRow(*row) for row in rows]


def lock_jobs(session: Session, sweep_id: str, statuses: Sequence[str]) -> Sequence[tuple[SweepChild, Job]]:
    """The children whose job has one of the statuses, the jobs locked, in the order of their ids."""
    rows = session.execute(
        select(SweepChild, Job)
        .join(Job, Job.id == SweepChild.job_id)
        .where(SweepChild.sweep_id == sweep_id, Job.status.in_(statuses))
        .order_by(Job.id)
        .with_for_update(of=Job)
        .execution_options(populate_existing=True)
    )
    return [(row[0], row[1]) for row in rows]


def page(
    session: Session, tenant_id: str, *, behind: tuple[int | str, ...] | None, limit: int, oldest_first: bool = False
) -> Sequence[Sweep]:
    """The tenant's sweeps, newest first unless asked otherwise, from behind (created_at, id)."""
    query, key = select(Sweep).where(Sweep.tenant_id == tenant_id), (Sweep.created_at, Sweep.id)
    if behind is not None:
        query = query.where(tuple_(*key) > behind if oldest_first else tuple_(*key) < behind)
    return session.scalars(
        query.order_by(*(column.asc() if oldest_first else column.desc() for column in key)).limit(limit)
    ).all()


def total(session: Session, tenant_id: str) -> int:
    """How many sweeps the tenant has, counted up to TOTAL_MOST."""
    found = select(Sweep.id).where(Sweep.tenant_id == tenant_id).limit(TOTAL_MOST).subquery()
    return session.execute(select(func.count()).select_from(found)).scalar_one()


def count_children(session: Session, sweep_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Sweep -> children by status; `deleted` where the job is gone."""
    status = func.coalesce(Job.status, "deleted")
    rows = session.execute(
        select(SweepChild.sweep_id, status.label("status"), func.count().label("children"))
        .join(Job, Job.id == SweepChild.job_id, isouter=True)
        .where(SweepChild.sweep_id.in_(sweep_ids))
        .group_by(SweepChild.sweep_id, status)
        .order_by(status)
    )
    found: dict[str, dict[str, int]] = {sweep_id: {} for sweep_id in sweep_ids}
    for row in rows:
        found[row.sweep_id][row.status] = row.children
    return found


@dataclass(frozen=True)
class Measured:
    """Values of the report of a child that has succeeded."""

    metrics: list[dict[str, Any]]
    sparsity: float
    spec: dict[str, Any]


def measurements(session: Session, sweep_id: str) -> dict[int, Measured]:
    """Number -> what was measured of the children that have succeeded."""
    body = ReportRecord.body
    rows = session.execute(
        select(SweepChild.number, body["metrics"], body["sparsity"], body["spec"])
        .join(ReportRecord, ReportRecord.job_id == SweepChild.job_id)
        .where(SweepChild.sweep_id == sweep_id)
    )
    return {row[0]: Measured(row[1], float(row[2]), row[3]) for row in rows}


def with_stop_rule_and_active_jobs(session: Session) -> Sequence[str]:
    """Sweeps with a stop rule and children that have not ended."""
    return session.scalars(
        select(Sweep.id)
        .where(
            Sweep.stop.is_not(None),
            select(SweepChild.number)
            .join(Job, Job.id == SweepChild.job_id)
            .where(SweepChild.sweep_id == Sweep.id, Job.status.in_(ACTIVE))
            .exists(),
        )
        .order_by(Sweep.id)
    ).all()


def with_fronts_since(session: Session, since: int) -> Sequence[str]:
    """Sweeps that keep their front, and of which a child has ended since then, ms."""
    front = literal("front", literal_execute=True)  # as the index has it: a parameter might be anything
    return session.scalars(
        select(SweepChild.sweep_id)
        .join(Job, Job.id == SweepChild.job_id)
        .where(Job.keep == front, Job.finished_at > since)
        .distinct()
        .order_by(SweepChild.sweep_id)
    ).all()


def with_stop_rule_of_job(session: Session, job_id: str) -> str | None:
    """The sweep with a stop rule that the job belongs to."""
    return session.scalar(
        select(Sweep.id).join(SweepChild, SweepChild.sweep_id == Sweep.id).where(
            SweepChild.job_id == job_id, Sweep.stop.is_not(None)
        )
    )  # fmt: skip
