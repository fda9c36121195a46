"""A finished job's report, for programs and for people."""

from __future__ import annotations

import hashlib
from typing import Annotated

import orjson
from fastapi import APIRouter, Header
from starlette.responses import Response

from app.access import JobReader
from app.artifacts.stored import lost
from app.errors import InvalidTransition, NotFound
from app.http.conditional import PAGE_HEADERS
from app.http.negotiation import negotiate
from app.http.problems import responses
from app.http.route import StrictRoute
from app.jobs import repository
from app.jobs.models import ACTIVE
from app.reports.schemas import Report
from app.services import ServicesDep

router = APIRouter(prefix="/v1/jobs/{job_id}/report", tags=["reports"], route_class=StrictRoute)

PAGE = "report.html"


@router.get(
    "",
    operation_id="jobs_report",
    response_model=Report,
    responses={**responses(404, 406, 409, 410), 200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def report(
    seen: JobReader,
    has: ServicesDep,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """The report of a succeeded job as JSON, or with `Accept: text/html` as a page with plots."""
    kind = negotiate(accept, ["application/json", "text/html"])
    if seen.job.status in ACTIVE:
        raise InvalidTransition(
            f"The job is {seen.job.status}: its report is there when it has succeeded. Poll the job until then.",
            code="not_finished",
            current=seen.job.status,
        )
    tenant_id, job_id = seen.principal.tenant_id, seen.job.id
    with has.database.read() as session:
        body = repository.report(session, tenant_id, job_id)
        page = repository.artifact(session, tenant_id, job_id, PAGE) if kind == "text/html" else None
    if body is None:
        raise NotFound(
            f"The job has {seen.job.status}, and only a job that succeeds has a report. Its `error` and logs say why.",
            code="no_report",
        )
    if kind == "application/json":
        return Response(orjson.dumps(body), headers=PAGE_HEADERS, media_type=kind)
    if page is None:
        raise NotFound("This job's report has no page: take it as JSON.", code="no_report")
    try:
        content = has.store.read(page.key)
    except FileNotFoundError:
        raise lost(page, "is gone from it") from None
    if hashlib.sha256(content).hexdigest() != page.sha256:
        raise lost(page, "is not what was stored")
    return Response(content, headers=PAGE_HEADERS, media_type=kind)
