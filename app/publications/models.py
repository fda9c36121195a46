"""The table of publications. All `*_at` are milliseconds since the epoch on the database's clock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Json
from app.keys.models import Tenant

DUE = "state in ('pending', 'running')"
TO_DO = ("waiting", "pending", "running")
"""States in which the files of the result are needed."""


class Publication(Base):
    """A place that a job's result is brought to."""

    __tablename__ = "publications"
    __table_args__ = (
        Index("ix_publications_due", "due_at", postgresql_where=text(DUE), sqlite_where=text(DUE)),
        Index("ix_publications_job", "job_id", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    tenant_id: Mapped[str] = mapped_column(ForeignKey(Tenant.id))
    params: Mapped[dict[str, Any]] = mapped_column(Json)
    """As they were asked for: `to`, `credentials`, `gates` and those of the publisher. No secret is among them."""
    state: Mapped[str] = mapped_column(String(12))
    """waiting (for the job's success), pending, running, published, withheld (by the gates) or failed."""
    tries: Mapped[int] = mapped_column(default=0)
    """Raised whenever a process takes it up; taken back where it gives it back, and by a retry of a client's."""
    fence: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    """The fencing token: raised whenever a process takes it up, and never lowered."""
    due_at: Mapped[int] = mapped_column(BigInteger)
    """When it is taken up next; while it runs, when its lease ends."""
    asked_by: Mapped[str | None] = mapped_column(String(100))
    """Name of the key."""
    created_at: Mapped[int] = mapped_column(BigInteger)
    done_at: Mapped[int | None] = mapped_column(BigInteger)
    progress: Mapped[dict[str, int] | None] = mapped_column(Json)
    """Bytes that are there, `{done, total}`."""
    result: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """`{location, revision, changed}`."""
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    """Of the last try that failed, `{code, message, hint, retryable}`."""
