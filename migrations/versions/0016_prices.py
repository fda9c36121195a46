"""Prices of device time

Revision ID: 0016
Revises: 0015
Create Date: 2026-11-27 18:20:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

TABLES = ("attempts", "device_times", "jobs")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("price", sa.BigInteger(), nullable=True))
        op.add_column(table, sa.Column("currency", sa.String(length=8), nullable=True))


def downgrade() -> None:
    for table in TABLES:
        op.drop_column(table, "currency")
        op.drop_column(table, "price")
