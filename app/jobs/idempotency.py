"""Idempotency-Key: a repeated submission gets the first one's answer. draft-ietf-httpapi-idempotency-key-header-07.

The answer is written in the transaction that makes the job or the sweep, so a crash leaves both or neither. The
primary key decides between two requests at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.db import clock
from app.errors import IdempotencyConflict, InvalidRequest
from app.http.field_problems import field_error
from app.jobs import repository
from app.jobs.models import IdempotencyKey


@dataclass(frozen=True)
class Keyed:
    """A submission that carries a key."""

    tenant_id: str
    route: str
    """Method and path."""
    key: str
    fingerprint: str


def keyed(header: str | None, tenant_id: str, route: str, asked: Callable[[], Any]) -> Keyed | None:
    """The key in the header, quoted as the draft has it or bare as many clients send it. Raises InvalidRequest.

    `asked` returns JSON: what must be the same for two requests to be one.
    """
    if header is None:
        return None
    found = re.fullmatch(r'"([\x21\x23-\x7e]{1,255})"|([\x21\x23-\x7e]{1,255})', header.strip())
    if not found:
        detail = "send 1 to 255 visible ASCII characters, e.g. a UUID"
        raise InvalidRequest(
            f"Idempotency-Key: {detail}.", errors=[field_error("#Idempotency-Key", "invalid_idempotency_key", detail)]
        )
    body = orjson.dumps(asked(), option=orjson.OPT_SORT_KEYS)
    return Keyed(tenant_id, route, found[1] or found[2], hashlib.sha256(body).hexdigest())


def answered(session: Session, request: Keyed) -> tuple[str, bytes] | None:
    """(id of what it made, body) of the key's answer. Raises IdempotencyConflict if that was to another request."""
    record = repository.idempotency_key(session, request.tenant_id, request.route, request.key)
    if record is None:
        return None
    if record.fingerprint != request.fingerprint:
        raise IdempotencyConflict("The key came with another body before: use a new key for a new request.")
    return record.resource_id, record.body.encode()


def remember(session: Session, request: Keyed, resource_id: str, body: bytes, *, hours: float) -> None:
    """Write the answer down. A concurrent request with the same key makes the commit fail with IntegrityError."""
    now = clock(session)
    mine = (IdempotencyKey.tenant_id == request.tenant_id, IdempotencyKey.route == request.route)
    session.execute(
        delete(IdempotencyKey).where(*mine, IdempotencyKey.key == request.key, IdempotencyKey.expires_at <= now)
    )
    session.add(
        IdempotencyKey(
            tenant_id=request.tenant_id,
            route=request.route,
            key=request.key,
            fingerprint=request.fingerprint,
            resource_id=resource_id,
            body=body.decode(),
            expires_at=now + int(hours * 3_600_000),
        )
    )
    session.flush()
