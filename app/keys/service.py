"""Tenants and API keys: make, list, revoke. Functions take a session inside a write transaction and never commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from sqlalchemy import func, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import clock, now_ms
from app.errors import InvalidRequest, NotFound
from app.ids import new_id
from app.keys import repository
from app.keys.models import ApiKey, Tenant
from app.keys.repository import TOUCH_MS
from app.keys.scopes import SCOPES
from app.keys.tokens import hash_token, new_token

DAY_MS = 86_400_000


def create_key(
    session: Session, *, secret: bytes, tenant: str, name: str, scopes: Iterable[str], expires_days: int | None
) -> tuple[ApiKey, str]:
    """A new key for the tenant of that name, which is made if there is none. Returns the key and its text.

    The text is not kept: whoever loses it makes another. Raises InvalidRequest on an unknown scope.
    """
    scopes = sorted(set(scopes))
    if unknown := [scope for scope in scopes if scope not in SCOPES]:
        raise InvalidRequest(f"There is no scope {', '.join(unknown)}.", code="unknown_scope", allowed=list(SCOPES))
    if not scopes:
        raise InvalidRequest("A key without a scope can do nothing.", code="unknown_scope", allowed=list(SCOPES))
    now = clock(session)
    token = new_token()
    key = ApiKey(
        id=new_id("key"),
        tenant_id=_tenant(session, tenant, now).id,
        name=name,
        hash=hash_token(token, secret),
        scopes=scopes,
        created_at=now,
        expires_at=None if expires_days is None else now + expires_days * DAY_MS,
    )
    session.add(key)
    session.flush()
    return key, token


def list_keys(session: Session) -> Sequence[tuple[ApiKey, str]]:
    """(key, tenant name), oldest first, revoked ones included."""
    return repository.keys(session)


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Refuse the key from the next request on; idempotent. Raises NotFound."""
    key = repository.key(session, key_id)
    if key is None:
        raise NotFound(f"There is no key {key_id}: `espalier keys list` shows the ones there are.")
    if key.revoked_at is None:
        key.revoked_at = clock(session)
        session.flush()
    return key


def touch(session: Session, key_id: str) -> None:
    """Note that the key is in use, at most once a minute."""
    session.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id, func.coalesce(ApiKey.last_used_at, 0) < now_ms() - TOUCH_MS)
        .values(last_used_at=now_ms()),
        execution_options={"synchronize_session": False},
    )


def _tenant(session: Session, name: str, now: int) -> Tenant:
    while (tenant := repository.tenant_named(session, name)) is None:
        with suppress(IntegrityError), session.begin_nested():  # another request was faster
            session.add(Tenant(id=new_id("ten"), name=name, created_at=now))
    return tenant
