"""Methods of jobs, to filter lists by

Revision ID: 0010
Revises: 0009
Create Date: 2026-11-27 14:35:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.online import add_column, beside_others, fill_jobs

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

STAGES = ("score", "allocate", "prune", "grow", "refine", "train", "tune")
EVALUATIONS = 8
"""The first so many of older jobs."""


def upgrade() -> None:
    add_column("jobs", sa.Column("methods", sa.String(length=500), server_default=sa.text("''"), nullable=False))
    spec = sa.column("spec", sa.JSON().with_variant(JSONB(), "postgresql"))
    paths = [(stage, "method") for stage in STAGES]
    paths += [("evaluate", number, "method") for number in range(EVALUATIONS)]
    said = sa.literal(" ")
    for path in paths:
        said = said.concat(sa.func.coalesce(spec[path].as_string().concat(sa.literal(" ")), ""))
    with beside_others():
        fill_jobs(sa.update(sa.table("jobs", spec, sa.column("methods"))).values(methods=said))


def downgrade() -> None:
    op.drop_column("jobs", "methods")
