"""Jobs may be paused

Revision ID: 0009
Revises: 0008
Create Date: 2026-11-27 14:10:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.online import add_column, beside_others

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

BEFORE = "status in ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')"
AFTER = "status in ('queued', 'running', 'pausing', 'paused', 'cancelling', 'succeeded', 'failed', 'cancelled')"


def upgrade() -> None:
    add_column("jobs", sa.Column("paused_at", sa.BigInteger(), nullable=True))
    _replace(BEFORE, AFTER)
    with beside_others():
        _validate()


def downgrade() -> None:
    # The reconciler announces what is queued here.
    op.execute("update jobs set status = 'queued' where status = 'paused'")
    op.execute("update jobs set status = 'running' where status = 'pausing'")
    _replace(AFTER, BEFORE)
    _validate()
    op.drop_column("jobs", "paused_at")


def _replace(old: str, new: str) -> None:
    """Change the constraint on the statuses."""
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_jobs_status"), "jobs")
        op.execute(f"alter table jobs add constraint ck_jobs_status check ({new}) not valid")
        return
    # SQLite has no way but to copy the table, whose removal would take along what hangs on each job, or this, which its
    # documentation (lang_altertable, 7) gives for constraints.
    version = op.get_bind().execute(sa.text("pragma schema_version")).scalar_one()
    op.execute("pragma writable_schema = on")
    changed = op.get_bind().execute(
        sa.text("update sqlite_master set sql = replace(sql, :old, :new) where type = 'table' and name = 'jobs'"),
        {"old": old, "new": new},
    )
    assert changed.rowcount == 1
    op.execute(f"pragma schema_version = {version + 1}")
    op.execute("pragma writable_schema = off")


def _validate() -> None:
    """On PostgreSQL the constraint holds for new rows at once, and for the others once they have been looked at."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("alter table jobs validate constraint ck_jobs_status")
