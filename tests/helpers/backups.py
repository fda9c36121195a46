"""Databases to restore into, and what is in one."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from app.backup.rows import tables
from app.db import Database


def rows(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """All there is, JSON as values, each table's rows in order."""
    with database.engine.connect() as connection:
        return {
            table.name: sorted((tuple(row) for row in connection.execute(table.select())), key=repr)
            for table in tables(connection)
        }


def fresh_postgresql(server: str, tablespace: str | None = None) -> str:
    """URL of a new database without a table."""
    name = f"r_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"create database {name}" + (f" tablespace {tablespace}" if tablespace else "")))
    engine.dispose()
    return str(server).replace("/postgres?", f"/{name}?")


def fresh_sqlite(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder}/espalier.db"
