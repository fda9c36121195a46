"""Messages for webhooks: made of the event and its job, when first sent or when the job is deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import delete, literal, select, update
from sqlalchemy.orm import Session

from app.jobs.models import Event, Job, JobLabel
from app.jobs.views import iso
from app.webhooks.models import Delivery, Webhook

PUBLICATION = "publication."
"""Begins the types of what becomes of a publication, whose job has succeeded."""


def body(session: Session, delivery: Delivery, webhook: Webhook) -> str | None:
    """The message, or None where the webhook is not to be told."""
    data: dict[str, Any] = {"webhook_id": webhook.id}
    if delivery.job_id is not None:
        job = session.get(Job, delivery.job_id)
        pairs = session.execute(select(JobLabel.key, JobLabel.value).where(JobLabel.job_id == delivery.job_id))
        labels = {row.key: row.value for row in pairs}
        if not _matches(webhook, delivery.type, labels):
            return None
        happened = (
            session.get(Event, (delivery.job_id, delivery.seq)) if delivery.type.startswith(PUBLICATION) else None
        )
        data = {
            "job_id": delivery.job_id,
            "status": "succeeded" if delivery.type.startswith(PUBLICATION) else delivery.type.removeprefix("job."),
            "seq": delivery.seq,
            "labels": labels,
            "verdict": job.verdict if job else None,
            "error": (job.error or {}).get("code") if job else None,
            "url": f"/v1/jobs/{delivery.job_id}",
        }
        if happened is not None:
            data["publication"] = happened.data
    return orjson.dumps({"type": delivery.type, "timestamp": iso(delivery.at), "data": data}).decode()


def not_made(session: Session, job_ids: Sequence[str]) -> dict[int, str | None]:
    """Delivery -> its message, of those that wait and have none yet. To be asked before the jobs are deleted."""
    rows = session.execute(
        select(Delivery, Webhook)
        .join(Webhook, Webhook.id == Delivery.webhook_id)
        .where(
            Delivery.state == literal("pending", literal_execute=True),  # as the index has it
            Delivery.body.is_(None),
            Delivery.job_id.in_(job_ids),
        )
    ).all()
    return {delivery.id: body(session, delivery, webhook) for delivery, webhook in rows}


def keep(session: Session, messages: Mapping[int, str | None]) -> None:
    """Write messages down, unless that has been done since."""
    for delivery_id, message in sorted(messages.items()):
        mine = (Delivery.id == delivery_id, Delivery.body.is_(None))
        change = (
            delete(Delivery).where(*mine) if message is None else update(Delivery).where(*mine).values(body=message)
        )
        session.execute(change, execution_options={"synchronize_session": False})


def _matches(webhook: Webhook, event: str, labels: Mapping[str, str]) -> bool:
    """Whether the webhook is to be told."""
    return (not webhook.events or event in webhook.events) and webhook.labels.items() <= labels.items()
