"""The database: engine, sessions, Base. SQLite (WAL) or PostgreSQL; nothing dialect-bound lives outside this file.

Times are integers, milliseconds since the epoch on the DATABASE's clock: one arithmetic for leases on both
dialects, and no worker's clock matters.
"""

from __future__ import annotations

import math
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.functions import FunctionElement

from app.text import json_text, readable

T = TypeVar("T")
REPEAT_FOR_S = 2.0
"""Seconds for which a transaction that the database undid is repeated."""
REST_S = 0.5
"""A connection unused for longer is tried before it is used."""

Json = JSON().with_variant(JSONB(), "postgresql")
Serial = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def table(record: type[Base]) -> Table:
    """The record's table, for statements that return plain rows."""
    found = record.__table__
    assert isinstance(found, Table)  # of a mapped class it always is
    return found


class now_ms(FunctionElement[int]):  # noqa: N801 - an SQL function
    """The database's clock, milliseconds since the epoch. PostgreSQL: of the statement, not of the transaction."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "postgresql")
def _now_ms_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "(extract(epoch from statement_timestamp()) * 1000)::bigint"


@compiles(now_ms, "sqlite")
def _now_ms_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return "cast((julianday('now') - 2440587.5) * 86400000.0 as integer)"


def clock(session: Session) -> int:
    """The database's clock, ms."""
    return session.execute(select(now_ms())).scalar_one()


class json_object(FunctionElement[str]):  # noqa: N801 - an SQL function
    """Aggregate of (key, value) rows to the text of one JSON object, keys in any order; NULL of no rows."""

    type = Text()
    inherit_cache = True


@compiles(json_object, "postgresql")
def _json_object_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return f"json_object_agg({compiler.process(element.clauses, **kw)})::text"


@compiles(json_object, "sqlite")
def _json_object_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    arguments = compiler.process(element.clauses, **kw)
    return f"iif(count(*) > 0, json_group_object({arguments}), null)"


def continue_numbers(connection: Connection, table: Table) -> None:
    """After rows were written with their numbers: new ones go on behind them. SQLite does so by itself."""
    if connection.dialect.name != "postgresql" or table.autoincrement_column is None:
        return
    column = table.autoincrement_column
    sequence = connection.execute(select(func.pg_get_serial_sequence(table.name, column.name))).scalar_one()
    if sequence is not None:
        last = connection.execute(select(func.coalesce(func.max(column), 0))).scalar_one()
        connection.execute(select(func.setval(sequence, last + 1, False)))


class Database:
    """An engine, with `read()` and `write()` sessions and `transact()`. No session is shared between threads."""

    def __init__(self, url: str, *, pool_size: int = 10, patience_s: float | None = None) -> None:
        """`patience_s` bounds each wait, for a connection or a lock, and with half as much more each statement.

        None is for work that rather waits than fails: half a minute for SQLite's lock, any time for PostgreSQL's.
        """
        pool_timeout_s = 30 if patience_s is None else patience_s
        self._repeat_for_s = REPEAT_FOR_S if patience_s is None else 0.9 * patience_s  # not what waited all of it
        if make_url(url).get_backend_name() == "sqlite":
            self.engine = create_engine(
                url,
                connect_args={"timeout": pool_timeout_s},
                pool_size=pool_size,
                pool_timeout=pool_timeout_s,
                json_serializer=json_text,
            )
            _sqlite(self.engine)
        else:
            self.engine = create_engine(
                url,
                pool_size=pool_size,
                pool_timeout=pool_timeout_s,
                pool_use_lifo=True,  # the connection that was used last need not be tried
                connect_args=_postgresql(patience_s),
                json_serializer=json_text,
            )
            _ping_after_rest(self.engine)
        event.listen(self.engine, "before_cursor_execute", _make_readable, retval=True)
        # SQLite would otherwise take its write lock at the first write and fail if somebody wrote in between.
        self._writer = self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        # On PostgreSQL each statement sees the newest commit, in a transaction or not; outside of one it is one trip.
        embedded = self.engine.dialect.name == "sqlite"
        self._reader = self.engine if embedded else self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """For SELECTs: on SQLite one snapshot, on PostgreSQL one for each statement."""
        with Session(self._reader) as session:
            yield session

    @contextmanager
    def rows(self) -> Iterator[Connection]:
        """As `read`, for what needs no objects."""
        with self._reader.connect() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """For SELECTs that take long and must all see the same."""
        embedded = self.engine.dialect.name == "sqlite"
        level = {} if embedded else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self.engine.connect().execution_options(**level) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed at the end of the block, rolled back if it raises."""
        with Session(self._writer) as session, session.begin():
            yield session

    def transact(self, work: Callable[[Session], T]) -> T:
        """The value of `work`, its writes committed together.

        Where the database undoes the transaction and asks to repeat it (a deadlock, a serialisation failure, SQLite
        locked), `work` runs again: it changes nothing but the session.
        """
        give_up_at = time.monotonic() + self._repeat_for_s
        pause_s = 0.01
        while True:
            try:
                with self.write() as session:
                    return work(session)
            except DBAPIError as error:
                if not asks_to_repeat(error) or time.monotonic() > give_up_at:
                    raise
            time.sleep(random.uniform(0, pause_s))  # so that two transactions do not collide again
            pause_s = min(2 * pause_s, 0.5)

    def dispose(self) -> None:
        self.engine.dispose()


def _ping_after_rest(engine: Engine) -> None:
    """Try a connection that has lain in the pool for a while before it is used: the database may have restarted.

    As `pool_pre_ping`, but for those in constant use, where it is a fifth of what a read costs.
    """

    @event.listens_for(engine, "checkin")
    def checkin(connection: Any, record: ConnectionPoolEntry) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        if time.monotonic() - record.info.get("used_at", math.inf) > REST_S and not _answers(engine, connection):
            raise InvalidatePoolError  # the pool opens another connection, and tries all the others


def _answers(engine: Engine, connection: Any) -> bool:
    try:
        return engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error as error:
        if engine.dialect.is_disconnect(error, connection, None):
            return False
        raise


def _postgresql(patience_s: float | None) -> dict[str, Any]:
    if patience_s is None:
        return {"connect_timeout": 5}
    lock_ms, statement_ms = int(patience_s * 1000), int(patience_s * 1500)
    options = f"-c lock_timeout={lock_ms} -c statement_timeout={statement_ms}"
    return {"connect_timeout": max(2, round(patience_s)), "options": options}  # libpq knows no shorter time than 2 s


def asks_to_repeat(error: DBAPIError) -> bool:
    """Whether the database undid the transaction for another's sake, so that the same one may succeed."""
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return getattr(error.orig, "sqlstate", None) in ("40001", "40P01")


def is_outage(error: DBAPIError) -> bool:
    """Whether the database does not answer, is full, or is read-only for the moment (25006, during a failover)."""
    return isinstance(error, OperationalError | InterfaceError) or getattr(error.orig, "sqlstate", None) == "25006"


def took_too_long(error: DBAPIError) -> bool:
    """Whether PostgreSQL ended a statement after `statement_timeout`."""
    return getattr(error.orig, "sqlstate", None) == "57014"


def _make_readable(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> tuple[str, Any]:
    return statement, readable(parameters)


def _sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions begin where SQLAlchemy says, below
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))
