"""Commands about jobs: submit, watch, list, status, cancel, pause, resume, retry, delete."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.exits import Usage
from app.cli.options import AsJson, JobId, connect
from app.cli.places import place_of, text_of
from app.cli.plan import print_plan
from app.cli.report import metrics_table
from app.cli.watch import follow, queue_place
from espalier import Job, JobRef
from espalier.documents import JobDocument
from espalier.queries import JobFilters, JobOptions
from workers.engine.contracts.params import EDITS

SpecFile = Annotated[
    str, typer.Argument(metavar="SPEC.json", help="The compression spec (docs/parameters.md), or - for stdin.")
]


def submit(
    context: typer.Context,
    spec: SpecFile,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label; repeatable.")] = None,
    priority: Annotated[int | None, typer.Option(help="-100 to 100, default 0; higher runs first.")] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option(help="How many attempts may count before a retryable failure is final. Default: the service's."),
    ] = None,
    deadline_s: Annotated[
        int | None, typer.Option(help="Longest run from the first start on, s. Default: the service's.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="What stays of the result: all or report. Default: as your tenant has it.")
    ] = None,
    keep_days: Annotated[
        int | None, typer.Option(help="With --keep report: days after the job's end until then.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Show what would be done; create nothing.")] = False,
    layers: Annotated[
        bool, typer.Option(help="With --dry-run: a line for every layer, alike ones not folded.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Follow the job to its end; the exit code says how it went.")] = False,
    publish: Annotated[
        list[str] | None,
        typer.Option(metavar="PLACE", help="JSON or its file: where the result goes once the gates pass; repeatable."),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting twice with one key makes one job. Default: a new key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    body = read_json(spec)
    options: JobOptions = {
        "labels": labels_of(label or []),
        "priority": priority,
        "max_attempts": max_attempts,
        "deadline_s": deadline_s,
        "publish": [place_of(place) for place in publish] if publish else None,
        "retention": retention_of(keep, keep_days),
    }
    with connect(context) as client:
        if dry_run:
            plan = client.plan(body, **options)
            output.print_json(plan.raw) if as_json else print_plan(plan, all_layers=layers)
            return
        job = client.submit(body, idempotency_key=idempotency_key, **options)
        if wait:
            if not as_json:
                output.stderr.print(f"{job.id} submitted; interrupting leaves it running")
            follow(job)
    output.print_json(job.raw) if as_json else print_job(job)
    if wait:
        job.raise_unless_succeeded()


def watch(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Follow a job to its end."""
    with connect(context) as client:
        job = follow(client.job_ref(job_id))
    output.print_json(job.raw) if as_json else print_job(job)
    job.raise_unless_succeeded()


