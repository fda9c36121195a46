"""Schema migrations, run as a command (`espalier db upgrade`), never by the API."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, MetaData, Table, func, select
from sqlalchemy.exc import DBAPIError

import migrations
from app.db import Database, asks_to_repeat

REPEAT_FOR_S = 600.0
"""Seconds for which a step is repeated that did not get a lock in time."""
LOCK_NOT_AVAILABLE = "55P03"


def config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str, revision: str = "head") -> None:
    if database_url.startswith("sqlite:///"):
        Path(database_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    _patiently(command.upgrade, database_url, revision)


def downgrade(database_url: str, revision: str) -> None:
    _patiently(command.downgrade, database_url, revision)


def _patiently(go: Callable[[Config, str], None], database_url: str, revision: str) -> None:
    """Go again where a step did not get a lock in time, or was undone for another's sake; those before it are done."""
    give_up_at = time.monotonic() + REPEAT_FOR_S
    while True:
        try:
            return go(config(database_url), revision)
        except DBAPIError as error:
            repeat = asks_to_repeat(error) or getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE
            if not repeat or time.monotonic() > give_up_at:
                raise
        time.sleep(random.uniform(0.2, 1))


def to(database_url: str, revision: str) -> None:
    """Bring an empty database to a revision, up or down."""
    database = Database(database_url)
    try:
        now = current(database)
    finally:
        database.dispose()
    (upgrade if now is None or now in _up_to(revision) else downgrade)(database_url, revision)


def current(database: Database) -> str | None:
    """The revision the database is at; None if it was never migrated."""
    with database.engine.connect() as connection:
        return revision(connection)


def revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def is_known(revision: str) -> bool:
    """Whether this version has it."""
    return revision in _up_to("head")


def head() -> str | None:
    """The newest revision there is."""
    return _scripts().get_current_head()


class Loss(NamedTuple):
    """A table, or a column of one that stays, and what of it goes: rows, or rows in which it is not null."""

    table: str
    column: str | None
    rows: int


def before(revision: str) -> str | None:
    """The revision that one is built on; None of the first."""
    found = _scripts().get_revision(revision).down_revision
    assert found is None or isinstance(found, str)  # no migration of ours joins two
    return found


def is_before(revision: str, other: str) -> bool:
    return revision != other and revision in _up_to(other)


def lost_by(database: Database, revision: str) -> list[Loss]:
    """The tables and columns with something in them that the schema of an earlier revision has no place for."""
    with TemporaryDirectory(prefix="espalier-schema-") as folder:
        url = f"sqlite:///{folder}/schema.db"
        upgrade(url, revision)
        earlier = Database(url)
        kept = _reflected(earlier)
        earlier.dispose()
    losses = []
    with database.engine.connect() as connection:
        for name, table in sorted(_reflected(database).items()):
            columns: list[Column[Any] | None] = [] if name in kept else [None]
            columns += [column for column in table.columns if name in kept and column.name not in kept[name].columns]
            for column in columns:
                query = select(func.count()).select_from(table)
                filled = query if column is None else query.where(column.is_not(None))
                if count := connection.execute(filled).scalar_one():
                    losses.append(Loss(name, None if column is None else column.name, count))
    return losses


def _reflected(database: Database) -> dict[str, Table]:
    found = MetaData()
    found.reflect(database.engine)
    return dict(found.tables)


def _up_to(revision: str) -> set[str]:
    """A revision and those that it is built on."""
    return {script.revision for script in _scripts().walk_revisions("base", revision)}


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(migrations.__file__).parent))
