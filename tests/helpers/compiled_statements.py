"""Statements compiled once in a process. A database has a cache of its own, and nearly every test has a database."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from app import db


def share() -> None:
    """Let databases of one kind share what is compiled, from here on: it names the dialect, and theirs are alike."""
    for kind in (PGDialect_psycopg, SQLiteDialect_pysqlite):
        kind.__eq__ = _alike  # type: ignore[method-assign]
        kind.__hash__ = _kind  # type: ignore[method-assign]
    compiled: dict[str, dict[Any, Any]] = defaultdict(dict)
    create = db.create_engine

    def create_engine(*arguments: Any, **options: Any) -> Engine:
        engine = create(*arguments, **options)
        engine.update_execution_options(compiled_cache=compiled[engine.dialect.name])
        return engine

    db.create_engine = create_engine  # type: ignore[attr-defined]


def _alike(one: object, other: object) -> bool:
    return type(one) is type(other)


def _kind(dialect: object) -> int:
    return hash(type(dialect))
