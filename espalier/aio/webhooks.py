"""Webhooks: have another service told of jobs. Messages are verified with a library of standardwebhooks.com."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from espalier.aio.connection import AsyncConnection, json_of
from espalier.documents.base import Page
from espalier.documents.webhooks import Delivery, Webhook
from espalier.queries import given, segment


class AsyncWebhooks(AsyncConnection):
    """The part of the client for webhooks; their keys need the scope `webhooks`."""

    async def create_webhook(
        self, url: str, *, events: Sequence[str] = (), labels: Mapping[str, str] | None = None
    ) -> Webhook:
        """Have `url` told of events (`job.succeeded`, …; default: all) of jobs that have all `labels`. Its `secret`
        verifies the messages."""
        body = {"url": url, "events": list(events), "labels": dict(labels or {})}
        return Webhook.read(await self.post("/v1/webhooks", body))

    async def webhooks(self) -> list[Webhook]:
        """All of them, without their secrets."""
        return Page.of(await self.get("/v1/webhooks"), Webhook.read).data

    async def webhook(self, webhook_id: str) -> Webhook:
        """One of them, with its secret."""
        return Webhook.read(await self.get(f"/v1/webhooks/{segment(webhook_id)}"))

    async def update_webhook(self, webhook_id: str, **changes: Any) -> Webhook:
        """Change `url`, `events`, `labels` or `enabled`; others stay."""
        return Webhook.read(json_of(await self.request("PATCH", f"/v1/webhooks/{segment(webhook_id)}", json=changes)))

    async def rotate_webhook(self, webhook_id: str, *, keep_hours: float = 24) -> Webhook:
        """Give it a new secret; the one before signs beside it for `keep_hours`."""
        return Webhook.read(await self.post(f"/v1/webhooks/{segment(webhook_id)}/rotate", {"keep_hours": keep_hours}))

    async def delete_webhook(self, webhook_id: str) -> None:
        """Delete it, and what it has not got yet."""
        await self.request("DELETE", f"/v1/webhooks/{segment(webhook_id)}")

    async def test_webhook(self, webhook_id: str) -> Delivery:
        """Send it a message that says nothing."""
        return Delivery.read(await self.post(f"/v1/webhooks/{segment(webhook_id)}/test"))

    async def delivery_page(
        self, webhook_id: str, *, state: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[Delivery]:
        """A page of what it was told and what waits, newest first."""
        params = given(state=state, limit=limit, cursor=cursor)
        return Page.of(await self.get(f"/v1/webhooks/{segment(webhook_id)}/deliveries", params=params), Delivery.read)

    async def deliveries(self, webhook_id: str, *, state: str | None = None) -> AsyncIterator[Delivery]:
        """What it was told and what waits, newest first, over all pages."""
        cursor = None
        while True:
            page = await self.delivery_page(webhook_id, state=state, cursor=cursor)
            for delivery in page.data:
                yield delivery
            if (cursor := page.next_cursor) is None:
                return

    async def redeliver(self, webhook_id: str, delivery_id: int) -> Delivery:
        """Send a message again, under the same `webhook-id`."""
        return Delivery.read(await self.post(f"/v1/webhooks/{segment(webhook_id)}/deliveries/{delivery_id}/redeliver"))
