"""`whoami`, `workers`, `models`: what the service knows of the caller, what does its work, what there is to do."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import output
from app.cli.options import AsJson, connect
from espalier.documents import Device, Model, ModelSummary, Page


def whoami(context: typer.Context, as_json: AsJson = False) -> None:
    """Show whose key this is, and what it may do."""
    with connect(context) as client:
        me = client.me()
    if as_json:
        output.print_json(me.raw)
        return
    table = output.table("", "", "")
    table.show_header = False
    table.add_row("tenant", me.tenant.name)
    table.add_row("key", f"{me.key.name} ({me.key.id})")
    table.add_row("scopes", " ".join(me.key.scopes))
    if me.key.expires_at:
        table.add_row("expires", output.local_time(me.key.expires_at))
    output.stdout.print(table)


def workers(context: typer.Context, as_json: AsJson = False) -> None:
    """List the workers, their devices and what they do."""
    with connect(context) as client:
        found = client.workers()
    if as_json:
        output.print_json({"data": [worker.raw for worker in found]})
        return
    table = output.table("", "worker", "kind", "memory", "devices", "busy", "jobs of yours", "last seen")
    for worker in found:
        devices = worker.devices
        table.add_row(
            worker.name,
            worker.kind if worker.alive else output.marked("{} [yellow]silent[/]", worker.kind),
            f"{worker.memory_bytes / 2**30:.0f} GiB" if worker.memory_bytes else "",
            ", ".join(_device(device) for device in devices),
            f"{sum(device.busy for device in devices)} of {len(devices)}",
            "\n".join(dict.fromkeys(device.job_id for device in devices if device.job_id)),
            output.local_time(worker.last_seen_at) if worker.last_seen_at else "",
        )
    output.stdout.print(table)


def models(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="One of them: each method, and why it does not fit.")
    ] = None,
    results: Annotated[bool, typer.Option("--results", help="Those that your jobs have made.")] = False,
    cursor: Annotated[str | None, typer.Option(help="Go on after an earlier page: its next_cursor.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the models of the service, or show what can be done to one."""
    with connect(context) as client:
        if model is None:
            page = client.model_page(source="job" if results else "local", cursor=cursor)
            output.print_json(page.raw) if as_json else _print_models(page)
        else:
            found = client.model(model)
            output.print_json(found.raw) if as_json else _print_model(found)


def _print_model(model: Model) -> None:
    table = output.table("", "stage", "method", "fits", "why not")
    for each in model.abilities:
        table.add_row(each.stage, each.method, "yes" if each.fits else "no", each.reason or "")
    output.stdout.print(table if model.abilities else model.reason or "")


def _print_models(page: Page[ModelSummary]) -> None:
    table = output.table("", "model", "type", "parameters", "methods that fit", right=("parameters",))
    for each in page.data:
        parameters = "" if each.parameters is None else output.number(each.parameters)
        fitting = " ".join(each.methods) or output.marked("[yellow]none:[/] {}", each.reason or "")
        table.add_row(each.id, each.model_type or "", parameters, fitting)
    output.stdout.print(table)
    if page.next_cursor:
        output.stderr.print(f"more: --cursor {page.next_cursor}")


def _device(device: Device) -> str:
    return f"{device.name}: {device.model}" if device.model else device.name
