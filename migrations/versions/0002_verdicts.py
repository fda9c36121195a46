"""Verdicts of gates

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-22 12:20:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("verdict", sa.String(length=16), nullable=True))
    op.create_index("ix_jobs_list_verdict", "jobs", ["tenant_id", "verdict", "created_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_list_verdict", "jobs")
    op.drop_column("jobs", "verdict")
