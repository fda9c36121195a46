"""Pairs of transactions that once waited for each other, met at their worst moment, on PostgreSQL: both get through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.orm import Session

from app.db import Database
from app.errors import InvalidTransition
from app.jobs import attempts, service, upkeep, worker_repository
from app.jobs.models import Job, Outbox
from app.keys.models import Tenant
from app.sweeps import service as sweeps
from app.sweeps.models import Sweep, SweepChild
from tests.helpers.job_life import MANY
from workers.engine.spec import CompressionSpec

Change = Callable[[Session], Any]
SPEC = CompressionSpec.model_validate(
    {"model": {"id": "m"}, "score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}
)


@pytest.fixture
def database(postgresql_server: str, migrated_postgresql: str) -> Iterator[Database]:
    """SQLite has one writer at a time, so no two can wait for each other."""
    engine = create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("drop database if exists lock_order with (force)"))
        connection.execute(text(f"create database lock_order template {migrated_postgresql}"))
    engine.dispose()
    database = Database(postgresql_server.replace("/postgres?", "/lock_order?"))
    yield database
    database.dispose()


def jobs(database: Database, count: int) -> list[str]:
    """Ended jobs of one sweep, swp_1, whose messages are still in the outbox."""
    with database.write() as session:
        session.add(Tenant(id="ten_1", name="one", created_at=1))
        session.flush()
        session.add(Sweep(id="swp_1", tenant_id="ten_1", name=None, parameters=[], created_at=1))
        session.flush()
        made = []
        for number in range(count):
            job = service.create(
                session, tenant_id="ten_1", spec=SPEC, labels={}, priority=0, max_attempts=1, deadline_s=60,
                request_id=None,
            )  # fmt: skip
            locked = worker_repository.lock_job(session, job.id)
            assert locked is not None
            service.cancel(session, locked)
            session.add(SweepChild(sweep_id="swp_1", number=number, job_id=job.id, values={}))
            made.append(job.id)
    return sorted(made)


def messages(database: Database) -> list[int]:
    with database.read() as session:
        return list(session.scalars(select(Outbox.id).order_by(Outbox.id)))


def remove_sweep(session: Session) -> None:
    sweeps.remove(session, session.get_one(Sweep, "swp_1"))


def lock(job_id: str) -> Change:
    return lambda session: worker_repository.lock_job(session, job_id)


def meet(database: Database, begin: Change, go_on: Change, second: Change) -> None:
    """The first has begun, `second` comes to wait for it, the first goes on. Neither may be undone."""
    errors: list[Exception] = []

    def run_second() -> None:
        try:
            with database.write() as session:
                second(session)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run_second)
    with database.write() as session:
        begin(session)
        thread.start()
        while not _somebody_waits(database):
            assert not errors, errors
            time.sleep(0.01)
        go_on(session)
    thread.join(timeout=30)
    assert (errors, thread.is_alive()) == ([], False)


def _somebody_waits(database: Database) -> bool:
    with database.read() as session:
        waiting = "select count(*) from pg_locks where not granted"
        return bool(session.execute(text(waiting)).scalar_one())


@pytest.mark.parametrize("held", [0, 1, 2])
def test_the_relay_and_a_sweeps_deletion(database: Database, held: int) -> None:
    """The relay has forgotten one job's message and goes on to the others, some of which the deletion has by then."""
    jobs(database, 3)
    sent = messages(database)
    meet(
        database,
        lambda session: upkeep.forget_sent(session, [sent[held]]),
        lambda session: upkeep.forget_sent(session, sent),
        remove_sweep,
    )
    with database.read() as session:
        assert session.scalars(select(Job.id)).all() == []


def test_the_relay_leaves_the_queue_in_its_order(database: Database) -> None:
    """A worker that looks while messages are being forgotten takes the job that was submitted first."""
    ids = jobs(database, 2)
    with database.write() as session:
        for job_id in ids:
            job = worker_repository.lock_job(session, job_id)
            assert job is not None
            service.retry(session, job)
    with database.write() as session:
        assert upkeep.forget_sent(session, messages(database)) == 4
        with database.write() as other:
            held = attempts.claim(other, MANY, ttl_s=60, overtaking_ms=0)
    assert held is not None
    assert held.job_id == ids[0]


def test_a_job_that_is_retried_meanwhile_is_not_deleted_with_its_sweep(database: Database) -> None:
    """The deletion looks at the jobs once it has locked them."""
    ids = jobs(database, 2)

    def retry(session: Session) -> None:
        job = worker_repository.lock_job(session, ids[1])
        assert job is not None
        service.retry(session, job)

    def remove(session: Session) -> None:
        with pytest.raises(InvalidTransition, match="1 of the sweep's jobs"):
            remove_sweep(session)

    meet(database, lock(ids[1]), retry, remove)
    with database.read() as session:
        assert sorted(session.scalars(select(Job.id))) == ids


def test_chores_over_many_rows_wait_for_nobody(database: Database) -> None:
    [job_id] = jobs(database, 1)
    with database.write() as session:
        worker_repository.lock_job(session, job_id)
        with database.write() as other:
            assert upkeep.reap(other, backoff_s=0) == []
            upkeep.announce_again(other, older_than_s=0)
            upkeep.forget_idempotency_keys(other)
