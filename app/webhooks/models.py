"""The tables of webhooks. All `*_at` are milliseconds since the epoch on the database's clock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Json, Serial
from app.keys.models import Tenant


class Webhook(Base):
    """An address that is told of jobs. Its secrets are derived from the service's, and stored nowhere."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey(Tenant.id), index=True)
    url: Mapped[str] = mapped_column(String(2000))
    events: Mapped[list[str]] = mapped_column(Json)
    """Types that it is told of; empty for all."""
    labels: Mapped[dict[str, str]] = mapped_column(Json)
    """Labels that a job must have."""
    secret_number: Mapped[int] = mapped_column(default=1)
    """Raised by each rotation."""
    previous_until: Mapped[int | None] = mapped_column(BigInteger)
    """Until then the secret before signs too."""
    disabled_at: Mapped[int | None] = mapped_column(BigInteger)
    disabled_because: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[int] = mapped_column(BigInteger)


class Delivery(Base):
    """An event for a webhook: written in the event's transaction, sent until it arrives, kept as a log."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_list", "webhook_id", "id"),
        Index(
            "ix_webhook_deliveries_due",
            "due_at",
            postgresql_where=text("state = 'pending'"),
            sqlite_where=text("state = 'pending'"),
        ),
    )

    id: Mapped[int] = mapped_column(Serial, primary_key=True, autoincrement=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(40))
    job_id: Mapped[str | None] = mapped_column(String(40))
    """No foreign key: it outlives the job. None of a test."""
    seq: Mapped[int | None]
    """The event's number in its job."""
    at: Mapped[int] = mapped_column(BigInteger)
    """When it happened."""
    body: Mapped[str | None] = mapped_column(Text)
    """As it is sent, each time the same; made before the first time."""
    state: Mapped[str] = mapped_column(String(10), default="pending")
    """pending, delivered, or failed: given up."""
    tries: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[int] = mapped_column(BigInteger)
    done_at: Mapped[int | None] = mapped_column(BigInteger)
    log: Mapped[list[dict[str, Any]]] = mapped_column(Json)
    """The last tries, `{at, status, error, elapsed_s}`."""
