"""Tenants take turns: nobody waits for another's queue, shares follow weights, and no priority reaches across."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update

from app.db import Database, clock
from app.jobs import attempts, worker_repository
from app.jobs.models import Job
from app.keys.models import Tenant
from tests.helpers.job_life import claim, status, submit, succeed, worker
from workers.engine.spec import CompressionSpec

SPEC_OF_TWO = CompressionSpec.model_validate(
    {"model": {"id": "m"}, "score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5},
     "compute": {"devices": 2}}
)  # fmt: skip


@pytest.fixture
def tenants(database: Database) -> list[str]:
    with database.write() as session:
        now = clock(session)
        session.add_all(Tenant(id=f"ten_{name}", name=name, created_at=now) for name in "abc")
    return ["ten_a", "ten_b", "ten_c"]


def flood(database: Database, tenant: str, count: int, **changes: Any) -> None:
    """That many copies of a job, in one statement."""
    first = submit(database, tenant, **changes)
    with database.write() as session:
        row = dict(session.execute(select(Job.__table__).where(Job.id == first)).mappings().one())
        copies = [{**row, "id": f"{first[:30]}{n:06}", "created_at": row["created_at"] + n} for n in range(1, count)]
        session.execute(insert(Job), copies)


def run(database: Database, steps: int, *workers: Any) -> list[str]:
    """Tenants of the jobs that ran, where all jobs are as long: each worker ends its job and takes the next."""
    ran = []
    for _ in range(steps):
        taken = [held for each in workers if (held := claim(database, by=each)) is not None]
        for held in taken:
            succeed(database, held)
        ran += [held.tenant_id for held in taken]
    return ran


def test_two_tenants_wait_for_no_flood(database: Database, tenants: list[str]) -> None:
    """Three tenants, one with 500 jobs at top priority, two workers: the others start within two lengths of a job."""
    one, two = worker("one", devices=1), worker("two", devices=1)
    flood(database, tenants[0], 500, priority=100)
    assert set(run(database, 5, one, two)) == {tenants[0]}
    running = [claim(database, by=each) for each in (one, two)]
    first = [submit(database, tenant, priority=-100) for tenant in tenants[1:]]
    for held in running:
        assert held is not None
        succeed(database, held)  # one length, at most
    assert sorted(run(database, 1, one, two)) == tenants[1:]
    assert [status(database, job_id) for job_id in first] == ["succeeded"] * 2
    assert set(run(database, 3, one, two)) == {tenants[0]}  # the others have nothing more: no worker idles


def test_shares_follow_weights(database: Database, tenants: list[str]) -> None:
    one = worker("one", devices=1)
    for tenant, weight in zip(tenants, (1, 2, 4), strict=True):
        flood(database, tenant, 20)
        with database.write() as session:
            session.execute(update(Tenant).where(Tenant.id == tenant).values(weight=weight))
    assert Counter(run(database, 14, one)) == {tenants[0]: 2, tenants[1]: 4, tenants[2]: 8}


def test_devices_that_are_held_count(database: Database, tenants: list[str]) -> None:
    """A tenant of weight 3 beside one of weight 1 holds three of four devices, however long their jobs are."""
    with database.write() as session:
        session.execute(update(Tenant).where(Tenant.id == tenants[1]).values(weight=3))
    for tenant in tenants[:2]:
        flood(database, tenant, 20)
    many = worker("many", devices=4)
    held = [claim(database, by=many) for _ in range(4)]
    assert Counter(each.tenant_id for each in held if each) == {tenants[0]: 1, tenants[1]: 3}
    for each in held:
        if each is not None and each.tenant_id == tenants[1]:
            succeed(database, each)
            again = claim(database, by=many)
            assert again is not None
            assert again.tenant_id == tenants[1]


def test_a_rest_earns_nothing(database: Database, tenants: list[str]) -> None:
    """A tenant that had nothing to run for long takes its turns then, and no more."""
    one = worker("one", devices=1)
    flood(database, tenants[0], 60)
    run(database, 8, one)
    flood(database, tenants[1], 20)
    ran = run(database, 6, one)
    assert Counter(ran) == {tenants[0]: 3, tenants[1]: 3}
    assert ran[0] == tenants[1] or ran[1] == tenants[1]


def test_a_large_job_waits_for_its_turn_and_then_gets_the_worker(database: Database, tenants: list[str]) -> None:
    """Once it has waited long enough, nothing starts there in its turn; the others go on elsewhere."""
    pair, single = worker("pair", devices=2), worker("single", devices=1)
    flood(database, tenants[0], 10)
    running = claim(database, by=pair)
    assert running is not None
    job_id = submit(database, tenants[1], spec=SPEC_OF_TWO)
    with database.write() as session:
        session.execute(update(Job).where(Job.id == job_id).values(created_at=1))
    assert claim(database, by=pair) is None  # kept free
    elsewhere = claim(database, by=single)
    assert elsewhere is not None
    succeed(database, running)
    taken = claim(database, by=pair)
    assert taken is not None
    assert taken.job_id == job_id


@pytest.mark.parametrize("quota", ["max_running", "max_device_seconds"])
def test_a_tenant_without_quota_left_keeps_nothing_free(database: Database, tenants: list[str], quota: str) -> None:
    """Its large job has waited long enough to be waited for, but what it waits for is the quota."""
    pair = worker("pair", devices=2)
    running = submit(database, tenants[0])
    held = claim(database, by=pair)
    assert held is not None
    assert held.job_id == running
    waiting = submit(database, tenants[1], spec=SPEC_OF_TWO)
    with database.write() as session:
        session.execute(update(Job).where(Job.id == waiting).values(created_at=1))
        session.execute(update(Tenant).where(Tenant.id == tenants[1]).values({quota: 0}))
    other = submit(database, tenants[0])
    taken = claim(database, by=pair)
    assert taken is not None
    assert taken.job_id == other
    with database.read() as session:  # nor does a worker look again for it
        assert not worker_repository.any_to_run(session, worker("idle", devices=2), overtaking_ms=0)


def test_many_workers_at_once_share_nothing_and_lose_nothing(database: Database, tenants: list[str]) -> None:
    for tenant in tenants:
        flood(database, tenant, 6)
    won: list[str] = []

    def work(name: str) -> None:
        mine = worker(name, devices=1)
        while True:
            held = database.transact(lambda session: attempts.claim(session, mine, ttl_s=60, overtaking_ms=0))
            if held is None:
                return
            won.append(held.job_id)
            succeed(database, held)

    threads = [threading.Thread(target=work, args=[f"w{n}"]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == len({*won}) == 18


def test_a_claim_reads_no_queue(database: Database, tenants: list[str]) -> None:
    """Of 4,500 queued jobs a claim finds the next by an index, for each tenant."""
    for tenant in tenants:
        flood(database, tenant, 1_500)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("analyze"))
    statements: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        if "jobs" in sql and ("tenants" in sql or "UPDATE jobs" in sql):
            statements.append((sql, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    assert claim(database, by=worker("one", devices=2)) is not None
    event.remove(database.engine, "before_cursor_execute", note)
    explain = "explain query plan" if database.engine.dialect.name == "sqlite" else "explain"
    assert len(statements) == 2
    with database.engine.connect() as connection:
        for sql, parameters in statements:
            plan = "\n".join(str(line) for line in connection.exec_driver_sql(f"{explain} {sql}", parameters).all())
            assert "ix_jobs_queue" in plan
            assert "SCAN jobs" not in plan
            assert "Seq Scan on jobs" not in plan, plan
