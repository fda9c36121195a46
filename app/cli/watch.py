"""Follow a job to its end: its place in the queue, then its events as they happen."""

from __future__ import annotations

from app.cli.display import Display, display, resumed
from espalier import Job, JobRef
from espalier.documents import Event, Queue


def follow(job: JobRef) -> Job:
    """Show the job's progress until it ends; the ended job."""
    with display() as shown:
        for seen in job.changes():
            if seen.status != "queued":
                break
            shown.show("queued", 0, 0, queue_place(seen.queue))
        for event in job.events():
            _show(event, shown)
    return job.refresh()


def ended(job: JobRef, timeout_s: float | None) -> Job:
    """The job once it has ended. Raises espalier.WaitTimeout."""
    with display() as shown:
        for seen in job.changes(timeout_s):
            at = seen.progress
            if at is None:
                shown.show(seen.stage or seen.status, 0, 0, "")
            else:
                shown.show(seen.stage or seen.status, at.done, at.total, at.unit)
    return seen


def queue_place(queue: Queue | None) -> str:
    if queue is None:
        return ""
    place = "far back in the queue" if queue.position is None else f"position {queue.position}"
    return f"{place}; waits: {queue.waiting_for}" if queue.waiting_for else place


def _show(event: Event, shown: Display) -> None:
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
            shown.say(resumed(data))
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
