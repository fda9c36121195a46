"""The relay leaves jobs alone: when a message was sent is not noted any more

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-27 03:05:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("jobs", "dispatched_at")


def downgrade() -> None:
    op.add_column("jobs", sa.Column("dispatched_at", sa.BigInteger(), nullable=True))
