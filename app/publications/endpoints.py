"""Publications over HTTP: have a finished job's result brought somewhere, see how that went, try it again."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.access import JobReader, Principal, Requires, no_such_job
from app.errors import InvalidTransition
from app.http.private import private_json
from app.http.problems import responses
from app.http.route import StrictRoute
from app.jobs import repository
from app.jobs.models import Job
from app.jobs.parameters import JobId
from app.keys.repository import tenant_name
from app.publications import outbox, service
from app.publications.request import Publish
from app.publications.schemas import PUBLICATION_ID, CredentialsList, PublicationList, PublicationRead
from app.services import ServicesDep

router = APIRouter(tags=["publications"], route_class=StrictRoute)

Owner = Annotated[Principal, Depends(Requires("publish"))]
PublicationId = Annotated[str, Path(max_length=100, examples=[PUBLICATION_ID])]
OF_JOB = "/v1/jobs/{job_id}/publications"


@router.get(OF_JOB, operation_id="publications_list", response_model=PublicationList, responses=responses(404))
def list_publications(seen: JobReader, has: ServicesDep) -> Response:
    """Places that the job's result is brought to, oldest first; the job has them too."""
    with has.database.read() as session:
        return private_json({"data": [outbox.as_json(each) for each in outbox.of_job(session, seen.job.id)]})


@router.post(
    OF_JOB,
    operation_id="publications_create",
    status_code=202,
    response_model=PublicationRead,
    responses={
        **responses(400, 404, 409, 413, 415, 422),
        200: {"model": PublicationRead, "description": "The same is waiting or being published already: that one."},
    },
)
def create(job_id: JobId, publish: Publish, principal: Owner, has: ServicesDep) -> Response:
    """Have the result of a job that has succeeded brought somewhere."""

    def make(session: Session) -> tuple[dict[str, Any], bool]:
        job = _owned(session, principal, job_id)
        has.credentials.check([publish], tenant_name(session, principal.tenant_id), "")
        made, new = service.ask(session, job, publish, asked_by=principal.key_name)
        return outbox.as_json(made), new

    made, new = has.database.transact(make)
    return private_json(made, 202 if new else 200, {"Location": OF_JOB.format(job_id=job_id)})


@router.post(
    OF_JOB + "/{publication_id}/retry",
    operation_id="publications_retry",
    response_model=PublicationRead,
    responses=responses(404, 409),
)
def retry(job_id: JobId, publication_id: PublicationId, principal: Owner, has: ServicesDep) -> Response:
    """Try a publication again that has failed, or is to be tried again later."""

    def again(session: Session) -> dict[str, Any]:
        return outbox.as_json(service.retry(session, _owned(session, principal, job_id), publication_id))

    return private_json(has.database.transact(again))


@router.get("/v1/credentials", operation_id="credentials_list", response_model=CredentialsList, responses=responses())
def credentials(principal: Owner, has: ServicesDep) -> Response:
    """Names of the operator's credentials that your tenant may publish with."""
    with has.database.read() as session:
        tenant = tenant_name(session, principal.tenant_id)
    found = has.credentials.of_tenant(tenant)
    return private_json({"data": [{"name": name, "to": found[name].to} for name in sorted(found)]})


def _owned(session: Session, principal: Principal, job_id: str) -> Job:
    job = repository.lock_owned(session, principal.tenant_id, job_id)
    if job is None:
        raise no_such_job()
    if job.files_removed_at is not None:
        raise InvalidTransition(
            "The job's files have been removed, and a publication is of all of them: submit the job again, the same "
            "spec gives the same weights, and publish that one.",
            code="files_removed",
            current=job.status,
        )
    return job
