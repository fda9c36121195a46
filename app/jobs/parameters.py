"""Parameters that several job endpoints share."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from fastapi import Path, Query
from pydantic import AfterValidator, Field

from app.access import no_such_job
from app.errors import InvalidRequest
from app.http.field_problems import field_error
from app.http.queries import Flag, Instant, WholeNumber, milliseconds
from app.ids import is_id
from app.jobs.models import STATUSES
from app.jobs.repository import By, Filters, Order
from app.jobs.views import JOB_ID
from workers.engine.contracts.params import STAGES
from workers.engine.contracts.refs import NAME_OR_HUB_ID
from workers.engine.registry import methods
from workers.engine.report import Verdict


def _possible(job_id: str) -> str:
    if not is_id("job", job_id):
        raise no_such_job()
    return job_id


JobId = Annotated[str, Path(examples=[JOB_ID]), AfterValidator(_possible)]
Limit = Annotated[WholeNumber, Query(ge=1, le=200, description="Most entries of one page.")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")]
Counted = Annotated[Flag, Query(description="Say how many there are in all, as `total`.")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9._/-]{1,40}:[^\x00-\x1f\x7f]{0,200}$")]


async def filters(  # async, or FastAPI would run it on a thread
    status: Annotated[
        str | None,
        Query(max_length=100, description="One status or several, with commas.", examples=["queued,running"]),
    ] = None,
    label: Annotated[
        list[Label] | None, Query(max_length=10, description="`key:value`; given several times, all must match.")
    ] = None,
    model: Annotated[str | None, Query(pattern=NAME_OR_HUB_ID, description="The spec's `model.id`.")] = None,
    verdict: Annotated[Verdict | None, Query(description="Of the spec's gates.")] = None,
    method: Annotated[
        str | None, Query(max_length=100, description="A method that the spec has, in any stage.", examples=["wanda"])
    ] = None,
    search: Annotated[
        str | None,
        Query(
            pattern=r"^[^\x00-\x1f\x7f]{1,100}$",
            description="A part of the id, the model, a method's name or a label; upper and lower case are the same.",
        ),
    ] = None,
    created_after: Annotated[
        Instant | None,
        Query(description="Exclusive. ISO 8601 with its offset.", examples=["2026-11-22T00:00:00Z"]),
    ] = None,
    created_before: Annotated[Instant | None, Query(description="Exclusive. ISO 8601 with its offset.")] = None,
) -> Filters:
    """Dependency: the list's filters."""
    return Filters(
        statuses=_statuses(status),
        labels=tuple(sorted((key, value) for key, _, value in (text.partition(":") for text in label or ()))),
        model_id=model,
        verdict=verdict,
        method=_method(method),
        search=search,
        created_after=milliseconds(created_after),
        created_before=milliseconds(created_before),
    )


async def order(
    sort: Annotated[
        Literal["-created_at", "created_at", "-updated_at", "updated_at", "-priority", "priority", "-model", "model"],
        Query(description="What the list is ordered by; with `-` the largest, or newest, first."),
    ] = "-created_at",
) -> Order:
    """Dependency: the list's order."""
    return Order(by=cast(By, sort.removeprefix("-")), descending=sort.startswith("-"))


def _method(name: str | None) -> str | None:
    known = sorted({method.name for stage in STAGES for method in methods(stage)})
    if name is not None and name not in known:
        detail = "there is no such method: GET /v1/capabilities lists them"
        raise InvalidRequest(f"?method: {detail}.", errors=[field_error("?method", "unknown_method", detail, known)])
    return name


def _statuses(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    wanted = {status.strip() for status in text.split(",")}
    if not wanted <= set(STATUSES):
        detail = f"choose among {', '.join(STATUSES)}, with commas between"
        raise InvalidRequest(f"?status: {detail}.", errors=[field_error("?status", "unknown_status", detail, STATUSES)])
    return tuple(sorted(wanted))
