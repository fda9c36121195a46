"""Metrics of publications: those that are due or at work, and the tries that have ended."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import case, func, literal_column, select
from sqlalchemy.orm import Session

from app.db import now_ms
from app.jobs.models import Job
from app.metrics.observations import Series
from app.publications.models import DUE, Publication

TRIES = Series(
    "espalier_publication_try_seconds",
    "Tries of publications: `published`, `failed` (tried again) or `given_up`, of which a lost process takes 0 s. "
    "Since the database was made.",
    ("outcome",),
    always=(("published",), ("failed",), ("given_up",)),
)


class Pending(NamedTuple):
    number: int
    oldest_s: float
    """Since it could have begun: since it was asked for, and its job has succeeded; 0 where there is none."""


def pending(session: Session) -> Pending:
    """Those that wait after a failure too."""
    since = case((Publication.created_at > Job.finished_at, Publication.created_at), else_=Job.finished_at)
    count, age_ms = session.execute(
        select(func.count(), now_ms() - func.min(since))
        .join(Job, Job.id == Publication.job_id)
        .where(literal_column(f"publications.{DUE}"))
    ).one()
    return Pending(count, max(age_ms or 0, 0) / 1000)
