"""Files of a result that a retention policy has removed: what the list and a download say of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.errors import ArtifactRemoved
from app.jobs import repository
from app.jobs.views import removed as said_of

WHY = {
    "report": "the job's policy keeps its report only",
    "front": "the policy of its sweep keeps the files of the Pareto front only",
    "limit": "the service keeps files of results for a limited time",
}


class Removed(NamedTuple):
    said: dict[str, Any]
    """As schemas.FilesRemoved has it."""
    paths: list[str]
    bytes: int


def removed(session: Session, tenant_id: str, job_id: str) -> Removed | None:
    job = repository.view(session, tenant_id, job_id)
    said = said_of(job) if job else None
    if said is None:
        return None
    files = repository.removed_artifacts(session, tenant_id, job_id)
    return Removed(said, [file.path for file in files], sum(file.bytes for file in files))


def check_not_removed(session: Session, tenant_id: str, job_id: str, path: str) -> None:
    """Raises ArtifactRemoved where the job has had the file."""
    gone = removed(session, tenant_id, job_id)
    if gone is not None and path in gone.paths:
        raise ArtifactRemoved(
            f"{path} was removed at {gone.said['at']}: {WHY[gone.said['because']]}. The report stays; the same spec "
            "gives the same weights.",
            headers={"Cache-Control": "no-store"},
            removed_at=gone.said["at"],
            because=gone.said["because"],
        )
