"""`webhooks`: have another service told of jobs, and see what it was told."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from app.cli import output
from app.cli.jobs import labels_of, remove
from app.cli.options import AsJson, connect

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="A webhook's id, whk_….")]


def create(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Where messages are sent.")],
    event: Annotated[list[str] | None, typer.Option(help="job.succeeded, …; repeatable. Default: all.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs that have this label; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a webhook. Its secret verifies messages with a library of standardwebhooks.com."""
    body = {"url": url, "events": event or [], "labels": labels_of(label or [])}
    with connect(context) as service:
        made = service.request("POST", "/v1/webhooks", json=body).json()
    _print_secret(made, as_json=as_json)


def list_webhooks(context: typer.Context, as_json: AsJson = False) -> None:
    """List the webhooks."""
    with connect(context) as service:
        found = service.get("/v1/webhooks")
    if as_json:
        output.print_json(found)
        return
    table = output.table("", "webhook", "url", "events", "labels", "state")
    for each in found["data"]:
        state = "enabled" if each["enabled"] else f"[yellow]disabled[/] {escape(each['disabled_because'] or '')}"
        pairs = " ".join(f"{key}={value}" for key, value in each["labels"].items())
        table.add_row(each["id"], escape(each["url"]), " ".join(each["events"]) or "all", escape(pairs), state)
    output.stdout.print(table)


def enable(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Tell a webhook again, also of what it has not got yet."""
    _switch(context, webhook_id, True, as_json)


def disable(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Tell a webhook of nothing more."""
    _switch(context, webhook_id, False, as_json)


def delete(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Delete a webhook, and what it has not got yet."""
    remove(context, "/v1/webhooks", webhook_id, as_json=as_json)


def rotate(
    context: typer.Context,
    webhook_id: WebhookId,
    keep_hours: Annotated[float, typer.Option(min=0, max=168, help="How long the secret before signs too.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Give a webhook a new secret."""
    with connect(context) as service:
        path, body = f"/v1/webhooks/{webhook_id}/rotate", {"keep_hours": keep_hours}
        changed = service.request("POST", path, json=body).json()
    _print_secret(changed, as_json=as_json)


def send_test(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Send a webhook a message that says nothing; `deliveries` shows how it went."""
    with connect(context) as service:
        sent = service.request("POST", f"/v1/webhooks/{webhook_id}/test").json()
    _print_deliveries([sent], sent, as_json=as_json)


def deliveries(
    context: typer.Context,
    webhook_id: WebhookId,
    state: Annotated[str | None, typer.Option(help="pending, delivered or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most deliveries to show, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what a webhook was told, and what waits for it."""
    with connect(context) as service:
        params = {"limit": limit, **({"state": state} if state else {})}
        page = service.get(f"/v1/webhooks/{webhook_id}/deliveries", params=params)
    _print_deliveries(page["data"], page, as_json=as_json)


def redeliver(
    context: typer.Context,
    webhook_id: WebhookId,
    delivery: Annotated[int, typer.Argument(metavar="DELIVERY", help="A delivery's number, from `deliveries`.")],
    as_json: AsJson = False,
) -> None:
    """Send a message again, under the same `webhook-id`."""
    with connect(context) as service:
        sent = service.request("POST", f"/v1/webhooks/{webhook_id}/deliveries/{delivery}/redeliver").json()
    _print_deliveries([sent], sent, as_json=as_json)


def _switch(context: typer.Context, webhook_id: str, enabled: bool, as_json: bool) -> None:
    with connect(context) as service:
        changed = service.request("PATCH", f"/v1/webhooks/{webhook_id}", json={"enabled": enabled}).json()
    if as_json:
        output.print_json(changed)
    else:
        output.stdout.print(f"{webhook_id} {'enabled' if changed['enabled'] else 'disabled'}")


def _print_secret(webhook: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.print_json(webhook)
    else:
        output.stderr.print(f"webhook {webhook['id']}; its secret:")
        output.stdout.print(webhook["secret"], markup=False)


def _print_deliveries(found: list[dict[str, Any]], whole: Any, *, as_json: bool) -> None:
    if as_json:
        output.print_json(whole)
        return
    table = output.table("", "delivery", "type", "job", "state", "tries", "last answer", "next try")
    for each in found:
        last = each["log"][-1] if each["log"] else {}
        answer = last.get("error") or str(last.get("status", ""))
        next_try = output.local_time(each["due_at"]) if each["due_at"] else ""
        row = (str(each["id"]), each["type"], each["job_id"] or "", each["state"], str(each["tries"]))
        table.add_row(*row, escape(answer), next_try)
    output.stdout.print(table)
