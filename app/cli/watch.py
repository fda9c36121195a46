"""Follow a job to its end: its place in the queue, then its events as they happen."""

from __future__ import annotations

import math
import time
from typing import Any

from app.cli.client import JobEvent, Service
from app.cli.display import Display, display
from app.cli.exits import JobCancelled, JobFailed, TimedOut

WAIT_S = 20


def follow(service: Service, job_id: str) -> dict[str, Any]:
    """Show the job's progress until it ends; the ended job. Raises Refused or Unreachable."""
    with display() as shown:
        _wait_in_queue(service, job_id, shown)
        for event in service.events(job_id):
            _show(event, shown)
    job: dict[str, Any] = service.get(f"/v1/jobs/{job_id}")
    return job


def ended(service: Service, job_id: str, timeout_s: float | None) -> dict[str, Any]:
    """The job once it has ended. Raises TimedOut, Refused or Unreachable."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    etag, job = "", dict[str, Any]()
    with display() as shown:
        while True:
            left_s = WAIT_S if end is None else min(WAIT_S, math.ceil(end - time.monotonic()))
            headers = {"Prefer": f"wait={max(left_s, 0)}", "If-None-Match": etag} if etag else {}
            response = service.request("GET", f"/v1/jobs/{job_id}", headers=headers)
            if response.status_code != 304:
                etag, job = response.headers["ETag"], response.json()
            if job["finished_at"] is not None:
                return job
            if end is not None and time.monotonic() >= end:
                raise TimedOut(f"{job_id} is still {job['status']} after {timeout_s:g} s; it goes on")
            progress = job["progress"] or {"done": 0, "total": 0, "unit": ""}
            shown.show(job["stage"] or job["status"], progress["done"], progress["total"], progress["unit"])


def waits(job: dict[str, Any]) -> bool:
    """Whether no live worker can take it."""
    return job["queue"] is not None and job["queue"]["waiting_for"] is not None


def queue_place(job: dict[str, Any]) -> str:
    position, waiting_for = job["queue"]["position"], job["queue"]["waiting_for"]
    place = "far back in the queue" if position is None else f"position {position}"
    return f"{place}; waits: {waiting_for}" if waiting_for else place


def raise_unless_succeeded(job: dict[str, Any]) -> None:
    """JobFailed or JobCancelled, if that is how it ended."""
    if job["status"] == "failed":
        raise JobFailed(job["error"])
    if job["status"] == "cancelled":
        raise JobCancelled(f"{job['id']} was cancelled")


def _wait_in_queue(service: Service, job_id: str, shown: Display) -> None:
    etag, job = "", None
    while job is None or job["status"] == "queued":
        # Answered as soon as the job or its place in the queue changes.
        response = service.request(
            "GET", f"/v1/jobs/{job_id}", headers={"Prefer": f"wait={WAIT_S}", "If-None-Match": etag} if etag else {}
        )
        if response.status_code == 304:
            continue
        etag, job = response.headers["ETag"], response.json()
        if job["status"] == "queued":
            shown.show("queued", 0, 0, queue_place(job))


def _show(event: JobEvent, shown: Display) -> None:
    data = event.data
    match event.type:
        case "running":
            shown.say(f"attempt {event.attempt} started on {data['worker']}")
        case "queued" if "error" in data:
            shown.say(f"queued again: {data['error']['message']} ({data['error']['code']})")
        case "queued" if data.get("reason") == "resumed":
            shown.say("queued again: it goes on behind its finished blocks")
        case "queued" if data.get("reason") == "worker_shutdown":
            shown.say(f"handed back: its worker is being stopped; attempt {event.attempt} does not count")
        case "queued" if "reason" in data:
            shown.say(f"queued again: {data['reason']}")
        case "resume":
            shown.say(f"resumed at block {data['block']}: the blocks before it were done by an earlier attempt")
        case "log" if data["level"] != "info":
            shown.say(f"{data['level']}: {data['message']}")
        case "stage":
            shown.show(data["stage"], 0, 0, "")
        case "progress":
            shown.show(data["stage"], data["done"], data["total"], data["unit"], data["rate"], data["eta_s"])
        case "paused":
            shown.say("paused: `espalier resume` queues it again")
        case "cancelling" | "pausing":
            shown.show(event.type, 0, 0, "")
        case _:
            pass
