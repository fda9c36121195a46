"""Models that a tenant's jobs have made."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session

from app.jobs.models import Artifact, Job, ReportRecord
from app.storage import ArtifactStore, StorageError

NOT_NAMED = (
    "a spec names models of the hub or of the models directory: download the files of this result into a folder there"
)
CONFIG = "config.json"
CONFIG_BYTES = 2**20


class Result(NamedTuple):
    job_id: str
    created_at: int
    before: int | None
    after: int | None
    """Parameters; None of reports from before they were counted."""
    config_key: str | None
    """Where its config lies in the artifact store."""


def page(session: Session, tenant_id: str, *, behind: tuple[int | str, ...] | None, limit: int) -> Sequence[Result]:
    """The tenant's results, newest job first, from behind (created_at, id)."""
    query = _results(tenant_id)
    if behind is not None:
        query = query.where(tuple_(Job.created_at, Job.id) < behind)
    rows = session.execute(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit))
    return [Result(*row) for row in rows]


def of_job(session: Session, tenant_id: str, job_id: str) -> Result | None:
    row = session.execute(_results(tenant_id).where(Job.id == job_id)).one_or_none()
    return None if row is None else Result(*row)


def described(result: Result, store: ArtifactStore) -> dict[str, Any]:
    """The result as schemas.ModelSummary has it."""
    return {
        "id": result.job_id,
        "source": "job",
        "model_type": None if result.config_key is None else _model_type(store, result.config_key),
        "family": None,
        "parameters": result.after or result.before,
        "blocks": None,
        "context_length": None,
        "weight_bytes": None,
        "compressible": False,
        "methods": [],
        "code": "not_named",
        "reason": NOT_NAMED,
    }


def _results(tenant_id: str) -> Select[Any]:
    body = ReportRecord.body
    return (
        select(
            Job.id,
            Job.created_at,
            body["parameters"].as_integer(),
            body["parameters_after"].as_integer(),
            Artifact.key,
        )
        .join(ReportRecord, ReportRecord.job_id == Job.id)
        .join(Artifact, (Artifact.job_id == Job.id) & (Artifact.path == CONFIG), isouter=True)
        .where(Job.tenant_id == tenant_id, Job.status == "succeeded", Job.files_removed_at.is_(None))
    )


def _model_type(store: ArtifactStore, key: str) -> str | None:
    try:
        return _read_model_type(store, key)
    except (OSError, StorageError, ValueError):  # nobody's business here: a download says what is wrong
        return None


@lru_cache(maxsize=1024)
def _read_model_type(store: ArtifactStore, key: str) -> str | None:
    """Of a file that is never written again."""
    config = orjson.loads(b"".join(store.open_range(key, 0, min(store.size(key) or 0, CONFIG_BYTES))))
    found = config.get("model_type")
    return found if isinstance(found, str) else None
