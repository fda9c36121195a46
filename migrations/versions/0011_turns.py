"""Tenants take turns; a scope for priorities above 0

Revision ID: 0011
Revises: 0010
Create Date: 2026-11-27 14:25:00
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from migrations.online import add_column, beside_others, make_index

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

SCOPE = "jobs:priority"
QUEUED = {"postgresql_where": sa.text("status = 'queued'"), "sqlite_where": sa.text("status = 'queued'")}
keys = sa.table("api_keys", sa.column("id"), sa.column("scopes", sa.JSON().with_variant(JSONB(), "postgresql")))


def upgrade() -> None:
    add_column("tenants", sa.Column("weight", sa.Integer(), server_default=sa.text("1"), nullable=False))
    add_column("tenants", sa.Column("share_start", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    add_column("tenants", sa.Column("share_end", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    _change(  # they could do it so far
        lambda scopes: [*scopes, SCOPE] if "jobs:write" in scopes and SCOPE not in scopes else scopes
    )
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("ix_jobs_queue", "jobs")
    with beside_others():
        make_index("ix_jobs_queue", "jobs", ["tenant_id", sa.text("priority DESC"), "created_at", "id"], **QUEUED)


def downgrade() -> None:
    _change(lambda scopes: [scope for scope in scopes if scope != SCOPE])
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index("ix_jobs_queue", "jobs", [sa.text("priority DESC"), "created_at", "id"], **QUEUED)
    for name in ("share_end", "share_start", "weight"):
        op.drop_column("tenants", name)


def _change(new: Callable[[list[str]], list[str]]) -> None:
    for key_id, scopes in op.get_bind().execute(sa.select(keys.c.id, keys.c.scopes)).all():
        op.execute(sa.update(keys).where(keys.c.id == key_id).values(scopes=new(scopes)))
