"""Deliveries that have not arrived yet, for metrics."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import func, literal, select
from sqlalchemy.orm import Session

from app.db import now_ms
from app.webhooks.models import Delivery, Webhook


class Undelivered(NamedTuple):
    number: int
    oldest_s: float
    """Since it happened; 0 where there is none."""


def undelivered(session: Session) -> Undelivered:
    """Those of webhooks that are not disabled."""
    count, age_ms = session.execute(
        select(func.count(), now_ms() - func.min(Delivery.at))
        .join(Webhook, Webhook.id == Delivery.webhook_id)
        .where(Delivery.state == literal("pending", literal_execute=True), Webhook.disabled_at.is_(None))
    ).one()
    return Undelivered(count, max(age_ms or 0, 0) / 1000)
