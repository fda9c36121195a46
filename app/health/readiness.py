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
    fits: bool
    """It is the needed one, or of a later version, which is about to replace this one: migrations add to what is there.
    """
    broker_late_s: float
    """How long the oldest message to a worker has been due; 0 with a revision that does not fit."""


def readiness(database: Database) -> Readiness | None:
    """None if the database does not answer."""
    from app import migrate  # alembic takes as long to import as the web framework

    needed = migrate.head()
    try:
        current = migrate.current(database)
        fits = current == needed or (current is not None and not migrate.is_known(current))
        if not fits:
            return Readiness(current, needed, fits, 0)
        with database.read() as session:
            return Readiness(current, needed, fits, counts.outbox_oldest_s(session))
    except SQLAlchemyError:
        return None
