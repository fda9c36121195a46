"""The first steps of a publication, in the transaction that submits its job, and in the one in which that succeeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.ids import new_id
from app.jobs.views import iso
from app.publications.contract import Params
from app.publications.models import Publication


def ask(
    session: Session,
    *,
    tenant_id: str,
    job_id: str,
    asked: Sequence[Params],
    asked_by: str | None,
    now: int,
    succeeded: bool = False,
    verdict: str | None = None,
) -> list[Publication]:
    """Publications of a job that has yet to succeed, or has."""
    ids = sorted(new_id("pub") for _ in asked)  # made within a millisecond, they would be in any order
    made = [
        Publication(
            id=publication_id,
            job_id=job_id,
            tenant_id=tenant_id,
            params=params.model_dump(mode="json"),
            state=_state(params.gates, verdict) if succeeded else "waiting",
            tries=0,
            due_at=now,
            asked_by=asked_by,
            created_at=now,
        )
        for publication_id, params in zip(ids, asked, strict=True)
    ]
    session.add_all(made)
    session.flush()
    return made


def decide(session: Session, job_id: str, verdict: str | None, now: int) -> list[Publication]:
    """The job has succeeded: have its publications done, or withheld by its gates. All of them, oldest first."""
    found = of_job(session, job_id)
    for publication in found:
        if publication.state == "waiting":
            publication.state, publication.due_at = _state(publication.params["gates"], verdict), now
            publication.done_at = now if publication.state == "withheld" else None
    session.flush()
    return found


def of_job(session: Session, job_id: str) -> list[Publication]:
    """Oldest first."""
    return list(session.scalars(select(Publication).where(Publication.job_id == job_id).order_by(Publication.id)))


def as_json(publication: Publication) -> dict[str, Any]:
    """As schemas.PublicationRead describes it."""
    params = dict(publication.params)
    return {
        "id": publication.id,
        "to": params.pop("to"),
        "credentials": params.pop("credentials"),
        "gates": params.pop("gates"),
        "params": params,
        "state": publication.state,
        "tries": publication.tries,
        "progress": publication.progress,
        "result": publication.result,
        "error": publication.error,
        "asked_by": publication.asked_by,
        "created_at": iso(publication.created_at),
        "due_at": iso(publication.due_at) if publication.state == "pending" else None,
        "done_at": iso(publication.done_at),
    }


def shown(publications: Sequence[Publication]) -> list[dict[str, Any]] | None:
    """As `jobs.publications` holds them, from which job bodies are rendered; None where there are none."""
    return [as_json(publication) for publication in publications] or None


def _state(gates: str, verdict: str | None) -> str:
    return "pending" if gates == "any" or verdict in (None, "pass") else "withheld"
