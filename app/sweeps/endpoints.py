"""Sweeps over HTTP: submit, list, look, compare, cancel, delete."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Header, Path, Query
from pydantic import AfterValidator
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from app.access import Canceller, Principal, Reader, Writer, check_priority
from app.errors import NotFound
from app.http.conditional import PAGE_HEADERS, PRIVATE, matches
from app.http.negotiation import negotiate
from app.http.pagination import decode_cursor, encode_cursor, next_link
from app.http.problems import responses
from app.http.queries import Flag
from app.http.route import StrictRoute
from app.ids import is_id
from app.jobs import needs, preflight, removals, usage
from app.jobs.acceptance import accept_once, as_sent
from app.jobs.models import ACTIVE
from app.jobs.parameters import Counted, Cursor, Limit
from app.jobs.schemas import PlanRead, Price
from app.jobs.views import iso
from app.services import Services, ServicesDep
from app.sweeps import expand, page, repository, service, table
from app.sweeps.models import Sweep
from app.sweeps.pareto import pareto as compare
from app.sweeps.repository import ChildRow
from app.sweeps.schemas import (
    SWEEP_ID,
    SWEEP_LABEL,
    Pareto,
    PlannedChild,
    SweepPage,
    SweepPlan,
    SweepRead,
    SweepSubmit,
)

router = APIRouter(prefix="/v1/sweeps", tags=["sweeps"], route_class=StrictRoute)

POLL_AFTER_S = 2


def _possible(sweep_id: str) -> str:
    if not is_id("swp", sweep_id):
        raise _no_such_sweep()
    return sweep_id


SweepId = Annotated[str, Path(examples=[SWEEP_ID]), AfterValidator(_possible)]


@router.post(
    "",
    operation_id="sweeps_create",
    status_code=202,
    response_model=SweepRead,
    responses={**responses(400, 413, 415, 422), 200: {"model": SweepPlan, "description": "The plan, of a dry run."}},
)
def create(
    request: Request,
    submit: SweepSubmit,
    principal: Writer,
    has: ServicesDep,
    dry_run: Annotated[Flag, Query(description="Answer with what the children would do, and make none.")] = False,
    idempotency_key: Annotated[
        str | None, Header(description="Any unique text: a repetition with the same key gets the same sweep.")
    ] = None,
) -> Response:
    """Submit jobs that differ in a few fields of their spec: all of them, or with one mistake in any of them none."""
    check_priority(principal, submit.priority)
    children = expand.children(submit)
    kept = submit.retention
    max_attempts, deadline_s = preflight.limits(submit, has.settings, None if kept is None else kept.days)
    if dry_run:
        return Response(_plan(children, has).model_dump_json(), media_type="application/json")
    peaks: list[int | None] = []

    def check() -> None:
        numbers = range(len(children))
        peaks.extend(expand.checked(numbers, lambda number: preflight.check(children[number].spec, has.settings)))

    def make(session: Session) -> tuple[str, bytes]:
        sweep = service.create(
            session,
            tenant_id=principal.tenant_id,
            submit=submit,
            children=children,
            max_attempts=max_attempts,
            deadline_s=deadline_s,
            request_id=request.state.request_id,
            asked_by=principal.key_name,
            most_days=has.settings.keep_days,
            peaks=peaks,
        )
        usage.check_more(session, principal.tenant_id)
        body, _ = _rendered(session, sweep)
        return sweep.id, body

    return accept_once(
        has,
        router.prefix,
        idempotency_key,
        principal.tenant_id,
        asked=lambda: as_sent(submit),
        check=check,
        make=make,
        poll_after_s=POLL_AFTER_S,
    )


@router.get("", operation_id="sweeps_list", response_model=SweepPage, responses=responses(400, 422))
def list_sweeps(
    request: Request,
    principal: Reader,
    has: ServicesDep,
    limit: Limit = 50,
    cursor: Cursor = None,
    sort: Annotated[
        Literal["-created_at", "created_at"], Query(description="With `-` the newest first.")
    ] = "-created_at",
    count: Counted = False,
) -> Response:
    """The tenant's sweeps, newest first unless `sort` says otherwise, without their children."""
    binding = f"{principal.tenant_id} sweeps {sort}"
    behind = None if cursor is None else decode_cursor(has.secret, binding, cursor)
    with has.database.read() as session:
        oldest_first = sort == "created_at"
        found = repository.page(session, principal.tenant_id, behind=behind, limit=limit + 1, oldest_first=oldest_first)
        total = repository.total(session, principal.tenant_id) if count else None
        sweeps, has_more = found[:limit], len(found) > limit
        counts = repository.count_children(session, [sweep.id for sweep in sweeps])
        data = [_summary(sweep, counts[sweep.id]) for sweep in sweeps]
    next_cursor = encode_cursor(has.secret, binding, sweeps[-1].created_at, sweeps[-1].id) if has_more else None
    headers = {**PRIVATE, **next_link(request, next_cursor)}
    answer = {"data": data, "next_cursor": next_cursor, "has_more": has_more, "total": total}
    return Response(orjson.dumps(answer), headers=headers, media_type="application/json")


