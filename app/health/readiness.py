"""Whether the database answers and has the right revision, for `/readyz`."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from app.db import Database
from app.jobs import counts


class Readiness(NamedTuple):
    revision: str | None
    """Of the schema, and None of an empty database."""
    needed: str | None
    broker_late_s: float
    """How long the oldest message to a worker has been due; 0 with another revision than the needed one."""


def readiness(database: Database) -> Readiness | None:
    """None if the database does not answer."""
    from app import migrate  # alembic takes as long to import as the web framework

    needed = migrate.head()
    try:
        current = migrate.current(database)
        if current != needed:
            return Readiness(current, needed, 0)
        with database.read() as session:
            return Readiness(current, needed, counts.outbox_oldest_s(session))
    except SQLAlchemyError:
        return None
