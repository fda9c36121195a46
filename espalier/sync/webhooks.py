"""Webhooks: have another service told of jobs. Messages are verified with a library of standardwebhooks.com."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from espalier.documents.base import Page
from espalier.documents.webhooks import Delivery, Webhook
from espalier.queries import given, segment
from espalier.sync.connection import Connection, json_of


class Webhooks(Connection):
    """The part of the client for webhooks; their keys need the scope `webhooks`."""

    def create_webhook(
        self, url: str, *, events: Sequence[str] = (), labels: Mapping[str, str] | None = None
    ) -> Webhook:
        """Have `url` told of events (`job.succeeded`, …; default: all) of jobs that have all `labels`. Its `secret`
        verifies the messages."""
        body = {"url": url, "events": list(events), "labels": dict(labels or {})}
        return Webhook.read(self.post("/v1/webhooks", body))

    def webhooks(self) -> list[Webhook]:
        """All of them, without their secrets."""
        return Page.of(self.get("/v1/webhooks"), Webhook.read).data

    def webhook(self, webhook_id: str) -> Webhook:
        """One of them, with its secret."""
        return Webhook.read(self.get(f"/v1/webhooks/{segment(webhook_id)}"))

    def update_webhook(self, webhook_id: str, **changes: Any) -> Webhook:
        """Change `url`, `events`, `labels` or `enabled`; others stay."""
        return Webhook.read(json_of(self.request("PATCH", f"/v1/webhooks/{segment(webhook_id)}", json=changes)))

    def rotate_webhook(self, webhook_id: str, *, keep_hours: float = 24) -> Webhook:
        """Give it a new secret; the one before signs beside it for `keep_hours`."""
        return Webhook.read(self.post(f"/v1/webhooks/{segment(webhook_id)}/rotate", {"keep_hours": keep_hours}))

    def delete_webhook(self, webhook_id: str) -> None:
        """Delete it, and what it has not got yet."""
        self.request("DELETE", f"/v1/webhooks/{segment(webhook_id)}")

    def test_webhook(self, webhook_id: str) -> Delivery:
        """Send it a message that says nothing."""
        return Delivery.read(self.post(f"/v1/webhooks/{segment(webhook_id)}/test"))

    def delivery_page(
        self, webhook_id: str, *, state: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[Delivery]:
        """A page of what it was told and what waits, newest first."""
        params = given(state=state, limit=limit, cursor=cursor)
        return Page.of(self.get(f"/v1/webhooks/{segment(webhook_id)}/deliveries", params=params), Delivery.read)

    def deliveries(self, webhook_id: str, *, state: str | None = None) -> Iterator[Delivery]:
        """What it was told and what waits, newest first, over all pages."""
        cursor = None
        while True:
            page = self.delivery_page(webhook_id, state=state, cursor=cursor)
            for delivery in page.data:
                yield delivery
            if (cursor := page.next_cursor) is None:
                return

    def redeliver(self, webhook_id: str, delivery_id: int) -> Delivery:
        """Send a message again, under the same `webhook-id`."""
        return Delivery.read(self.post(f"/v1/webhooks/{segment(webhook_id)}/deliveries/{delivery_id}/redeliver"))
