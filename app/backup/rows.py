"""A database's rows as text, table by table, the same from SQLite and PostgreSQL, and back into either.

Not by the databases' own dumps: pg_dump has to be there and of the server's version, and no SQLite reads what it
writes. Columns are those that the database has, whatever this version's models say; JSON stays the text that it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import JSON, Column, Connection, MetaData, Table, Text, bindparam, cast, insert, inspect, select

from app.db import continue_numbers

SCHEMA = "alembic_version"
AT_ONCE = 500
"""Rows of a statement."""


def tables(connection: Connection) -> list[Table]:
    """All but the schema's own, those that others refer to first."""
    found = MetaData()
    found.reflect(connection)
    return [table for table in found.sorted_tables if table.name != SCHEMA]


def is_empty(connection: Connection) -> bool:
    """Whether there is no row of anything, nor perhaps a table."""
    if not inspect(connection).get_table_names():
        return True
    found = (select(1).select_from(table).limit(1) for table in tables(connection))
    return all(connection.execute(any_row).first() is None for any_row in found)


def dump(connection: Connection, table: Table) -> Iterator[bytes]:
    """A line of JSON for each row."""
    columns = [cast(column, Text).label(column.name) if _is_json(column) else column for column in table.columns]
    query = select(*columns).order_by(*table.primary_key.columns)
    names = [str(column.name) for column in table.columns]  # a subclass of str, which orjson takes for no key
    for row in connection.execute(query, execution_options={"yield_per": AT_ONCE}):
        yield orjson.dumps(dict(zip(names, row, strict=True))) + b"\n"


def load(connection: Connection, table: Table, lines: Iterable[bytes]) -> int:
    """Write the rows; returns how many."""
    left, loaded = iter(lines), 0
    while rows := [orjson.loads(line) for line in islice(left, AT_ONCE)]:
        values = {name: _value(connection, table.c[name]) for name in rows[0]}
        connection.execute(insert(table).values(values), rows)
        loaded += len(rows)
    continue_numbers(connection, table)
    return loaded


def _value(connection: Connection, column: Column[Any]) -> Any:
    if not _is_json(column):
        return bindparam(column.name, type_=column.type)
    text = bindparam(column.name, type_=Text())
    return text if connection.dialect.name == "sqlite" else cast(text, column.type)


def _is_json(column: Column[Any]) -> bool:
    return isinstance(column.type, JSON)
