"""Sweeps; an Idempotency-Key may stand for one

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-22 12:40:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.alter_column("idempotency_keys", "job_id", new_column_name="resource_id")
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("parameters", Json, nullable=False),
        sa.Column("stop", Json, nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_sweeps_tenant_id_tenants"),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
    )
    op.create_index("ix_sweeps_list", "sweeps", ["tenant_id", "created_at", "id"])
    op.create_table(
        "sweep_children",
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("values", Json, nullable=False),
        sa.Column("stopped_by", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["sweep_id"], ["sweeps.id"], name="fk_sweep_children_sweep_id_sweeps", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_sweep_children_job_id_jobs", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("sweep_id", "number", name="pk_sweep_children"),
    )
    op.create_index("ix_sweep_children_job_id", "sweep_children", ["job_id"])


def downgrade() -> None:
    op.drop_table("sweep_children")
    op.drop_table("sweeps")
    op.alter_column("idempotency_keys", "resource_id", new_column_name="job_id")
