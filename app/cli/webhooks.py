"""`webhooks`: have another service told of jobs, and see what it was told."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.jobs import labels_of, print_deleted
from app.cli.options import AsJson, connect
from espalier.documents import Delivery, Webhook

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
    with connect(context) as client:
        made = client.create_webhook(url, events=event or [], labels=labels_of(label or []))
    _print_secret(made, as_json=as_json)


def list_webhooks(context: typer.Context, as_json: AsJson = False) -> None:
    """List the webhooks."""
    with connect(context) as client:
        found = client.webhooks()
    if as_json:
        output.print_json({"data": [each.raw for each in found]})
        return
    table = output.table("", "webhook", "url", "events", "labels", "state")
    for each in found:
        state = "enabled" if each.enabled else output.marked("[yellow]disabled[/] {}", each.disabled_because or "")
        pairs = " ".join(f"{key}={value}" for key, value in each.labels.items())
        table.add_row(each.id, each.url, " ".join(each.events) or "all", pairs, state)
    output.stdout.print(table)


def enable(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Tell a webhook again, also of what it has not got yet."""
    _switch(context, webhook_id, True, as_json)


def disable(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Tell a webhook of nothing more."""
    _switch(context, webhook_id, False, as_json)


def delete(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Delete a webhook, and what it has not got yet."""
    with connect(context) as client:
        client.delete_webhook(webhook_id)
    print_deleted(webhook_id, as_json=as_json)


def rotate(
    context: typer.Context,
    webhook_id: WebhookId,
    keep_hours: Annotated[float, typer.Option(min=0, max=168, help="How long the secret before signs too.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Give a webhook a new secret."""
    with connect(context) as client:
        changed = client.rotate_webhook(webhook_id, keep_hours=keep_hours)
    _print_secret(changed, as_json=as_json)


def send_test(context: typer.Context, webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Send a webhook a message that says nothing; `deliveries` shows how it went."""
    with connect(context) as client:
        sent = client.test_webhook(webhook_id)
    _print_deliveries([sent], sent.raw, as_json=as_json)


def deliveries(
    context: typer.Context,
    webhook_id: WebhookId,
    state: Annotated[str | None, typer.Option(help="pending, delivered or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most deliveries to show, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what a webhook was told, and what waits for it."""
    with connect(context) as client:
        page = client.delivery_page(webhook_id, state=state, limit=limit)
    _print_deliveries(page.data, page.raw, as_json=as_json)


def redeliver(
    context: typer.Context,
    webhook_id: WebhookId,
    delivery: Annotated[int, typer.Argument(metavar="DELIVERY", help="A delivery's number, from `deliveries`.")],
    as_json: AsJson = False,
) -> None:
    """Send a message again, under the same `webhook-id`."""
    with connect(context) as client:
        sent = client.redeliver(webhook_id, delivery)
    _print_deliveries([sent], sent.raw, as_json=as_json)


def _switch(context: typer.Context, webhook_id: str, enabled: bool, as_json: bool) -> None:
    with connect(context) as client:
        changed = client.update_webhook(webhook_id, enabled=enabled)
    if as_json:
        output.print_json(changed.raw)
    else:
        output.stdout.print(f"{webhook_id} {'enabled' if changed.enabled else 'disabled'}")


def _print_secret(webhook: Webhook, *, as_json: bool) -> None:
    if as_json:
        output.print_json(webhook.raw)
    else:
        output.stderr.print(f"webhook {webhook.id}; its secret:")
        output.stdout.print(webhook.secret)


def _print_deliveries(found: list[Delivery], whole: Any, *, as_json: bool) -> None:
    if as_json:
        output.print_json(whole)
        return
    table = output.table("", "delivery", "type", "job", "state", "tries", "last answer", "next try")
    for each in found:
        answer = (each.log[-1].error or str(each.log[-1].status or "")) if each.log else ""
        next_try = output.local_time(each.due_at) if each.due_at else ""
        row = (str(each.id), each.type, each.job_id or "", each.state, str(each.tries))
        table.add_row(*row, answer, next_try)
    output.stdout.print(table)