@router.get(
    "/{sweep_id}",
    operation_id="sweeps_get",
    response_model=SweepRead,
    responses={
        **responses(404, 406),
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}},
        304: {"description": "The sweep is as the ETag in If-None-Match says."},
    },
)
def get(
    sweep_id: SweepId,
    principal: Reader,
    has: ServicesDep,
    if_none_match: Annotated[str | None, Header(description="ETag of the answer you have.")] = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """A sweep with its children: what each varies, its job, how that is, and what it measured; with `Accept: text/csv`
    a table of the children."""
    kind = negotiate(accept, ["application/json", "text/csv"])
    with has.database.read() as session:
        sweep = _owned(session, principal, sweep_id)
        if kind == "text/csv":
            found = table.as_csv(sweep.parameters, repository.children(session, sweep_id))
            return Response(found, headers={**PRIVATE, "Vary": "Authorization, Cookie, Accept"}, media_type=kind)
        body, etag = _rendered(session, sweep)
    headers = {**PRIVATE, "Vary": "Authorization, Cookie, Accept", "ETag": etag}
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.get(
    "/{sweep_id}/pareto",
    operation_id="sweeps_pareto",
    response_model=Pareto,
    responses={**responses(404, 406, 422), 200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def pareto(
    sweep_id: SweepId,
    principal: Reader,
    has: ServicesDep,
    quality: Annotated[
        str | None,
        Query(
            max_length=300,
            description="A measurement. Default: the first one with a direction.",
            examples=["perplexity/heldout.txt"],
        ),
    ] = None,
    cost: Annotated[
        str | None,
        Query(
            max_length=300,
            description="Another. Default: the first exact one that differs between the children, or `sparsity`.",
            examples=["size/weight_bytes"],
        ),
    ] = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """Quality against cost of the children that have succeeded, as JSON, or with `Accept: text/html` as a page."""
    kind = negotiate(accept, ["application/json", "text/html"])
    with has.database.read() as session:
        sweep = _owned(session, principal, sweep_id)
        children = repository.children(session, sweep_id)
        found = compare(sweep_id, children, repository.measurements(session, sweep_id), quality, cost)
        if kind == "text/html":
            html = page.render(_summary(sweep, _counts(children)), found)
            return Response(html, headers=PAGE_HEADERS, media_type=kind)
    headers = {**PRIVATE, "Vary": "Authorization, Cookie, Accept"}
    return Response(found.model_dump_json(), headers=headers, media_type=kind)


@router.post("/{sweep_id}/cancel", operation_id="sweeps_cancel", response_model=SweepRead, responses=responses(404))
def cancel(sweep_id: SweepId, principal: Canceller, has: ServicesDep) -> Response:
    """Stop every child that has not ended. Idempotent."""

    def stop(session: Session) -> tuple[bytes, str]:
        sweep = _owned(session, principal, sweep_id)
        service.cancel(session, sweep)
        return _rendered(session, sweep)

    body, etag = has.database.transact(stop)
    return Response(body, headers={**PRIVATE, "ETag": etag}, media_type="application/json")


@router.delete("/{sweep_id}", operation_id="sweeps_delete", status_code=204, responses=responses(404, 409))
def delete(sweep_id: SweepId, principal: Writer, has: ServicesDep) -> Response:
    """Delete a completed sweep, its jobs and their files."""
    job_ids = has.database.transact(lambda session: service.remove(session, _owned(session, principal, sweep_id)))
    removals.work_off_now(has.database, has.store, job_ids)
    return Response(status_code=204)


def _owned(session: Session, principal: Principal, sweep_id: str) -> Sweep:
    sweep = repository.sweep_of_tenant(session, principal.tenant_id, sweep_id)
    if sweep is None:
        raise _no_such_sweep()
    return sweep


def _no_such_sweep() -> NotFound:
    return NotFound("There is no such sweep: check the id, and that the key is of the tenant that submitted it.")


def _plan(children: list[expand.Child], has: Services) -> SweepPlan:
    with has.database.read() as session:
        workers = needs.live(session.connection())

    def plan(number: int) -> PlanRead:
        return preflight.dry_run(children[number].spec, has.settings, workers)

    plans = expand.checked(range(len(children)), plan)
    return SweepPlan(
        children=[
            PlannedChild(number=child.number, values=child.values, **plan.model_dump(include=_PLANNED))
            for child, plan in zip(children, plans, strict=True)
        ],
        peak_memory_bytes=max(plan.peak_memory_bytes for plan in plans),
        elapsed_s=sum(plan.elapsed_s for plan in plans),
        price=_sum([plan.price for plan in plans]),
    )


def _sum(prices: list[Price | None]) -> Price | None:
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return None
    return Price(amount=f"{sum(Decimal(price.amount) for price in known):f}", currency=known[0].currency)


_PLANNED = set(PlannedChild.model_fields) - {"number", "values"}


def _rendered(session: Session, sweep: Sweep) -> tuple[bytes, str]:
    """(body, ETag). A job's version only grows, and a deleted job does not come back: no two states share an ETag."""
    children = repository.children(session, sweep.id)
    versions = [child.version for child in children if child.version is not None]
    body = {**_summary(sweep, _counts(children)), "children": [_child(child) for child in children]}
    return orjson.dumps(body), f'"{len(versions)}-{sum(versions)}"'


def _counts(children: list[ChildRow]) -> dict[str, int]:
    statuses = sorted(child.status or "deleted" for child in children)
    return {status: statuses.count(status) for status in dict.fromkeys(statuses)}


def _summary(sweep: Sweep, counts: dict[str, int]) -> dict[str, Any]:
    path = f"/v1/sweeps/{sweep.id}"
    return {
        "id": sweep.id,
        "name": sweep.name,
        "status": "running" if any(status in ACTIVE for status in counts) else "completed",
        "counts": counts,
        "parameters": sweep.parameters,
        "stop": sweep.stop,
        "retention": sweep.retention,
        "created_at": iso(sweep.created_at),
        "links": {
            "self": path,
            "jobs": f"/v1/jobs?label={SWEEP_LABEL}:{sweep.id}",
            "pareto": f"{path}/pareto",
        },
    }


def _child(child: ChildRow) -> dict[str, Any]:
    return {
        "number": child.number,
        "values": child.values,
        "job_id": child.job_id,
        "status": child.status or "deleted",
        "verdict": child.verdict,
        "metrics": child.metrics,
        "error": child.error,
        "stopped_by": child.stopped_by,
    }
