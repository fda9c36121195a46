"""Quotas of tenants, and what they use

Revision ID: 0012
Revises: 0011
Create Date: 2026-11-27 14:40:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.online import add_column, beside_others, fill_jobs

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
QUOTAS: dict[str, type[sa.Integer]] = {
    "max_queued": sa.Integer,
    "max_running": sa.Integer,
    "max_stored_bytes": sa.BigInteger,
    "max_device_seconds": sa.BigInteger,
    "max_requests": sa.Integer,
}


def upgrade() -> None:
    zero = sa.text("0")
    add_column("jobs", sa.Column("device_ms", sa.BigInteger(), server_default=zero, nullable=False))
    add_column("jobs", sa.Column("stored_bytes", sa.BigInteger(), server_default=zero, nullable=False))
    add_column("tenants", sa.Column("stored_bytes", sa.BigInteger(), server_default=zero, nullable=False))
    for name, kind in QUOTAS.items():
        add_column("tenants", sa.Column(name, kind(), nullable=True))
    op.drop_table("device_times", if_exists=True)  # of a try that was interrupted
    op.create_table(
        "device_times",
        sa.Column("id", Serial, autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("device_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_device_times_tenant_id_tenants"),
        sa.PrimaryKeyConstraint("id", name="pk_device_times"),
    )
    op.create_index("ix_device_times_tenant", "device_times", ["tenant_id", "at", "device_ms"])
    stored = "coalesce((select sum(bytes) from artifacts where job_id = jobs.id), 0)"
    held = "coalesce((select sum(finished_at - started_at) from attempts where job_id = jobs.id "
    held += "and finished_at >= started_at), 0) * devices"
    jobs = sa.table("jobs", sa.column("stored_bytes"), sa.column("device_ms"))
    with beside_others():
        fill_jobs(sa.update(jobs).values(stored_bytes=sa.text(stored), device_ms=sa.text(held)))
        op.execute(
            "update tenants set stored_bytes = "
            "(select coalesce(sum(stored_bytes), 0) from jobs where tenant_id = tenants.id)"
        )
        op.execute(
            "insert into device_times (tenant_id, job_id, attempt, at, device_ms) "
            "select tenant_id, jobs.id, number, attempts.finished_at, "
            "(attempts.finished_at - attempts.started_at) * devices "
            "from attempts join jobs on jobs.id = job_id where attempts.finished_at >= attempts.started_at"
        )


def downgrade() -> None:
    op.drop_table("device_times")
    for name in reversed(QUOTAS):
        op.drop_column("tenants", name)
    op.drop_column("tenants", "stored_bytes")
    op.drop_column("jobs", "stored_bytes")
    op.drop_column("jobs", "device_ms")
