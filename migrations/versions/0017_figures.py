"""Figures that outlive their jobs, since when jobs wait, traces, and the use of devices

Revision ID: 0017
Revises: 0013
Create Date: 2026-11-27 17:20:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.online import add_column, beside_others, fill_jobs

revision = "0017"
down_revision = "0013"
branch_labels = None
depends_on = None

Json = sa.JSON().with_variant(JSONB(), "postgresql")
Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    add_column("jobs", sa.Column("queued_at", sa.BigInteger(), nullable=True))
    add_column("jobs", sa.Column("traceparent", sa.String(length=55), nullable=True))
    add_column("workers", sa.Column("use", Json, nullable=True))
    for name in ("histograms", "observations"):
        op.drop_table(name, if_exists=True)  # of a try that was interrupted
    op.create_table(
        "observations",
        sa.Column("id", Serial, autoincrement=True, nullable=False),
        sa.Column("metric", sa.String(length=60), nullable=False),
        sa.Column("labels", sa.String(length=300), nullable=False),
        sa.Column("bound_ms", sa.BigInteger(), nullable=False),
        sa.Column("value_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_observations"),
    )
    op.create_table(
        "histograms",
        sa.Column("metric", sa.String(length=60), nullable=False),
        sa.Column("labels", sa.String(length=300), nullable=False),
        sa.Column("bound_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("sum_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("metric", "labels", "bound_ms", name="pk_histograms"),
    )
    queued = sa.table("jobs", sa.column("queued_at"), sa.column("not_before"), sa.column("status"))
    with beside_others():
        fill_jobs(sa.update(queued).where(queued.c.status == "queued").values(queued_at=queued.c.not_before))


def downgrade() -> None:
    op.drop_table("histograms")
    op.drop_table("observations")
    op.drop_column("workers", "use")
    op.drop_column("jobs", "traceparent")
    op.drop_column("jobs", "queued_at")
