"""One id for database and store; files that may be deleted

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-26 20:30:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    # Its row is written when the service first starts: it and the store are given the id together.
    op.create_table(
        "deployment",
        sa.Column("only", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("store_marked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("only", name="pk_deployment"),
    )
    op.create_table(
        "file_removals",
        sa.Column("id", Serial, autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=True),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("done_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_file_removals"),
    )
    op.create_index(
        "ix_file_removals_due",
        "file_removals",
        ["id"],
        postgresql_where=sa.text("done_at is null"),
        sqlite_where=sa.text("done_at is null"),
    )
    op.create_index("ix_file_removals_job_id", "file_removals", ["job_id"])


def downgrade() -> None:
    op.drop_table("file_removals")
    op.drop_table("deployment")
