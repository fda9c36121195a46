"""`logs`: what a job's process wrote; followed, until the job ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.client import Service
from app.cli.options import AsJson, JobId, connect

LOOK_EVERY_S = 1.0


def logs(
    context: typer.Context,
    job_id: JobId,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Default: the latest; with --follow it and those that come after it.")
    ] = None,
    tail: Annotated[
        int | None, typer.Option(min=1, help="Only the last lines, and with --follow what comes next.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a job's process wrote, also of a failed or running one.

    With --follow and --json each line is a JSON object with `attempt` and `line`.
    """
    with connect(context) as service:
        if follow:
            _follow(service, job_id, attempt, tail, as_json=as_json)
            return
        params = {key: value for key, value in {"attempt": attempt, "tail": tail}.items() if value is not None}
        text = service.request("GET", f"/v1/jobs/{job_id}/logs", params=params).text
    if as_json:
        output.print_json({"id": job_id, "lines": text.splitlines()})
    else:
        sys.stdout.write(text)


def _follow(service: Service, job_id: str, attempt: int | None, tail: int | None, *, as_json: bool) -> None:
    for number, line in _lines(service, job_id, attempt, tail):
        shown = json.dumps({"attempt": number, "line": line}, ensure_ascii=False) if as_json else line
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()


def _lines(service: Service, job_id: str, first: int | None, tail: int | None) -> Iterator[tuple[int, str]]:
    """(attempt, line) as they are written, from attempt `first` or the latest on, until the job has ended."""
    attempt = first or max(service.get(f"/v1/jobs/{job_id}")["attempt"], 1)
    done, rest = 0, b""
    while True:
        # The job is looked at before its log: what an attempt says last is stored before the job says that it is over.
        job = service.get(f"/v1/jobs/{job_id}")
        over = job["attempt"] > attempt or job["status"] == "queued" or job["finished_at"] is not None
        text = _read(service, job_id, attempt, done) if job["attempt"] >= attempt else b""
        done += len(text)
        *lines, rest = (rest + text).split(b"\n")
        if over and rest:
            lines, rest = [*lines, rest], b""
        for line in lines[-tail:] if tail else lines:
            yield attempt, line.decode(errors="replace")
        tail = None
        if job["attempt"] > attempt:
            attempt, done = attempt + 1, 0
            output.stderr.print(f"attempt {attempt}")
        elif job["finished_at"] is not None:
            return
        else:
            time.sleep(LOOK_EVERY_S)


def _read(service: Service, job_id: str, attempt: int, after: int) -> bytes:
    params: dict[str, Any] = {"attempt": attempt, "after": after}
    return service.request("GET", f"/v1/jobs/{job_id}/logs", params=params).content
