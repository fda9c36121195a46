"""Alembic's entry: runs the migrations on the database named by app/migrate.py, or by the settings."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

import app.deployment
import app.jobs.models
import app.keys.models
import app.metrics.models
import app.sessions.models
import app.sweeps.models
import app.webhooks.models  # noqa: F401 - fills Base.metadata
from app.db import Base, Database
from app.settings import get_settings

LOCK, LOCK_TIMEOUT_MS = 7355608, 500
url = context.config.attributes.get("database_url") or get_settings().database_url
database = Database(url)
try:
    with database.engine.connect() as connection:
        postgresql = connection.dialect.name == "postgresql"
        if postgresql:
            # Two hosts may start `db upgrade` at once: the second waits, then finds nothing to do.
            connection.execute(text(f"select pg_advisory_lock({LOCK})"))
            # While a step waits for a lock on a table, others wait behind it: it gives up; app/migrate.py repeats it.
            connection.execute(text(f"set lock_timeout = {LOCK_TIMEOUT_MS}"))
            connection.commit()
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            render_as_batch=True,
            transaction_per_migration=True,  # each is done for good, and holds its locks no longer
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
finally:
    database.dispose()  # with the connection goes the lock
