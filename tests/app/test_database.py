"""Connections of the pool: tried where they have rested, not where they are in constant use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app import db
from app.db import Database, clock


@pytest.fixture
def postgresql(postgresql_server: str) -> Iterator[Database]:
    database = Database(postgresql_server)
    yield database
    database.dispose()


@pytest.fixture
def pings(postgresql: Database, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    found: list[bool] = []
    ping = postgresql.engine.dialect.do_ping

    def counted(connection: object) -> bool:
        found.append(True)
        return ping(connection)  # type: ignore[arg-type]

    monkeypatch.setattr(postgresql.engine.dialect, "do_ping", counted)
    return found


def backend(session: Session) -> int:
    return session.scalar(select(func.pg_backend_pid())) or 0


def end(server: str, pid: int) -> None:
    other = Database(server)
    with other.read() as session:
        session.execute(text("select pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    other.dispose()


def test_in_constant_use_they_are_not_tried(postgresql: Database, pings: list[bool]) -> None:
    for _ in range(3):
        with postgresql.read() as session:
            clock(session)
        postgresql.transact(clock)
    assert not pings


@pytest.mark.parametrize("first", ["read", "transact"])
def test_after_a_rest_one_that_was_lost_is_replaced(
    first: str, postgresql: Database, postgresql_server: str, pings: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgresql.read() as session, postgresql.read() as another:
        lost = [backend(session), backend(another)]
    for pid in lost:
        end(postgresql_server, pid)
    monkeypatch.setattr(db, "REST_S", 0)
    if first == "read":
        with postgresql.read() as session:
            assert backend(session) not in lost
    else:
        assert postgresql.transact(backend) not in lost
    assert pings


def test_reads_hold_no_transaction(postgresql: Database) -> None:
    """Each statement on PostgreSQL sees the newest commit; none keeps old rows from being cleaned up."""
    with postgresql.read() as session:
        backend(session)
        connection = session.connection().connection.driver_connection
        assert connection is not None
        assert connection.info.transaction_status.name == "IDLE"
    with postgresql.write() as session:
        backend(session)
        connection = session.connection().connection.driver_connection
        assert connection is not None
        assert connection.info.transaction_status.name == "INTRANS"
