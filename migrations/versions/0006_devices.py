"""Workers that are alive, devices that are handed out, how many a job takes

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-27 03:20:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("devices", sa.Integer(), server_default=sa.text("1"), nullable=False))
    # Specs of before have no such field; those from between a downgrade and this have.
    spec = sa.column("spec", sa.JSON().with_variant(JSONB(), "postgresql"))
    asked = spec[("compute", "devices")].as_integer()
    op.execute(sa.update(sa.table("jobs", spec, sa.column("devices"))).where(asked > 1).values(devices=asked))
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_table(
        "device_leases",
        sa.Column("device", sa.String(length=300), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_device_leases_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("device", name="pk_device_leases"),
    )
    op.create_index("ix_device_leases_job_id", "device_leases", ["job_id"])


def downgrade() -> None:
    op.drop_table("device_leases")
    op.drop_table("workers")
    op.drop_column("jobs", "devices")
