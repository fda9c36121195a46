"""Quotas of tenants, and what they have used of them.

    queued           jobs that are queued or paused            checked when jobs are made or retried
    running          jobs that hold devices                    checked by the claim: others wait
    stored_bytes     of results, until their job is deleted    checked when jobs are made or retried
                     or a policy removes them; equal files of several jobs once
    device_seconds   of a calendar month, UTC                  checked then, and by the claim
    requests         in a minute, of one API process           checked by every request (app/rates.py)

Whoever checks locks the tenant first, where it has that quota: of two that would exceed it together one waits and is
told. The lock is taken behind those of jobs, but by a claim, which waits for no job.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db import clock
from app.errors import QuotaExceeded, QuotaReached
from app.jobs.models import Attempt, DeviceLease, DeviceTime, Job
from app.keys.models import Tenant
from app.prices import Money, money

WAITING = ("queued", "paused")


class Usage(NamedTuple):
    """Amounts that a tenant uses now."""

    queued: int
    running: int
    stored_bytes: int
    removed_bytes: int
    device_seconds: float
    """Of this month, running attempts included."""
    prices: list[Money]
    """Of the same device-seconds, where their workers knew a price: one of each currency."""
    resets_at: int
    """The next month, ms."""


def note(session: Session, job: Job, attempt: Attempt) -> int:
    """Write down the time of an attempt that has ended, and its price; returns it, times its devices, ms."""
    held_ms = max((attempt.finished_at or attempt.started_at) - attempt.started_at, 0)
    device_ms, price = held_ms * job.devices, None
    if attempt.price is not None:
        price = attempt.price * held_ms // 1000
        before = job.price if job.currency == attempt.currency else None
        job.price, job.currency = (before or 0) + price, attempt.currency
    session.add(
        DeviceTime(
            tenant_id=job.tenant_id,
            job_id=job.id,
            attempt=attempt.number,
            at=attempt.finished_at or attempt.started_at,
            device_ms=device_ms,
            price=price,
            currency=None if price is None else attempt.currency,
        )
    )
    return device_ms


def count_stored(session: Session, tenant_id: str, change: int) -> None:
    """Note that so many bytes more, or less, are stored."""
    if change:
        session.execute(
            update(Tenant).where(Tenant.id == tenant_id).values(stored_bytes=Tenant.stored_bytes + change),
            execution_options={"synchronize_session": False},
        )


def usage(session: Session, tenant: Tenant) -> Usage:
    _, resets_at = _month(clock(session))
    return Usage(
        queued=_waiting(session, tenant.id, limit=None),
        running=_running(session, tenant.id),
        stored_bytes=tenant.stored_bytes,
        removed_bytes=tenant.removed_bytes,
        device_seconds=_device_seconds(session, tenant.id),
        prices=_prices(session, tenant.id),
        resets_at=resets_at,
    )


def check_more(session: Session, tenant_id: str) -> None:
    """Raises QuotaReached or QuotaExceeded where the tenant, with the jobs that this transaction has queued, has more
    than it may."""
    quotas = (Tenant.max_queued, Tenant.max_stored_bytes, Tenant.max_device_seconds)
    tenant = _bounded(session, tenant_id, *quotas, lock=True)
    if tenant is None:
        return
    if tenant.max_queued is not None:
        waiting = _waiting(session, tenant_id, limit=tenant.max_queued + 1)
        if waiting > tenant.max_queued:
            raise QuotaReached(
                f"At most {tenant.max_queued:,} jobs of your tenant may be queued or paused: wait for some to start, "
                "or cancel some.",
                headers={"Retry-After": "30"},
                quota="queued",
                limit=tenant.max_queued,
                used=waiting,
                retryable=True,
            )
    if tenant.max_stored_bytes is not None and tenant.stored_bytes >= tenant.max_stored_bytes:
        raise QuotaExceeded(
            f"Results of your tenant take {tenant.stored_bytes:,} of {tenant.max_stored_bytes:,} bytes: delete jobs "
            "that are no longer needed.",
            quota="stored_bytes",
            limit=tenant.max_stored_bytes,
            used=tenant.stored_bytes,
        )
    if tenant.max_device_seconds is not None:
        used = _device_seconds(session, tenant_id)
        if used >= tenant.max_device_seconds:
            _, resets_at = _month(clock(session))
            raise QuotaExceeded(
                f"Jobs of your tenant have used {used:,.0f} of {tenant.max_device_seconds:,} device-seconds of this "
                "month: the next one begins at `resets_at`.",
                quota="device_seconds",
                limit=tenant.max_device_seconds,
                used=round(used, 3),
                resets_at=datetime.fromtimestamp(resets_at / 1000, UTC).isoformat().replace("+00:00", "Z"),
            )


def may_start(session: Session, tenant_id: str, *, lock: bool) -> bool:
    """Whether one more job of the tenant may hold devices. Without the lock another may start one meanwhile."""
    tenant = _bounded(session, tenant_id, Tenant.max_running, Tenant.max_device_seconds, lock=lock)
    if tenant is None:
        return True
    if tenant.max_running is not None and _running(session, tenant_id) >= tenant.max_running:
        return False
    return tenant.max_device_seconds is None or _device_seconds(session, tenant_id) < tenant.max_device_seconds


def _bounded(session: Session, tenant_id: str, *quotas: Any, lock: bool) -> Tenant | None:
    """The tenant, locked if asked for; None where it has none of these quotas."""
    if not any(limit is not None for limit in session.execute(select(*quotas).where(Tenant.id == tenant_id)).one()):
        return None
    query = select(Tenant).where(Tenant.id == tenant_id).execution_options(populate_existing=True)
    return session.execute(query.with_for_update(key_share=True) if lock else query).scalar_one()


def _waiting(session: Session, tenant_id: str, *, limit: int | None) -> int:
    found = select(Job.id).where(Job.tenant_id == tenant_id, Job.status.in_(WAITING)).limit(limit).subquery()
    return session.execute(select(func.count()).select_from(found)).scalar_one()


def _running(session: Session, tenant_id: str) -> int:
    held = select(DeviceLease.job_id).distinct().subquery()
    owner = select(Job.tenant_id).where(Job.id == held.c.job_id).correlate(held).scalar_subquery()
    return session.execute(select(func.count()).select_from(held).where(owner == tenant_id)).scalar_one()


def _device_seconds(session: Session, tenant_id: str) -> float:
    now = clock(session)
    begin, _ = _month(now)
    ended = session.execute(
        select(func.coalesce(func.sum(DeviceTime.device_ms), 0)).where(
            DeviceTime.tenant_id == tenant_id, DeviceTime.at >= begin
        )
    ).scalar_one()
    held = session.execute(
        select(Attempt.started_at)
        .join(Job, (Job.id == Attempt.job_id) & (Job.attempt == Attempt.number))
        .join(DeviceLease, DeviceLease.job_id == Job.id)
        .where(Job.tenant_id == tenant_id)
    ).scalars()
    return (int(ended) + sum(max(now - started_at, 0) for started_at in held)) / 1000


def _prices(session: Session, tenant_id: str) -> list[Money]:
    now = clock(session)
    begin, _ = _month(now)
    sums: dict[str, int] = {}
    ended = session.execute(
        select(DeviceTime.currency, func.sum(DeviceTime.price))
        .where(DeviceTime.tenant_id == tenant_id, DeviceTime.at >= begin, DeviceTime.currency.is_not(None))
        .group_by(DeviceTime.currency)
    )
    for row in ended:
        sums[row[0] or ""] = int(row[1] or 0)
    held = session.execute(
        select(Attempt.currency, Attempt.price, Attempt.started_at)
        .join(Job, (Job.id == Attempt.job_id) & (Job.attempt == Attempt.number))
        .where(
            Job.tenant_id == tenant_id,
            Job.id.in_(select(DeviceLease.job_id)),
            Attempt.currency.is_not(None),
            Attempt.price.is_not(None),
        )
    )
    for each in held:
        spent = (each.price or 0) * max(now - each.started_at, 0) // 1000
        sums[each.currency or ""] = sums.get(each.currency or "", 0) + spent
    return [money(price, currency) for currency, price in sorted(sums.items())]


def _month(at: int) -> tuple[int, int]:
    """Begin and end of the month, UTC, ms."""
    now = datetime.fromtimestamp(at / 1000, UTC)
    begin = datetime(now.year, now.month, 1, tzinfo=UTC)
    end = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return int(begin.timestamp() * 1000), int(end.timestamp() * 1000)
