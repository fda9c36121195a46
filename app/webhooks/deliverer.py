"""Sends what webhooks are to be told, until it arrives. Run by any number of processes; the reconciler runs one.

Tenants take turns, so that none waits behind another's messages. A delivery is taken with a lease and sent outside of
any transaction. Whoever dies in between leaves it to the next, so a message may arrive twice, with the same
`webhook-id`, and none is lost.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import structlog
from sqlalchemy import Select, func, literal, select
from sqlalchemy.orm import Session

from app.db import Database, clock
from app.jobs.views import iso
from app.metrics.observations import Series, note
from app.settings import Settings
from app.webhooks import messages, secrets, sending, service
from app.webhooks.addresses import Network, networks
from app.webhooks.models import Delivery, Webhook

log = structlog.get_logger(__name__)

WAITS_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""After each try that failed; then it is given up, and the webhook disabled."""
AT_ONCE = 16
"""Tries of a step: all begin at once, so that none waits for another's end."""
LEASE_MS = 60_000
"""More than a try takes."""
LOOK_EVERY_S = 1.0
LOG_LENGTH = 20
GONE = 410
TRIES = Series(
    "espalier_webhook_try_seconds",
    "Tries of webhook deliveries: `delivered`, `failed` (tried again) or `given_up`. Since the database was made.",
    ("outcome",),
    always=(("delivered",), ("failed",), ("given_up",)),
)
Send = Callable[[str, str, dict[str, str], Sequence[Network]], sending.Answer]


class Message(NamedTuple):
    """A delivery as it is sent."""

    delivery_id: int
    tries: int
    webhook_id: str
    url: str
    body: str
    headers: dict[str, str]


class Deliverer:
    def __init__(self, database: Database, settings: Settings, send: Send = sending.post) -> None:
        self._database, self._send = database, send
        self._secret = settings.secret()
        self._allowed = networks(settings.webhook_allow)

    def step(self, *, limit: int = AT_ONCE) -> int:
        """Send what is due; returns how many were dealt with, those included that a webhook's filters leave out."""
        with self._database.read() as session:  # so that nothing is locked each second for nothing
            if session.execute(_due(clock(session)).limit(1)).first() is None:
                return 0
        taken, found = self._database.transact(lambda session: self._take(session, limit))
        if found:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._deliver, found))
        return taken

    def run(self, stop: threading.Event) -> None:
        """Until told to stop."""
        while not stop.is_set():
            try:
                if self.step():
                    continue
            except Exception as error:  # the database is away; the next round tries again
                log.warning("webhooks_failed", error=repr(error))
            stop.wait(LOOK_EVERY_S)

    def _take(self, session: Session, limit: int) -> tuple[int, list[Message]]:
        """How many were taken, and of them what is to be sent."""
        now = clock(session)
        age = (Delivery.due_at, Delivery.id)
        turn = func.row_number().over(partition_by=Webhook.tenant_id, order_by=age).label("turn")
        ranked = _due(now).with_only_columns(Delivery.id, turn).subquery()
        due = _due(now).join(ranked, ranked.c.id == Delivery.id).order_by(ranked.c.turn, *age).limit(limit)
        rows = session.execute(due.with_for_update(of=Delivery, skip_locked=True)).all()
        found = []
        for delivery, webhook in rows:
            if delivery.body is None:
                body = messages.body(session, delivery, webhook)
                if body is None:  # its filters leave it out
                    session.delete(delivery)
                    continue
                delivery.body = body
            delivery.tries += 1
            delivery.due_at = now + LEASE_MS
            numbers = [webhook.secret_number]
            if webhook.previous_until is not None and webhook.previous_until > now and webhook.secret_number > 1:
                numbers.append(webhook.secret_number - 1)
            keys = [secrets.secret_of(self._secret, webhook.id, number) for number in numbers]
            headers = secrets.headers(service.message_id(delivery), delivery.body, keys, time.time())
            headers |= {"Content-Type": "application/json", "User-Agent": "espalier-webhooks/1"}
            found.append(Message(delivery.id, delivery.tries, webhook.id, webhook.url, delivery.body, headers))
        session.flush()
        return len(rows), found

    def _deliver(self, message: Message) -> None:
        try:
            answer = self._send(message.url, message.body, message.headers, self._allowed)
            self._database.transact(lambda session: _record(session, message, answer))
        except Exception as error:  # its lease runs out, and it is tried again
            log.warning("webhook_delivery_failed", delivery=message.delivery_id, error=repr(error))


def _due(now: int) -> Select[Delivery, Webhook]:
    """Deliveries to be tried, with their webhooks."""
    return (
        select(Delivery, Webhook)
        .join(Webhook, Webhook.id == Delivery.webhook_id)
        .where(
            Delivery.state == literal("pending", literal_execute=True),  # as the index has it
            Delivery.due_at <= now,
            Webhook.disabled_at.is_(None),
        )
    )


def _record(session: Session, message: Message, answer: sending.Answer) -> None:
    tries = session.scalar(select(Delivery.tries).where(Delivery.id == message.delivery_id))
    if tries != message.tries:  # deleted, taken by another since, or begun anew by hand
        return
    given_up = not answer.arrived and (answer.status == GONE or message.tries > len(WAITS_S))
    if given_up:  # the webhook is locked before its delivery, as by whoever deletes it
        because = "410 Gone" if answer.status == GONE else f"nothing but failures in {message.tries} tries"
        service.disable(session, message.webhook_id, f"its receiver answered with {because}")
    delivery = session.scalar(select(Delivery).where(Delivery.id == message.delivery_id).with_for_update())
    if delivery is None or delivery.tries != message.tries:  # just now
        return
    now = clock(session)
    entry = {"at": iso(now), "status": answer.status, "error": answer.error, "elapsed_s": answer.elapsed_s}
    delivery.log = [*delivery.log, entry][-LOG_LENGTH:]
    outcome = "delivered" if answer.arrived else "given_up" if given_up else "failed"
    note(session, TRIES, (outcome,), int(answer.elapsed_s * 1000))
    if answer.arrived or given_up:
        delivery.state, delivery.done_at = "delivered" if answer.arrived else "failed", now
        return
    wait_s = max(WAITS_S[message.tries - 1], min(answer.retry_after_s or 0, WAITS_S[-1]))
    delivery.due_at = now + int(wait_s * 1000 * random.uniform(1, 1.1))  # so that not all come together
