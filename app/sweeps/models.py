"""The tables of sweeps. A child is an ordinary job; what is here says which, and in what it differs from the others."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Json
from app.keys.models import Tenant


class Sweep(Base):
    __tablename__ = "sweeps"
    __table_args__ = (Index("ix_sweeps_list", "tenant_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(String(40), ForeignKey(Tenant.id))
    name: Mapped[str | None] = mapped_column(String(200))
    parameters: Mapped[list[str]] = mapped_column(Json)
    """JSON pointers into the spec: what the children differ in."""
    stop: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """schemas.StopRule."""
    retention: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """schemas.SweepRetention, as it counts for the children; None of sweeps that are older than this column."""
    created_at: Mapped[int] = mapped_column(BigInteger)


class SweepChild(Base):
    __tablename__ = "sweep_children"

    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"), index=True)
    """None once the job has been deleted."""
    values: Mapped[dict[str, Any]] = mapped_column(Json)
    """Parameter -> value."""
    stopped_by: Mapped[int | None]
    """Number of the child whose end made the stop rule cancel this one. It is done once: a retry is left alone."""
