"""The history of a job: its events, as pages or as a stream, its attempts and their logs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Query
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.access import JobReader, JobSeen, look_at_job
from app.errors import AppError, InvalidRequest, NotFound
from app.http.conditional import PRIVATE
from app.http.field_problems import field_error
from app.http.negotiation import negotiate
from app.http.private import private_json
from app.http.problems import responses
from app.http.queries import WholeNumber
from app.http.route import StrictRoute
from app.jobs import repository
from app.jobs.models import TERMINAL, Attempt, Event
from app.jobs.schemas import AttemptList, EventPage
from app.jobs.views import iso
from app.services import Services, ServicesDep

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], route_class=StrictRoute)

EVENTS_AT_ONCE = 500
LOOK_EVERY_S = 0.25
PING_EVERY_S = 15
LONGEST_STREAM_S = 600
"""Clients take the stream up again where it ended, so a server that stops loses none of them."""
RECONNECT_AFTER_MS = 3000
SEQ_MAX = 2**31 - 1


@router.get(
    "/events",
    operation_id="jobs_events",
    response_model=EventPage,
    responses={
        **responses(404, 406, 422),
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    },
)
async def events(
    request: Request,
    seen: JobReader,
    has: ServicesDep,
    after: Annotated[WholeNumber, Query(ge=0, le=SEQ_MAX, description="Only events with a larger seq.")] = 0,
    limit: Annotated[WholeNumber, Query(ge=1, le=EVENTS_AT_ONCE, description="Most events of one page.")] = 100,
    accept: Annotated[str | None, Header()] = None,
    last_event_id: Annotated[str | None, Header(description="As `after`; what a browser's EventSource sends.")] = None,
) -> Response:
    """The job's events, oldest first: a page of JSON, or with `Accept: text/event-stream` all of them as they come.

    The stream repeats what came after `Last-Event-ID`, says `end` when the job has ended, and closes.
    """
    if last_event_id is not None:
        after = _seq(last_event_id)
    if negotiate(accept, ["application/json", "text/event-stream"]) == "text/event-stream":
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return EventSourceResponse(_stream(request, has, seen, after), headers=headers)
    found = await run_in_threadpool(_load, has, seen, after, limit + 1)
    page = {
        "data": [_event(event) for event in found[:limit]],
        "last_seq": found[:limit][-1].seq if found else after,
        "has_more": len(found) > limit,
    }
    return private_json(page)


@router.get("/attempts", operation_id="jobs_attempts", response_model=AttemptList, responses=responses(404))
def attempts(seen: JobReader, has: ServicesDep) -> Response:
    """Every try at the job, oldest first."""
    with has.database.read() as session:
        found = repository.attempts(session, seen.principal.tenant_id, seen.job.id)
    return private_json({"data": [_attempt(attempt) for attempt in found]})


@router.get(
    "/logs",
    operation_id="jobs_logs",
    response_class=Response,
    responses={**responses(404, 422), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def logs(
    seen: JobReader,
    has: ServicesDep,
    attempt: Annotated[WholeNumber | None, Query(ge=1, le=SEQ_MAX, description="Default: the latest.")] = None,
    tail: Annotated[
        WholeNumber | None, Query(ge=1, le=100_000, description="Only that many lines, the last ones.")
    ] = None,
    after: Annotated[
        WholeNumber,
        Query(ge=0, le=2**63 - 1, description="Only what comes behind that many bytes; not together with `tail`."),
    ] = 0,
) -> Response:
    """The output of an attempt's process, while it runs and after it ended. It grows every few seconds."""
    if tail is not None and after:
        detail = "give `tail` or `after`"
        raise InvalidRequest(f"?after: {detail}.", errors=[field_error("?after", "tail_or_after", detail)])
    tenant_id, job = seen.principal.tenant_id, seen.job
    with has.database.read() as session:
        found = repository.attempt(session, tenant_id, job.id, attempt or job.attempt)
    if found is None and attempt is not None:
        raise NotFound(f"The job has had {job.attempt} attempts: choose one of them.", code="no_such_attempt")
    headers = {**PRIVATE, "X-Content-Type-Options": "nosniff"}
    if found is None:  # nobody has begun
        return Response("", headers=headers, media_type="text/plain")
    where = (tenant_id, job.id, found.number, found.fence)
    text: Iterator[bytes] = iter([has.store.tail_log(*where, tail)]) if tail else has.store.read_log(*where, after)
    return StreamingResponse(text, headers=headers, media_type="text/plain")


async def _stream(request: Request, has: Services, seen: JobSeen, last: int) -> AsyncIterator[bytes]:
    """Server-sent events from behind `last`. Holds no database session while it waits."""
    loop = asyncio.get_running_loop()
    began = said = loop.time()
    yield f"retry: {RECONNECT_AFTER_MS}\n\n".encode()
    while loop.time() - began < LONGEST_STREAM_S:
        if seen.job.event_seq > last:
            for event in await run_in_threadpool(_load, has, seen, last, EVENTS_AT_ONCE):
                last = event.seq
                yield format_sse_event(
                    data_str=orjson.dumps(_event(event)).decode(), event=event.type, id=str(event.seq)
                )
            said = loop.time()
        elif seen.job.status in TERMINAL:
            yield format_sse_event(data_str=orjson.dumps({"status": seen.job.status}).decode(), event="end")
            return
        else:
            await asyncio.sleep(LOOK_EVERY_S)
        if loop.time() - said >= PING_EVERY_S:
            yield KEEPALIVE_COMMENT
            said = loop.time()
        try:
            seen = await look_at_job(request, seen.job.id, "jobs:read")
        except AppError:  # the job is deleted, the key revoked, the database away: reconnecting tells which
            return


def _load(has: Services, seen: JobSeen, after: int, limit: int) -> list[Event]:
    with has.database.read() as session:
        return list(repository.events(session, seen.principal.tenant_id, seen.job.id, after=after, limit=limit))


def _event(event: Event) -> dict[str, object]:
    return {
        "seq": event.seq,
        "type": event.type,
        "attempt": event.attempt,
        "data": event.data,
        "at": iso(event.at),
    }


def _attempt(attempt: Attempt) -> dict[str, object]:
    return {
        "number": attempt.number,
        "worker": attempt.worker,
        "outcome": attempt.outcome,
        "error": attempt.error,
        "started_at": iso(attempt.started_at),
        "finished_at": iso(attempt.finished_at),
    }


def _seq(last_event_id: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}", last_event_id) and int(last_event_id) <= SEQ_MAX:
        return int(last_event_id)
    detail = "send back the `id` of the last event you have"
    raise InvalidRequest(
        f"Last-Event-ID: {detail}.", errors=[field_error("#Last-Event-ID", "invalid_event_id", detail)]
    )
