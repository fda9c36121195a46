"""Commands about jobs: submit, watch, list, status, cancel, pause, resume, retry, delete."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from app.cli import output
from app.cli.exits import Usage
from app.cli.options import AsJson, JobId, connect
from app.cli.report import metrics_table
from app.cli.watch import follow, queue_place, raise_unless_succeeded, waits
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
    dry_run: Annotated[bool, typer.Option(help="Show what would be done; create nothing.")] = False,
    layers: Annotated[
        bool, typer.Option(help="With --dry-run: a line for every layer, alike ones not folded.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Follow the job to its end; the exit code says how it went.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting twice with one key makes one job. Default: a new key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    body: dict[str, Any] = {"spec": read_json(spec), "labels": labels_of(label or [])}
    options = {"priority": priority, "max_attempts": max_attempts, "deadline_s": deadline_s}
    body |= {key: value for key, value in options.items() if value is not None}
    with connect(context) as service:
        if dry_run:
            plan = service.request("POST", "/v1/jobs", params={"dry_run": "true"}, json=body).json()
            output.print_json(plan) if as_json else _print_plan(plan, all_layers=layers)
            return
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        job = service.request("POST", "/v1/jobs", headers=headers, json=body).json()
        if wait:
            if not as_json:
                output.stderr.print(f"{job['id']} submitted; interrupting leaves it running")
            job = follow(service, job["id"])
    output.print_json(job) if as_json else print_job(job)
    if wait:
        raise_unless_succeeded(job)


def watch(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Follow a job to its end."""
    with connect(context) as service:
        job = follow(service, job_id)
    output.print_json(job) if as_json else print_job(job)
    raise_unless_succeeded(job)


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
    params: list[tuple[str, Any]] = [("limit", limit), ("sort", sort), ("count", "true")]
    params += [("label", f"{key}:{value}") for key, value in labels_of(label or []).items()]
    narrowed = {
        "status": status,
        "model": model,
        "verdict": verdict,
        "method": method,
        "search": search,
        "cursor": cursor,
    }
    params += [(k, v) for k, v in narrowed.items() if v is not None]
    with connect(context) as service:
        page = service.get("/v1/jobs", params=params)
    if as_json:
        output.print_json(page)
        return
    table = output.table("", "job", "status", "stage", "model", "method", "created", "labels")
    for job in page["data"]:
        table.add_row(
            job["id"],
            output.status_text(job["status"]),
            f"[yellow]{job['queue']['waiting_for']}[/]" if waits(job) else job["stage"] or "",
            escape(job["spec"]["model"]["id"]),
            " + ".join(part["method"] for stage in ("score", *EDITS) if (part := job["spec"].get(stage))),
            output.local_time(job["created_at"]),
            escape(" ".join(f"{k}={v}" for k, v in job["labels"].items())),
        )
    output.stdout.print(table)
    if page["has_more"]:
        output.stderr.print(f"{page['total']:,} in all; more: --cursor {page['next_cursor']}")


