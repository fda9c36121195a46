"""Tenants as operators see and change them. Functions take a session, and never commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.schemas import Retention
from app.jobs.usage import usage
from app.jobs.views import iso
from app.keys.models import Tenant

QUOTAS = ("queued", "running", "stored_bytes", "device_seconds", "requests")


def every(session: Session) -> Sequence[Tenant]:
    """All tenants, by name."""
    return session.scalars(select(Tenant).order_by(Tenant.name)).all()


def locked(session: Session, tenant_id: str) -> Tenant | None:
    """The tenant, its row locked until the transaction ends."""
    return session.scalar(select(Tenant).where(Tenant.id == tenant_id).with_for_update(key_share=True))


def change(
    session: Session,
    tenant: Tenant,
    *,
    weight: int | None,
    quotas: Mapping[str, int | None],
    retention: Retention | None = None,
) -> None:
    """Set a weight and a retention policy, if they are given, and the quotas that are given; None takes one away."""
    if weight is not None:
        tenant.weight = weight
    if retention is not None:
        tenant.keep, tenant.keep_days = retention.keep, retention.days
    for name, bound in quotas.items():
        setattr(tenant, f"max_{name}", bound)
    session.flush()


def quotas_of(tenant: Tenant) -> dict[str, Any]:
    return {name: getattr(tenant, f"max_{name}") for name in QUOTAS}


def retention_of(tenant: Tenant) -> dict[str, Any]:
    return {"keep": tenant.keep or "all", "days": tenant.keep_days or 0}


def usage_of(session: Session, tenant: Tenant) -> dict[str, Any]:
    used = usage(session, tenant)
    prices = [each._asdict() for each in used.prices]
    return {**used._asdict(), "prices": prices, "resets_at": iso(used.resets_at)}


def detail(session: Session, tenant: Tenant) -> dict[str, Any]:
    """The tenant as schemas.TenantDetail has it."""
    return {
        "id": tenant.id,
        "name": tenant.name,
        "created_at": iso(tenant.created_at),
        "weight": tenant.weight,
        "quotas": quotas_of(tenant),
        "retention": retention_of(tenant),
        "usage": usage_of(session, tenant),
    }
