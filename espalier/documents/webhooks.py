"""Webhooks, and the messages for them."""

from __future__ import annotations

from datetime import datetime

from espalier.documents.base import Document


class Webhook(Document):
    """An address that is told of jobs. `secret` is there where one webhook was asked for, not in lists."""

    id: str
    url: str
    events: list[str]
    labels: dict[str, str]
    enabled: bool
    disabled_because: str | None = None
    previous_secret_until: datetime | None = None
    created_at: datetime
    secret: str | None = None


class Try(Document):
    """One sending of a message; `status` is the receiver's."""

    at: datetime
    status: int | None = None
    error: str | None = None
    elapsed_s: float


class Delivery(Document):
    """A message for a webhook. `state` is pending, delivered or failed."""

    id: int
    message_id: str
    type: str
    job_id: str | None = None
    state: str
    tries: int
    at: datetime
    due_at: datetime | None = None
    log: list[Try]
