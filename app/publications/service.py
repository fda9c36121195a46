"""Publications of a job that is locked: ask for more, try again. Functions take a session and never commit."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from app.db import clock
from app.errors import InvalidRequest, InvalidTransition, NotFound
from app.jobs.lifecycle import VERBS
from app.jobs.models import Event, Job
from app.publications import outbox
from app.publications.contract import Params
from app.publications.models import Publication
from app.webhooks import outbox as webhooks

MOST = 50
"""Of a job."""
ENDED = ("published", "withheld", "failed")


def ask(session: Session, job: Job, params: Params, *, asked_by: str) -> tuple[Publication, bool]:
    """A publication of a finished job, and whether it is new: one that waits or runs already is not begun twice."""
    if job.status != "succeeded":
        raise InvalidTransition(
            f"The job is {job.status}: only the result of a job that has succeeded can be published.",
            allowed=VERBS[job.status],
            current=job.status,
        )
    if params.gates == "pass" and job.verdict not in (None, "pass"):
        raise InvalidTransition(
            f"The job's gates say {job.verdict}: publish it with `gates` set to `any` if it is to be all the same.",
            code="gates_not_passed",
            allowed=VERBS[job.status],
            current=job.status,
        )
    there = outbox.of_job(session, job.id)
    document = params.model_dump(mode="json")
    for each in there:
        if each.state not in ENDED and each.params == document:
            return each, False
    if len(there) >= MOST:
        raise InvalidRequest(f"A job has at most {MOST} publications.", code="too_many_publications")
    (made,) = outbox.ask(
        session,
        tenant_id=job.tenant_id,
        job_id=job.id,
        asked=[params],
        asked_by=asked_by,
        now=clock(session),
        succeeded=True,
        verdict=job.verdict,
    )
    show(session, job)
    return made, True


def retry(session: Session, job: Job, publication_id: str) -> Publication:
    """Try again what has failed, at once; what waits between two tries too. Raises NotFound, InvalidTransition."""
    found = next((each for each in outbox.of_job(session, job.id) if each.id == publication_id), None)
    if found is None:
        raise NotFound("The job has no such publication: its list names the ones it has.")
    if found.state not in ("failed", "pending"):
        raise InvalidTransition(
            f"The publication is {found.state}: only one that has failed can be tried again.",
            allowed=[],
            current=found.state,
        )
    found.state, found.tries, found.due_at, found.done_at = "pending", 0, clock(session), None
    show(session, job)
    return found


def show(session: Session, job: Job, told: Publication | None = None) -> None:
    """Have the job's body show how its publications are, and its events and webhooks what has become of one."""
    session.flush()
    now = clock(session)
    job.publications = outbox.shown(outbox.of_job(session, job.id))
    job.version += 1
    job.updated_at = now
    if told is not None:
        job.event_seq += 1
        session.add(
            Event(job_id=job.id, seq=job.event_seq, type="publication", attempt=job.attempt, data=_said(told), at=now)
        )
    session.flush()
    if told is not None:
        webhooks.note(
            session.connection(),
            tenant_id=job.tenant_id,
            job_id=job.id,
            seq=job.event_seq,
            kind=f"publication.{told.state}",
            at=now,
        )


def _said(publication: Publication) -> dict[str, Any]:
    said = {"id": publication.id, "to": publication.params["to"], "state": publication.state}
    if publication.result is not None:
        said |= {"location": publication.result["location"], "revision": publication.result["revision"]}
    if publication.error is not None and publication.state == "failed":
        said |= {"code": publication.error["code"]}
    return said
