"""Who asked for a job, what workers have, and orders of lists

Revision ID: 0008
Revises: 0007
Create Date: 2026-11-27 13:45:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.online import add_column, beside_others, make_index

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    add_column("jobs", sa.Column("asked_by", sa.String(length=100), nullable=True))
    # Workers that are alive now fill these when they are started again.
    for column in (
        sa.Column("seen_at", sa.BigInteger(), nullable=True),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("parts", Json, nullable=True),
        sa.Column("methods", Json, nullable=True),
    ):
        add_column("workers", column)
    with beside_others():
        make_index("ix_jobs_list_updated", "jobs", ["tenant_id", "updated_at", "id"])
        make_index("ix_jobs_list_priority", "jobs", ["tenant_id", "priority", "created_at", "id"])


def downgrade() -> None:
    for name in ("methods", "parts", "memory_bytes", "seen_at"):
        op.drop_column("workers", name)
    op.drop_index("ix_jobs_list_priority", "jobs")
    op.drop_index("ix_jobs_list_updated", "jobs")
    op.drop_column("jobs", "asked_by")