def list_jobs(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="One or several, separated by commas.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Has this label; repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="Jobs on this model.")] = None,
    verdict: Annotated[str | None, typer.Option(help="Whose gates said so: pass, fail or inconclusive.")] = None,
    method: Annotated[str | None, typer.Option(help="Whose spec has this method, in any stage.")] = None,
    search: Annotated[str | None, typer.Option(help="A part of the id, the model, a method or a label.")] = None,
    sort: Annotated[
        str, typer.Option(help="created_at, updated_at, priority or model; with `-` the largest first.")
    ] = "-created_at",
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most jobs to show.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on after an earlier page: its next_cursor.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    filters: JobFilters = {
        "status": status,
        "labels": labels_of(label or []),
        "model": model,
        "verdict": verdict,
        "method": method,
        "search": search,
        "sort": sort,
    }
    with connect(context) as client:
        page = client.job_page(limit=limit, cursor=cursor, count=True, **filters)
    if as_json:
        output.print_json(page.raw)
        return
    table = output.table("", "job", "status", "stage", "model", "method", "verdict", "measured", "created", "labels")
    for job in page.data:
        waits = job.queue is not None and job.queue.waiting_for
        table.add_row(
            job.id,
            output.status_text(job.status),
            output.styled(str(waits), "yellow") if waits else job.stage or "",
            job.spec["model"]["id"],
            " + ".join(part["method"] for stage in ("score", *EDITS) if (part := job.spec.get(stage))),
            output.verdict_text(job.verdict),
            ", ".join(measured(job)),
            output.local_time(job.created_at),
            " ".join(f"{k}={v}" for k, v in job.labels.items()),
        )
    output.stdout.print(table)
    if page.next_cursor:
        output.stderr.print(f"{page.total:,} in all; more: --cursor {page.next_cursor}")


def measured(job: JobDocument) -> list[str]:
    """The measurements that a finished job's gates bound, or without gates one, a perplexity if there is any: pruned /
    dense, or where that is not defined the pruned model's."""
    metrics = job.metrics or {}
    usual = sorted(metrics, key=lambda name: (not name.startswith("perplexity/"), name))
    gated = list(dict.fromkeys(gate["metric"] for gate in job.spec.get("gates") or [] if gate["metric"] in metrics))
    return [
        f"{name} {output.number(found.pruned)} {found.unit}" if found.ratio is None else f"{name} ×{found.ratio:.3f}"
        for name in gated or usual[:1]
        for found in [metrics[name]]
    ]


def status(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job."""
    with connect(context) as client:
        job = client.job(job_id)
    output.print_json(job.raw) if as_json else print_job(job)


def cancel(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job, queued or running."""
    _act(context, job_id, JobRef.cancel, as_json)


def pause(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Have a job keep what it has finished and give its worker back."""
    _act(context, job_id, JobRef.pause, as_json)


def resume(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again, at the place it had."""
    _act(context, job_id, JobRef.resume, as_json)


def retry(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again."""
    _act(context, job_id, JobRef.retry, as_json)


def pin(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Have no retention policy remove a job's files."""
    _act(context, job_id, JobRef.pin, as_json)


def unpin(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Let retention policies remove a job's files again."""
    _act(context, job_id, lambda job: job.pin(False), as_json)


def delete(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Delete a finished job and its files."""
    with connect(context) as client:
        client.job_ref(job_id).delete()
    print_deleted(job_id, as_json=as_json)


def print_deleted(name: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"id": name, "deleted": True})
    else:
        output.stdout.print(f"{name} deleted")


def read_json(path: str) -> Any:
    """The JSON in the file, or on stdin if the path is `-`. Raises Usage with the position of an error."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
        return json.loads(text)
    except OSError as error:
        raise Usage(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise Usage(f"{path} is not JSON: {error}") from error


def print_job(job: Job) -> None:
    table = output.table("", "", "")
    table.show_header = False
    table.add_row("job", output.marked("[bold]{}[/]  {}", job.id, output.status_text(job.status)))
    table.add_row("model", job.spec["model"]["id"])
    table.add_row("attempts", attempts_text(job))
    if job.status == "queued":
        table.add_row("queue", queue_place(job.queue))
    if job.status == "running" and (progress := job.progress):
        table.add_row("progress", f"{progress.stage} {progress.done}/{progress.total} {progress.unit}")
    if labels := job.labels:
        table.add_row("labels", " ".join(f"{k}={v}" for k, v in labels.items()))
    table.add_row("created", output.local_time(job.created_at))
    if job.finished_at:
        table.add_row("finished", output.local_time(job.finished_at))
    if job.price:
        table.add_row("price", f"{job.price.amount} {job.price.currency}")
    if job.status == "succeeded":
        table.add_row("files", files_text(job))
    if job.verdict:
        table.add_row("verdict", output.verdict_text(job.verdict))
    if error := job.error:
        table.add_row("error", f"{error.message} ({error.code})\n{error.hint}")
    for publication in job.publications:
        table.add_row("published" if publication.state == "published" else "publish", text_of(publication))
    output.stdout.print(table)
    if metrics := job.metrics:
        output.stdout.print(metrics_table([{"name": name, **values.raw} for name, values in metrics.items()]))
        output.stdout.print(f"\nespalier report {job.id}\nespalier download {job.id} --out DIR")


def files_text(job: Job) -> str:
    """Bytes that are stored of the result, and until when."""
    kept = job.retention
    if kept.removed:
        return f"removed {output.local_time(kept.removed.at)} ({kept.removed.because}); the report stays"
    until = "pinned" if kept.pinned else kept.files_until and f"until {output.local_time(kept.files_until)}"
    return ", ".join(part for part in (f"{job.stored_bytes:,} bytes", until) if part)


def retention_of(keep: str | None, days: int | None) -> dict[str, Any] | None:
    """As a submission has it. Raises Usage."""
    if keep is None and days is not None:
        raise Usage("--keep-days is for --keep report")
    return None if keep is None else {"keep": keep} | ({} if days is None else {"days": days})


def attempts_text(job: Job) -> str:
    """Attempts that count, of those allowed; and attempts begun, where some do not count."""
    counted = job.max_attempts - job.attempts_left
    text = f"{counted} of at most {job.max_attempts}"
    uncounted = job.attempt - counted
    return (
        text
        if not uncounted
        else f"{text}; {uncounted} more paused, handed back by a stopped worker, or before a retry"
    )


def _act(context: typer.Context, job_id: str, verb: Callable[[JobRef], Job], as_json: bool) -> None:
    with connect(context) as client:
        job = verb(client.job_ref(job_id))
    output.print_json(job.raw) if as_json else print_job(job)


def labels_of(pairs: list[str]) -> dict[str, str]:
    """The labels that options give as KEY=VALUE. Raises Usage."""
    for pair in pairs:
        if "=" not in pair:
            raise Usage(f"--label {pair}: write KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)
