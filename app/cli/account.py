"""`whoami` and `workers`: what the service knows of the caller, and what does its work."""

from __future__ import annotations

from typing import Any

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


def _device(device: dict[str, Any]) -> str:
    return f"{device['name']}: {device['model']}" if device["model"] else device["name"]
