"""GET /v1/compare: finished jobs beside one another."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.access import Reader, no_such_job
from app.compare import repository
from app.compare.comparison import Finished, compare
from app.compare.schemas import Comparison
from app.errors import InvalidRequest, InvalidTransition
from app.http.conditional import PRIVATE
from app.http.field_problems import field_error
from app.http.problems import responses
from app.http.route import StrictRoute
from app.ids import is_id
from app.jobs.models import ACTIVE
from app.jobs.views import JOB_ID
from app.services import ServicesDep
from workers.engine.report import Report

MOST = 8
router = APIRouter(prefix="/v1/compare", tags=["reports"], route_class=StrictRoute)


@router.get("", operation_id="jobs_compare", response_model=Comparison, responses=responses(404, 409, 422))
def compare_jobs(
    job: Annotated[
        list[str],
        Query(min_length=2, max_length=MOST, description="Ids of two to eight jobs, each once.", examples=[[JOB_ID]]),
    ],
    principal: Reader,
    has: ServicesDep,
) -> Response:
    """Jobs beside one another, in the order asked for: where their specs differ, what they measured, what became of
    each layer, how they learnt. Jobs that failed have a spec to compare and nothing else."""
    if len(set(job)) < len(job):
        detail = "a job stands there twice: give each once"
        raise InvalidRequest(f"?job: {detail}.", errors=[field_error("?job", "duplicate_job", detail)])
    with has.database.read() as session:
        found = _finished(session, principal.tenant_id, job)
    return Response(compare(found).model_dump_json(), headers=PRIVATE, media_type="application/json")


def _finished(session: Session, tenant_id: str, job_ids: list[str]) -> list[Finished]:
    views = repository.jobs(session, tenant_id, [job_id for job_id in job_ids if is_id("job", job_id)])
    if len(views) < len(job_ids):
        raise no_such_job()
    if active := [view for view in views.values() if view.status in ACTIVE]:
        names = ", ".join(view.id for view in active)
        raise InvalidTransition(
            f"Only finished jobs compare, and {len(active)} of these {'has' if len(active) == 1 else 'have'} not "
            f"ended: {names}. Wait for the end, or leave out what is still {active[0].status}.",
            code="not_finished",
            current=active[0].status,
        )
    reports = repository.reports(session, job_ids)
    sizes = repository.weight_bytes(session, job_ids)
    return [
        Finished(
            job=views[job_id],
            report=Report.model_validate({**reports[job_id], "layers": []}) if job_id in reports else None,
            layers=reports[job_id]["layers"] if job_id in reports else [],
            weight_bytes=sizes.get(job_id),
        )
        for job_id in job_ids
    ]
