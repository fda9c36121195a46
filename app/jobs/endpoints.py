"""Jobs over HTTP: submit, list, look, label, cancel, pause, resume, retry, delete. See the service and the views."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Header, Query
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from app.access import (
    Canceller,
    JobSeen,
    Principal,
    Reader,
    Writer,
    check_priority,
    check_publish,
    look_at_job,
    no_such_job,
)
from app.errors import InvalidRequest
from app.http.conditional import PRIVATE, check_if_match, matches, wait_preference
from app.http.field_problems import field_error
from app.http.pagination import decode_cursor, encode_cursor, next_link
from app.http.problems import responses
from app.http.queries import Flag
from app.http.route import DirectRoute, StrictRoute, check_query
from app.jobs import needs, preflight, removals, repository, retention, service, usage
from app.jobs.acceptance import accept_once, as_sent
from app.jobs.models import TERMINAL, Job
from app.jobs.parameters import Counted, Cursor, JobId, Limit, filters, order
from app.jobs.repository import Filters, Order, Page
from app.jobs.schemas import MAX_LABELS, JobPage, JobPatch, JobRead, JobSubmit, PlanRead
from app.jobs.views import JOB_ID, JobView, Place, etag, render
from app.keys.repository import tenant_name
from app.services import Services, ServicesDep

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

WAIT_STEP_S = 0.2
POLL_AFTER_S = 1
POLL_PARAMETERS = {
    "security": [{"ApiKey": []}],
    "parameters": [
        {"in": "path", "name": "job_id", "required": True, "schema": {"type": "string"}, "example": JOB_ID},
        {
            "in": "header",
            "name": "If-None-Match",
            "schema": {"type": "string"},
            "description": "ETag of the answer you have.",
        },
        {
            "in": "header",
            "name": "Prefer",
            "schema": {"type": "string"},
            "description": "`wait=N`: answer when something has changed, or after N <= 60 s.",
        },
    ],
}


@router.post(
    "",
    operation_id="jobs_create",
    status_code=202,
    response_model=JobRead,
    responses={**responses(400, 413, 415, 422), 200: {"model": PlanRead, "description": "The plan, of a dry run."}},
)
def create(
    request: Request,
    submit: JobSubmit,
    principal: Writer,
    has: ServicesDep,
    dry_run: Annotated[Flag, Query(description="Answer with what the job would do, and make none.")] = False,
    idempotency_key: Annotated[
        str | None, Header(description="Any unique text: a repetition with the same key gets the same job.")
    ] = None,
) -> Response:
    """Submit a job."""
    check_priority(principal, submit.priority)
    if submit.publish:
        check_publish(principal)
        with has.database.read() as session:
            tenant = tenant_name(session, principal.tenant_id)
        has.credentials.check(submit.publish, tenant, "/publish")
    kept = submit.retention
    max_attempts, deadline_s = preflight.limits(submit, has.settings, None if kept is None else kept.days)
    if dry_run:
        with has.database.read() as session:
            workers = needs.live(session.connection())
        plan = preflight.dry_run(submit.spec, has.settings, workers)
        return Response(plan.model_dump_json(), media_type="application/json")
    asked = None if kept is None else (kept.keep, kept.days)
    peak: list[int | None] = []

    def make(session: Session) -> tuple[str, bytes]:
        job = service.create(
            session,
            tenant_id=principal.tenant_id,
            spec=submit.spec,
            labels=submit.labels,
            priority=submit.priority,
            max_attempts=max_attempts,
            deadline_s=deadline_s,
            request_id=request.state.request_id,
            asked_by=principal.key_name,
            publish=submit.publish,
            policy=retention.policy(session, principal.tenant_id, asked, has.settings.keep_days),
            peak_memory_bytes=peak[-1],
        )
        usage.check_more(session, principal.tenant_id)
        places = repository.places(session.connection(), [job])
        return job.id, render(job, places[job.id])

    return accept_once(
        has,
        router.prefix,
        idempotency_key,
        principal.tenant_id,
        asked=lambda: as_sent(submit),
        check=lambda: peak.append(preflight.check(submit.spec, has.settings)),
        make=make,
        poll_after_s=POLL_AFTER_S,
    )


@router.get("", operation_id="jobs_list", response_model=JobPage, responses=responses(400, 422))
def list_jobs(
    request: Request,
    principal: Reader,
    has: ServicesDep,
    narrowed: Annotated[Filters, Depends(filters)],
    ordered: Annotated[Order, Depends(order)],
    limit: Limit = 50,
    cursor: Cursor = None,
    count: Counted = False,
) -> Response:
    """The tenant's jobs, newest first unless `sort` says otherwise."""
    binding = f"{principal.tenant_id} {narrowed} {ordered}"
    behind = None if cursor is None else decode_cursor(has.secret, binding, cursor)
    with has.database.rows() as connection:
        asked = Page(narrowed, limit + 1, behind, ordered)
        jobs, bodies = has.bodies.page(connection, principal.tenant_id, asked)
        total = repository.total(connection, principal.tenant_id, narrowed) if count else None
    has_more = len(jobs) > limit
    jobs, bodies = jobs[:limit], bodies[:limit]
    next_cursor = encode_cursor(has.secret, binding, *ordered.position(jobs[-1])) if has_more else None
    page = {
        "data": [orjson.Fragment(body) for body in bodies],
        "next_cursor": next_cursor,
        "has_more": has_more,
        "total": total,
    }
    headers = {**PRIVATE, **next_link(request, next_cursor)}
    return Response(orjson.dumps(page), headers=headers, media_type="application/json")


