"""Steps of migrations that others work beside: no step holds a lock for as long as a table is large.

A migration takes its short steps (columns, tables, constraints) in one transaction. What goes through a table is
behind them and outside of it: indexes are made concurrently, rows are filled in batches. On PostgreSQL such a migration
that is interrupted begins again, so each of its steps may be repeated. SQLite has one writer: there all is one
transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op

BATCH = 1000
BETWEEN = sa.text("jobs.id > :after and jobs.id <= :until")


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Add a column; harmless if it is there."""
    op.add_column(table, column, if_not_exists=_concurrent() or None)


@contextmanager
def beside_others() -> Iterator[None]:
    """The last steps of a migration: each is committed by itself."""
    if not _concurrent():
        yield
        return
    with op.get_context().autocommit_block():
        op.execute("set lock_timeout = 0")  # they wait for others, and nobody waits for them
        yield
        op.execute("reset lock_timeout")


def make_index(name: str, table: str, columns: list[Any], **options: Any) -> None:
    """Within `beside_others`. One of that name that is there is replaced."""
    if _concurrent():
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, **options)
    else:
        op.create_index(name, table, columns, **options)


def fill_jobs(statement: sa.Update) -> None:
    """Update all jobs, within `beside_others`: on PostgreSQL some at a time, in the order of their ids."""
    connection, jobs = op.get_bind(), sa.table("jobs", sa.column("id"))
    if not _concurrent():
        connection.execute(statement)
        return
    last = ""
    while (
        ids := connection.execute(sa.select(jobs.c.id).where(jobs.c.id > last).order_by(jobs.c.id).limit(BATCH))
        .scalars()
        .all()
    ):
        connection.execute(statement.where(BETWEEN.bindparams(after=last, until=ids[-1])))
        last = ids[-1]


def _concurrent() -> bool:
    return op.get_bind().dialect.name == "postgresql"
