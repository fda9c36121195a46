"""The first step of a delivery: a row for each of the tenant's webhooks, in the transaction of the event itself."""

from __future__ import annotations

from sqlalchemy import Connection, insert, literal, select

from app.db import Json, table
from app.webhooks.models import Delivery, Webhook

_webhook = table(Webhook).c
_COLUMNS = ("webhook_id", "type", "job_id", "seq", "at", "state", "tries", "due_at", "log")


def note(connection: Connection, *, tenant_id: str, job_id: str, seq: int, kind: str, at: int) -> None:
    """An event of the job that is told of, such as `job.failed`. Filters are applied when it is sent."""
    told = select(
        _webhook.id,
        literal(kind),
        literal(job_id),
        literal(seq),
        literal(at),
        literal("pending"),
        literal(0),
        literal(at),
        literal([], Json),
    ).where(_webhook.tenant_id == tenant_id, _webhook.disabled_at.is_(None))
    connection.execute(insert(table(Delivery)).from_select(list(_COLUMNS), told))
