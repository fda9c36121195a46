"""`whoami`, `workers`, `models`: what the service knows of the caller, what does its work, what there is to do."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape

from app.cli import output
from app.cli.options import AsJson, connect


def whoami(context: typer.Context, as_json: AsJson = False) -> None:
    """Show whose key this is, and what it may do."""
    with connect(context) as service:
        me = service.get("/v1/me")
    if as_json:
        output.print_json(me)
        return
    table = output.table("", "", "")
    table.show_header = False
    key = me["key"]
    table.add_row("tenant", escape(me["tenant"]["name"]))
    table.add_row("key", escape(f"{key['name']} ({key['id']})"))
    table.add_row("scopes", " ".join(key["scopes"]))
    if key["expires_at"]:
        table.add_row("expires", output.local_time(key["expires_at"]))
    output.stdout.print(table)


def workers(context: typer.Context, as_json: AsJson = False) -> None:
    """List the workers, their devices and what they do."""
    with connect(context) as service:
        found = service.get("/v1/workers")
    if as_json:
        output.print_json(found)
        return
    table = output.table("", "worker", "kind", "memory", "devices", "busy", "jobs of yours", "last seen")
    for worker in found["data"]:
        devices = worker["devices"]
        table.add_row(
            escape(worker["name"]),
            worker["kind"] if worker["alive"] else f"{worker['kind']} [yellow]silent[/]",
            f"{worker['memory_bytes'] / 2**30:.0f} GiB" if worker["memory_bytes"] else "",
            ", ".join(escape(_device(device)) for device in devices),
            f"{sum(device['busy'] for device in devices)} of {len(devices)}",
            "\n".join(dict.fromkeys(device["job_id"] for device in devices if device["job_id"])),
            output.local_time(worker["last_seen_at"]) if worker["last_seen_at"] else "",
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
    with connect(context) as service:
        if model is not None:
            found = service.get(f"/v1/models/{quote(model, safe='')}")
        else:
            params = {"source": "job" if results else "local", "limit": 50, **({"cursor": cursor} if cursor else {})}
            found = service.get("/v1/models", params=params)
    if as_json:
        output.print_json(found)
        return
    if model is not None:
        table = output.table("", "stage", "method", "fits", "why not")
        for each in found["abilities"]:
            table.add_row(each["stage"], each["method"], "yes" if each["fits"] else "no", escape(each["reason"] or ""))
        output.stdout.print(table if found["abilities"] else escape(found["reason"]))
        return
    table = output.table("", "model", "type", "parameters", "methods that fit", right=("parameters",))
    for each in found["data"]:
        parameters = "" if each["parameters"] is None else output.number(each["parameters"])
        fitting = " ".join(each["methods"]) or f"[yellow]none:[/] {escape(each['reason'])}"
        table.add_row(each["id"], escape(each["model_type"] or ""), parameters, fitting)
    output.stdout.print(table)
    if found["has_more"]:
        output.stderr.print(f"more: --cursor {found['next_cursor']}")


def _device(device: dict[str, Any]) -> str:
    return f"{device['name']}: {device['model']}" if device["model"] else device["name"]
