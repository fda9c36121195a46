"""`logs`: what a job's process wrote; followed, until the job ends."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from app.cli import output
from app.cli.options import AsJson, JobId, connect
from espalier import JobRef


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
    with connect(context) as client:
        job = client.job_ref(job_id)
        if follow:
            _follow(job, attempt, tail, as_json=as_json)
            return
        text = job.logs(attempt=attempt, tail=tail)
    if as_json:
        output.print_json({"id": job_id, "lines": text.removesuffix("\n").split("\n") if text else []})
    else:
        sys.stdout.write(_shown(text))


def _follow(job: JobRef, attempt: int | None, tail: int | None, *, as_json: bool) -> None:
    last: int | None = None
    for line in job.follow_logs(attempt=attempt, tail=tail):
        if last is not None and line.attempt != last:
            output.stderr.print(f"attempt {line.attempt}")
        last = line.attempt
        shown = json.dumps({"attempt": last, "line": line.text}, ensure_ascii=False) if as_json else line.text
        sys.stdout.write(f"{_shown(shown)}\n")
        sys.stdout.flush()


def _shown(text: str) -> str:
    """A terminal obeys nothing of it; a file gets it as it was written."""
    return output.seen(text) if sys.stdout.isatty() else text