@router.get(
    "/{job_id}",
    operation_id="jobs_get",
    response_model=JobRead,
    responses={**responses(404), 304: {"description": "The job is as the ETag in If-None-Match says."}},
    openapi_extra=POLL_PARAMETERS,
)
async def get(request: Request) -> Response:
    """A job. Poll with If-None-Match: an answer without news is a 304 without a body."""
    # What dashboards call thousands of times a second: it reads the request itself, at half the cost of dependencies.
    check_query(request, {})
    seen = await look_at_job(request, request.path_params["job_id"], "jobs:read")
    known = request.headers.get("if-none-match")
    headers = dict(PRIVATE)
    wait_s = wait_preference(request.headers.get("prefer"))
    if wait_s is not None:
        seen = await _changed(request, seen, known or etag(seen.job, seen.place), wait_s)
        headers["Preference-Applied"] = f"wait={wait_s}"
    headers["ETag"] = etag(seen.job, seen.place)
    if matches(known, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(render(seen.job, seen.place), headers=headers, media_type="application/json")


class _PollRoute(Route):
    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        return match, {**found, "route": self}  # as FastAPI's routes do; metrics and logs name it


hot_routes: list[BaseRoute] = [
    _PollRoute("/v1/jobs/{job_id}", get, methods=["GET"], include_in_schema=False),
    *(
        DirectRoute(route)
        for route in router.routes
        if isinstance(route, StrictRoute) and route.endpoint in (create, list_jobs)
    ),
]
"""To stand before all others: what dashboards and pipelines ask most."""


@router.patch(
    "/{job_id}",
    operation_id="jobs_update",
    response_model=JobRead,
    responses=responses(400, 404, 409, 412, 413, 415, 422),
)
def update(
    job_id: JobId,
    patch: JobPatch,
    principal: Writer,
    has: ServicesDep,
    if_match: Annotated[str | None, Header(description="ETag of the job you mean to change.")] = None,
) -> Response:
    """Change labels, and whether policies may remove the files of the result."""

    def relabel(session: Session, job: Job) -> None:
        if if_match is not None:  # somebody's place in the queue is not what this guards
            check_if_match(re.sub(r'-[^"]*"', '"', if_match), f'"{job.version}"')
        if patch.pinned is not None:
            service.pin(session, job, patch.pinned)
        if patch.labels or patch.pinned is None:
            service.set_labels(session, job, patch.labels)
        if repository.label_count(session, job.id) > MAX_LABELS:
            detail = f"a job has at most {MAX_LABELS} labels: remove some"
            raise InvalidRequest(f"/labels: {detail}.", errors=[field_error("/labels", "too_many_labels", detail)])

    return _changing(has, principal, job_id, relabel)


@router.delete("/{job_id}", operation_id="jobs_delete", status_code=204, responses=responses(404, 409))
def delete(job_id: JobId, principal: Writer, has: ServicesDep) -> Response:
    """Delete a finished job and its files."""
    has.database.transact(lambda session: service.remove(session, _owned(session, principal, job_id)))
    removals.work_off_now(has.database, has.store, [job_id])
    return Response(status_code=204)


@router.post("/{job_id}/cancel", operation_id="jobs_cancel", response_model=JobRead, responses=responses(404, 409))
def cancel(job_id: JobId, principal: Canceller, has: ServicesDep) -> Response:
    """Stop a job. A queued one is `cancelled` at once, a running one `cancelling` for a few seconds. Idempotent."""
    return _changing(has, principal, job_id, service.cancel)


@router.post("/{job_id}/pause", operation_id="jobs_pause", response_model=JobRead, responses=responses(404, 409))
def pause(job_id: JobId, principal: Canceller, has: ServicesDep) -> Response:
    """Have a job keep what it has finished and give its worker back. A queued one is `paused` at once, a running one
    `pausing` for a few seconds. Idempotent."""
    return _changing(has, principal, job_id, service.pause)


@router.post("/{job_id}/resume", operation_id="jobs_resume", response_model=JobRead, responses=responses(404, 409))
def resume(job_id: JobId, principal: Writer, has: ServicesDep) -> Response:
    """Queue a paused job again, at the place it had: it goes on behind its finished blocks. Idempotent."""
    response = _changing(has, principal, job_id, service.resume)
    has.relay.wake()
    return response


@router.post("/{job_id}/retry", operation_id="jobs_retry", response_model=JobRead, responses=responses(404, 409))
def retry(job_id: JobId, principal: Writer, has: ServicesDep) -> Response:
    """Queue a failed or cancelled job again, with all its attempts."""

    def again(session: Session, job: Job) -> None:
        service.retry(session, job)
        usage.check_more(session, principal.tenant_id)

    response = _changing(has, principal, job_id, again)
    has.relay.wake()
    return response


async def _changed(request: Request, seen: JobSeen, known: str, wait_s: int) -> JobSeen:
    """The job, as soon as its ETag is not in `known`; a finished one at once."""
    end = asyncio.get_running_loop().time() + wait_s
    while matches(known, etag(seen.job, seen.place)) and seen.job.status not in TERMINAL:
        left_s = end - asyncio.get_running_loop().time()
        if left_s <= 0:
            break
        await asyncio.sleep(min(WAIT_STEP_S, left_s))
        seen = await look_at_job(request, seen.job.id, "jobs:read")
    return seen


def _changing(has: Services, principal: Principal, job_id: str, change: Callable[[Session, Job], None]) -> Response:
    """Apply one change in one transaction and answer with the job after it."""

    def changed(session: Session) -> tuple[JobView, Place | None]:
        change(session, _owned(session, principal, job_id))
        return _view(session, principal, job_id)

    view, place = has.database.transact(changed)
    headers = {**PRIVATE, "ETag": etag(view, place)}
    return Response(render(view, place), headers=headers, media_type="application/json")


def _owned(session: Session, principal: Principal, job_id: str) -> Job:
    job = repository.lock_owned(session, principal.tenant_id, job_id)
    if job is None:
        raise no_such_job()
    return job


def _view(session: Session, principal: Principal, job_id: str) -> tuple[JobView, Place | None]:
    view = repository.view(session, principal.tenant_id, job_id)
    assert view is not None  # written by this transaction
    return view, repository.places(session.connection(), [view]).get(job_id)
