"""Tenants and their API keys. A key's text is shown once and never stored: only its HMAC is."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Json


class Tenant(Base):
    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
    weight: Mapped[int] = mapped_column(server_default=text("1"))
    """Its share of the workers, against the weights of the others that wait."""
    share_start: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    share_end: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Of its last claim, in virtual time: see app/jobs/turns.py."""
    stored_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Of the results of its jobs, equal files once."""
    removed_bytes: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """Of files that policies have taken from its jobs since the first."""
    max_queued: Mapped[int | None]
    max_running: Mapped[int | None]
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_device_seconds: Mapped[int | None] = mapped_column(BigInteger)
    """In a month."""
    max_requests: Mapped[int | None]
    """In a minute. None of all five: no quota."""
    keep: Mapped[str | None] = mapped_column(String(8))
    """all or report: what stays of results of jobs that do not say; None: all."""
    keep_days: Mapped[int | None]
    """Days after the end of a job from when on that counts."""


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)
