"""Fences of publications

Revision ID: 0018
Revises: 0016
Create Date: 2026-11-27 20:40:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.online import add_column

revision = "0018"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The version before writes rows without it, and raises `tries` alone: see deliverer.py.
    add_column("publications", sa.Column("fence", sa.Integer(), server_default=sa.text("0"), nullable=False))


def downgrade() -> None:
    op.drop_column("publications", "fence")
