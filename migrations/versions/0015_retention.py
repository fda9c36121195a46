"""Retention of results, equal files stored once, predicted memory of jobs

Revision ID: 0015
Revises: 0014
Create Date: 2026-11-27 17:40:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.online import add_column, beside_others, make_index

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(JSONB(), "postgresql")
DUE = sa.text("files_due_at is not null and files_removed_at is null")
FRONT = sa.text("keep = 'front'")


def upgrade() -> None:
    for table, columns in _columns().items():
        for column in columns:
            add_column(table, column)
    op.drop_table("removed_artifacts", if_exists=True)  # of a try that was interrupted
    op.create_table(
        "removed_artifacts",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("path", sa.String(length=500), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_removed_artifacts_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "path", name="pk_removed_artifacts"),
    )
    with beside_others():
        make_index("ix_jobs_files_due", "jobs", ["files_due_at"], postgresql_where=DUE, sqlite_where=DUE)
        make_index("ix_jobs_front", "jobs", ["finished_at"], postgresql_where=FRONT, sqlite_where=FRONT)
        make_index("ix_artifacts_content", "artifacts", ["tenant_id", "sha256", "key"])
        make_index("ix_artifacts_key", "artifacts", ["key"])


def downgrade() -> None:
    op.drop_table("removed_artifacts")
    for index, table in (
        ("ix_artifacts_key", "artifacts"),
        ("ix_artifacts_content", "artifacts"),
        ("ix_jobs_front", "jobs"),
        ("ix_jobs_files_due", "jobs"),
    ):
        op.drop_index(index, table)
    for table, columns in _columns().items():
        for column in reversed(columns):
            op.drop_column(table, column.name)


def _columns() -> dict[str, list[sa.Column[object]]]:
    return {
        "jobs": [
            sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
            sa.Column("keep", sa.String(length=8), server_default=sa.text("'all'"), nullable=False),
            sa.Column("keep_days", sa.Integer(), server_default=sa.text("0"), nullable=False),
            sa.Column("most_days", sa.Integer(), nullable=True),
            sa.Column("pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
            sa.Column("files_due_at", sa.BigInteger(), nullable=True),
            sa.Column("files_removed_at", sa.BigInteger(), nullable=True),
            sa.Column("files_removed_because", sa.String(length=16), nullable=True),
        ],
        "tenants": [
            sa.Column("keep", sa.String(length=8), nullable=True),
            sa.Column("keep_days", sa.Integer(), nullable=True),
            sa.Column("removed_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        ],
        "sweeps": [sa.Column("retention", Json, nullable=True)],
        "workers": [sa.Column("device_memory_bytes", sa.BigInteger(), nullable=True)],
        "artifacts": [sa.Column("tenant_id", sa.String(length=40), nullable=True)],
    }
