"""The database: engine, sessions, Base. SQLite (WAL) or PostgreSQL; nothing dialect-bound lives outside this file.

Times are integers, milliseconds since the epoch on the DATABASE's clock: one arithmetic for leases on both
dialects, and no worker's clock matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import JSON, BigInteger, Connection, Engine, Integer, MetaData, Text, create_engine, event, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.functions import FunctionElement

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


class Database:
    """An engine with its two kinds of session: `read()` and `write()`. Neither is shared between threads."""

    def __init__(self, url: str, *, pool_size: int = 10, patience_s: float | None = None) -> None:
        """`patience_s` bounds each wait, for a connection or a lock, and with half as much more each statement.

        None is for work that rather waits than fails: half a minute for SQLite's lock, any time for PostgreSQL's.
        """
        pool_timeout_s = 30 if patience_s is None else patience_s
        if make_url(url).get_backend_name() == "sqlite":
            self.engine = create_engine(
                url, connect_args={"timeout": pool_timeout_s}, pool_size=pool_size, pool_timeout=pool_timeout_s
            )
            _sqlite(self.engine)
        else:
            self.engine = create_engine(
                url,
                pool_size=pool_size,
                pool_timeout=pool_timeout_s,
                pool_pre_ping=True,
                connect_args=_postgresql(patience_s),
            )
        # SQLite would otherwise take its write lock at the first write and fail if somebody wrote in between.
        self._writer = self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction: committed at the end of the block, rolled back if it raises."""
        with Session(self._writer) as session, session.begin():
            yield session

    def dispose(self) -> None:
        self.engine.dispose()


def _postgresql(patience_s: float | None) -> dict[str, Any]:
    if patience_s is None:
        return {"connect_timeout": 5}
    lock_ms, statement_ms = int(patience_s * 1000), int(patience_s * 1500)
    options = f"-c lock_timeout={lock_ms} -c statement_timeout={statement_ms}"
    return {"connect_timeout": max(2, round(patience_s)), "options": options}  # libpq knows no shorter time than 2 s


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