def status(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job."""
    with connect(context) as service:
        job = service.get(f"/v1/jobs/{job_id}")
    output.print_json(job) if as_json else print_job(job)


def cancel(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job, queued or running."""
    _act(context, job_id, "cancel", as_json)


def pause(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Have a job keep what it has finished and give its worker back."""
    _act(context, job_id, "pause", as_json)


def resume(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again, at the place it had."""
    _act(context, job_id, "resume", as_json)


def retry(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again."""
    _act(context, job_id, "retry", as_json)


def delete(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Delete a finished job and its files."""
    remove(context, "/v1/jobs", job_id, as_json=as_json)


def remove(context: typer.Context, path: str, name: str, *, as_json: bool) -> None:
    """Delete the resource `name` below `path`, and report it."""
    with connect(context) as service:
        service.request("DELETE", f"{path}/{name}")
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


def print_job(job: dict[str, Any]) -> None:
    table = output.table("", "", "")
    table.show_header = False
    table.add_row("job", f"[bold]{job['id']}[/]  {output.status_text(job['status'])}")
    table.add_row("model", escape(job["spec"]["model"]["id"]))
    table.add_row("attempts", attempts_text(job))
    if job["status"] == "queued":
        table.add_row("queue", queue_place(job))
    if job["status"] == "running" and (progress := job["progress"]):
        table.add_row("progress", f"{progress['stage']} {progress['done']}/{progress['total']} {progress['unit']}")
    if labels := job["labels"]:
        table.add_row("labels", escape(" ".join(f"{k}={v}" for k, v in labels.items())))
    table.add_row("created", output.local_time(job["created_at"]))
    if job["finished_at"]:
        table.add_row("finished", output.local_time(job["finished_at"]))
    if job["verdict"]:
        table.add_row("verdict", output.verdict_text(job["verdict"]))
    if error := job["error"]:
        table.add_row("error", escape(f"{error['message']} ({error['code']})\n{error['hint']}"))
    output.stdout.print(table)
    if metrics := job["metrics"]:
        output.stdout.print(metrics_table([{"name": name, **values} for name, values in metrics.items()]))
        output.stdout.print(f"\nespalier report {job['id']}\nespalier download {job['id']} --out DIR")


def attempts_text(job: dict[str, Any]) -> str:
    """Attempts that count, of those allowed; and attempts begun, where some do not count."""
    counted = job["max_attempts"] - job["attempts_left"]
    text = f"{counted} of at most {job['max_attempts']}"
    uncounted = job["attempt"] - counted
    return (
        text
        if not uncounted
        else f"{text}; {uncounted} more paused, handed back by a stopped worker, or before a retry"
    )


def _act(context: typer.Context, job_id: str, verb: str, as_json: bool) -> None:
    with connect(context) as service:
        job = service.request("POST", f"/v1/jobs/{job_id}/{verb}").json()
    output.print_json(job) if as_json else print_job(job)


def labels_of(pairs: list[str]) -> dict[str, str]:
    """The labels that options give as KEY=VALUE. Raises Usage."""
    for pair in pairs:
        if "=" not in pair:
            raise Usage(f"--label {pair}: write KEY=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _print_plan(plan: dict[str, Any], *, all_layers: bool) -> None:
    table = output.table("What this would do; nothing was created", "", "")
    table.show_header = False
    table.add_row("model", escape(f"{plan['model_id']} ({plan['architecture']}, {_blocks(plan)})"))
    table.add_row("commit", plan["model_commit"])
    table.add_row("parameters", f"{output.number(plan['parameters'])} → {output.found(plan['parameters_after'])}")
    zeros = output.found(plan["zeros_after"])
    table.add_row("zeros after", f"{zeros} of {output.number(plan['prunable_parameters'])}")
    table.add_row("weight bytes", f"{output.number(plan['bytes_before'])} → {output.found(plan['bytes_after'])}")
    table.add_row("peak memory", f"about {plan['peak_memory_bytes'] / 2**20:,.0f} MiB")
    table.add_row("run time", f"about {output.duration(plan['elapsed_s'])} on two CPU cores")
    output.stdout.print(table)
    for runtime in plan["runtimes"]:
        output.stdout.print(escape(f"{runtime['runtime']}: {runtime['note']}"))
    for warning in plan["warnings"]:
        output.stdout.print("[yellow]warning[/]", escape(warning))
    layers = output.table("", "layer", "shape", "sparsity", right=("sparsity",))
    for name, shape, target in _alike(plan["layers"], folded=not all_layers):
        sparsity = "to be measured" if target is None else f"{target:.2%}"
        layers.add_row(escape(name), "x".join(map(str, shape)), sparsity)
    output.stdout.print(layers)


def _blocks(plan: dict[str, Any]) -> str:
    """`8 blocks`, or `8 → 12 blocks` where their number changes."""
    after = plan["blocks_after"]
    return f"{plan['blocks']} blocks" if after in (None, plan["blocks"]) else f"{plan['blocks']} → {after} blocks"


def _alike(layers: list[dict[str, Any]], *, folded: bool) -> list[tuple[str, list[int], float | None]]:
    """(name, shape, sparsity) of the layers. Folded, those that differ in the block alone are one: `{0-7}`."""
    if not folded:
        return [(layer["name"], layer["shape"], layer["target_sparsity"]) for layer in layers]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for layer in layers:
        name = layer["name"].replace(f".{layer['block']}.", ".{}.", 1)
        groups.setdefault((name, json.dumps([layer["shape"], layer["target_sparsity"]])), []).append(layer)
    return [
        (
            name.replace("{}", _ranges([layer["block"] for layer in alike])),
            alike[0]["shape"],
            alike[0]["target_sparsity"],
        )
        for (name, _), alike in groups.items()
    ]


def _ranges(numbers: list[int]) -> str:
    """`{0-3,7}` of 0, 1, 2, 3, 7; one number as it is."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(numbers) == 1:
        return str(numbers[0])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"
