"""The signature of a result's manifest, handed out with its files as if it were one: made when it is asked for.

So the workers need no private key, results that are older than the keys are signed too, and those that a revoked key
had signed are signed by the present one.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.jobs import repository
from app.jobs.models import Artifact
from app.jobs.views import iso
from app.keys.repository import tenant_name
from app.signing.keys import KeyRing
from app.signing.signature import Statement, sign
from workers.engine.files.manifest import MANIFEST, SIGNATURE


class Signature(NamedTuple):
    """`manifest.jws` of a job."""

    file: Artifact
    """In no session, and with no key in the store."""
    content: bytes


def signature(
    session: Session, keys: KeyRing, tenant_id: str, job_id: str, finished_at: int | None
) -> Signature | None:
    """None where the job has no manifest, or the service no key."""
    key = keys.signs()
    manifest = repository.artifact(session, tenant_id, job_id, MANIFEST) if key else None
    if key is None or manifest is None:
        return None
    statement = Statement(
        manifest_sha256=manifest.sha256,
        job_id=job_id,
        tenant=tenant_name(session, tenant_id),
        finished_at=iso(finished_at),
    )
    content = sign(key, statement)
    digest = hashlib.sha256(content).hexdigest()
    return Signature(Artifact(job_id=job_id, path=SIGNATURE, bytes=len(content), sha256=digest, key=""), content)
