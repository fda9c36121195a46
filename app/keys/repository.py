"""Every SELECT about tenants and keys. The one that authenticates reads KEY_COLUMNS with the job asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Text, case, cast, func, select
from sqlalchemy.orm import Session

from app.db import now_ms, table
from app.keys.models import ApiKey, Tenant

TOUCH_MS = 60_000
"""`last_used_at` is written at most this often."""


class KeyView(NamedTuple):
    """A key as needed to authorise a request, by the database's clock. One row of KEY_COLUMNS, in their order."""

    hash: str
    id: str
    tenant_id: str
    scopes: str
    """JSON text."""
    revoked: int
    expired: int
    touch: int
    """`last_used_at` is older than TOUCH_MS."""
    name: str
    max_requests: int | None
    """The tenant's, in a minute."""


_key = table(ApiKey).c
KEY_COLUMNS = (
    _key.hash,
    _key.id,
    _key.tenant_id,
    cast(_key.scopes, Text),
    case((_key.revoked_at.is_not(None), 1), else_=0),
    case((_key.expires_at <= now_ms(), 1), else_=0),
    case((func.coalesce(_key.last_used_at, 0) < now_ms() - TOUCH_MS, 1), else_=0),
    _key.name,
    select(Tenant.max_requests).where(Tenant.id == _key.tenant_id).scalar_subquery(),
)


def tenant_named(session: Session, name: str) -> Tenant | None:
    return session.scalar(select(Tenant).where(Tenant.name == name))


def tenant_name(session: Session, tenant_id: str) -> str:
    return session.scalars(select(Tenant.name).where(Tenant.id == tenant_id)).one()


def key(session: Session, key_id: str) -> ApiKey | None:
    return session.get(ApiKey, key_id)


def keys(session: Session) -> Sequence[tuple[ApiKey, str]]:
    """(key, tenant name), oldest first, revoked ones included."""
    rows = session.execute(
        select(ApiKey, Tenant.name).join(Tenant, Tenant.id == ApiKey.tenant_id).order_by(ApiKey.created_at, ApiKey.id)
    )
    return [(row[0], row[1]) for row in rows]
