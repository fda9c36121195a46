"""Idempotency-Key: a repeated submission gets the first one's answer. draft-ietf-httpapi-idempotency-key-header-07.

The answer is written in the transaction that makes the job, so a crash leaves both or neither. The primary key
decides between two requests at once.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import orjson
from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.db import clock
from app.errors import IdempotencyConflict, InvalidRequest
from app.http.problems import field_error
from app.jobs import repository
from app.jobs.models import IdempotencyKey
from app.jobs.schemas import JobSubmit

ROUTE = "POST /v1/jobs"


@dataclass(frozen=True)
class Keyed:
    """A submission that carries a key."""

    tenant_id: str
    key: str
    fingerprint: str


def keyed(header: str | None, tenant_id: str, submit: JobSubmit) -> Keyed | None:
    """The key in the header, quoted as the draft has it or bare as many clients send it. Raises InvalidRequest."""
    if header is None:
        return None
    found = re.fullmatch(r'"([\x21\x23-\x7e]{1,255})"|([\x21\x23-\x7e]{1,255})', header.strip())
    if not found:
        detail = "send 1 to 255 visible ASCII characters, e.g. a UUID"
        raise InvalidRequest(
            f"Idempotency-Key: {detail}.", errors=[field_error("#Idempotency-Key", "invalid_idempotency_key", detail)]
        )
    body = orjson.dumps(submit.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
    return Keyed(tenant_id, found[1] or found[2], hashlib.sha256(body).hexdigest())


def answered(session: Session, request: Keyed) -> tuple[str, bytes] | None:
    """(job id, body) of the answer the key already got. Raises IdempotencyConflict if that was another request."""
    record = repository.idempotency_key(session, request.tenant_id, ROUTE, request.key)
    if record is None:
        return None
    if record.fingerprint != request.fingerprint:
        raise IdempotencyConflict("The key came with another body before: use a new key for a new job.")
    return record.job_id, record.body.encode()


def remember(session: Session, request: Keyed, job_id: str, body: bytes, *, hours: float) -> None:
    """Write the answer down. A concurrent request with the same key makes the commit fail with IntegrityError."""
    now = clock(session)
    mine = (IdempotencyKey.tenant_id == request.tenant_id, IdempotencyKey.route == ROUTE)
    session.execute(
        delete(IdempotencyKey).where(*mine, IdempotencyKey.key == request.key, IdempotencyKey.expires_at <= now)
    )
    session.add(
        IdempotencyKey(
            tenant_id=request.tenant_id,
            route=ROUTE,
            key=request.key,
            fingerprint=request.fingerprint,
            job_id=job_id,
            body=body.decode(),
            expires_at=now + int(hours * 3_600_000),
        )
    )
    session.flush()
