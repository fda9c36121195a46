"""A job's events as they happen, and the lines that its process writes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx2

from espalier import retries
from espalier.aio.connection import AsyncConnection
from espalier.aio.runtime import sleep
from espalier.documents.jobs import Event, JobDocument
from espalier.errors import ServiceUnwell, TooManyRequests, UnexpectedAnswer, Unreachable
from espalier.queries import given, segment

RECONNECTS = 8
"""Failed attempts in a row to follow a stream, about half a minute, before it counts as gone."""
RECONNECT_S = 0.2
"""After a clean end: the service closes long-lived streams so that it can be redeployed."""
LOOK_EVERY_S = 1.0


async def events(connection: AsyncConnection, job_id: str, after: int) -> AsyncIterator[Event]:
    """Events behind number `after`, until the job has ended. A broken stream is taken up where it broke
    (Last-Event-ID): none is missed, none comes twice."""
    failures = silent = 0
    while True:
        before = after
        try:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
            async with connection.stream(f"/v1/jobs/{segment(job_id)}/events", headers) as response:
                async for message in httpx2.EventSource(response):
                    failures = 0
                    if not message.data:  # only a `retry:`
                        continue
                    if message.event == "end":
                        return
                    event = _event(message)
                    if event.seq > after:
                        after = event.seq
                        yield event
            silent = 0 if after > before else silent + 1
            pause_s = retries.pause_s(silent) if silent > 1 else RECONNECT_S
        except (Unreachable, ServiceUnwell, TooManyRequests) as error:
            failures += 1
            if retries.is_last(error, failures, RECONNECTS):
                raise
            pause_s = retries.pause_after_s(error, failures)
        await sleep(pause_s)


def _event(message: httpx2.ServerSentEvent) -> Event:
    try:
        return Event.read(message.json())
    except (ValueError, RecursionError) as error:
        raise UnexpectedAnswer("an event that is not JSON") from error


@dataclass(frozen=True)
class LogLine:
    """A line that a job's process wrote, without its end."""

    attempt: int
    text: str


async def log_text(connection: AsyncConnection, job_id: str, attempt: int | None, tail: int | None) -> str:
    """What an attempt's process has written so far."""
    params = given(attempt=attempt, tail=tail)
    return (await connection.request("GET", f"/v1/jobs/{segment(job_id)}/logs", params=params)).text


async def log_lines(
    connection: AsyncConnection, job_id: str, attempt: int | None, tail: int | None
) -> AsyncIterator[LogLine]:
    """Lines as they are written, from `attempt` or the latest on, over all later attempts, until the job has ended."""
    path = f"/v1/jobs/{segment(job_id)}"
    job = JobDocument.read(await connection.get(path))
    number = attempt or max(job.attempt, 1)
    done, rest = 0, b""
    while True:
        # The job is looked at before its log: what an attempt says last is stored before the job says that it is over.
        job = JobDocument.read(await connection.get(path))
        over = job.attempt > number or job.status == "queued" or job.ended
        text = b""
        if job.attempt >= number:
            params = given(attempt=number, after=done)
            text = (await connection.request("GET", f"{path}/logs", params=params)).content
        done += len(text)
        *lines, rest = (rest + text).split(b"\n")
        if over and rest:
            lines, rest = [*lines, rest], b""
        for line in lines[-tail:] if tail else lines:
            yield LogLine(number, line.decode(errors="replace"))
        tail = None
        if job.attempt > number:
            number, done = number + 1, 0
        elif job.ended:
            return
        else:
            await sleep(LOOK_EVERY_S)
