"""Webhooks of a tenant: make, change, rotate, try out, send again. Functions take a session and never commit."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from app.db import clock, now_ms
from app.errors import InvalidRequest, NotFound
from app.http.field_problems import field_error
from app.ids import is_id, new_id
from app.keys.models import Tenant
from app.webhooks import addresses
from app.webhooks.models import Delivery, Webhook

MOST = 20
"""Webhooks of a tenant."""
LOG_KEPT_MS = 30 * 86_400_000


def check_url(url: str, allowed: Sequence[addresses.Network]) -> None:
    """Raises InvalidRequest where nothing would be sent there. A name that has no address yet passes: its deliveries
    say so."""
    try:
        addresses.resolved(addresses.target(url), allowed)
    except addresses.Refused as refused:
        detail = str(refused)
        raise InvalidRequest(f"/url: {detail}.", errors=[field_error("/url", "url_not_allowed", detail)]) from None
    except (OSError, UnicodeError):
        return


def create(session: Session, *, tenant_id: str, url: str, events: list[str], labels: dict[str, str]) -> Webhook:
    # Of two that would exceed it together one waits, and is told.
    session.execute(select(Tenant.id).where(Tenant.id == tenant_id).with_for_update(key_share=True))
    count = session.execute(select(func.count()).where(Webhook.tenant_id == tenant_id)).scalar_one()
    if count >= MOST:
        raise InvalidRequest(f"A tenant has at most {MOST} webhooks: delete one first.", code="too_many_webhooks")
    made = Webhook(
        id=new_id("whk"), tenant_id=tenant_id, url=url, events=events, labels=labels, created_at=clock(session)
    )
    session.add(made)
    session.flush()
    return made


def every(session: Session, tenant_id: str) -> Sequence[Webhook]:
    """The tenant's, oldest first."""
    return session.scalars(select(Webhook).where(Webhook.tenant_id == tenant_id).order_by(Webhook.id)).all()


def of_tenant(session: Session, tenant_id: str, webhook_id: str, *, lock: bool = False) -> Webhook:
    """The tenant's webhook, its row locked until the transaction ends if asked for. Raises NotFound."""
    query = select(Webhook).where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id)
    found = session.scalar(query.with_for_update() if lock else query) if is_id("whk", webhook_id) else None
    if found is None:
        raise NotFound("There is no such webhook: check the id, and that the key is of the tenant that made it.")
    return found


def enable(session: Session, webhook: Webhook, enabled: bool) -> None:
    """Disabled, it is told of nothing more; what it has not got yet waits until it is enabled again."""
    if enabled:
        webhook.disabled_at = webhook.disabled_because = None
    elif webhook.disabled_at is None:
        webhook.disabled_at, webhook.disabled_because = clock(session), "by its tenant"


def rotate(session: Session, webhook: Webhook, *, keep_hours: float) -> None:
    """A new secret signs from now on, and the one before beside it for so long."""
    webhook.secret_number += 1
    webhook.previous_until = clock(session) + int(keep_hours * 3_600_000)


def test(session: Session, webhook: Webhook) -> Delivery:
    """A message that says nothing, to see whether it arrives."""
    now = clock(session)
    made = Delivery(webhook_id=webhook.id, type="webhook.test", at=now, due_at=now, log=[])
    session.add(made)
    session.flush()
    return made


def deliveries(
    session: Session, webhook_id: str, *, state: str | None, older_than: int | None, limit: int
) -> Sequence[Delivery]:
    """The webhook's, newest first."""
    query = select(Delivery).where(Delivery.webhook_id == webhook_id)
    if state is not None:
        query = query.where(Delivery.state == state)
    if older_than is not None:
        query = query.where(Delivery.id < older_than)
    return session.scalars(query.order_by(Delivery.id.desc()).limit(limit)).all()


def redeliver(session: Session, webhook_id: str, delivery_id: int) -> Delivery:
    """Send it once more, and until it arrives: the same message with the same id. Raises NotFound."""
    found = session.scalar(
        select(Delivery).where(Delivery.id == delivery_id, Delivery.webhook_id == webhook_id).with_for_update()
    )
    if found is None:
        raise NotFound("There is no such delivery: they are kept for 30 days.")
    found.state, found.tries, found.due_at, found.done_at = "pending", 0, clock(session), None
    session.flush()
    return found


def remove(session: Session, webhook: Webhook) -> None:
    session.execute(delete(Webhook).where(Webhook.id == webhook.id))


def forget_old(session: Session) -> None:
    """Drop deliveries that were done long ago."""
    session.execute(delete(Delivery).where(Delivery.done_at < now_ms() - LOG_KEPT_MS))


def disable(session: Session, webhook_id: str, because: str) -> None:
    session.execute(
        update(Webhook)
        .where(Webhook.id == webhook_id, Webhook.disabled_at.is_(None))
        .values(disabled_at=now_ms(), disabled_because=because),
        execution_options={"synchronize_session": False},
    )


def message_id(delivery: Delivery) -> str:
    """The same whenever it is sent: by it a receiver knows what it has already got."""
    return f"msg_{delivery.webhook_id.removeprefix('whk_')}_{delivery.id}"
