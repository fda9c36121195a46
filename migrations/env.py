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

url = context.config.attributes.get("database_url") or get_settings().database_url
database = Database(url)
with database.engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # Two hosts may start `db upgrade` at once: the second waits, then finds nothing to do.
            connection.execute(text("select pg_advisory_xact_lock(7355608)"))
        context.run_migrations()
    connection.commit()
database.dispose()
