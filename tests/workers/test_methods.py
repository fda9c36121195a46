"""Jobs with a method that a worker does not have, or more memory than it has, are left to workers that have it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from app.db import Database
from app.jobs import attempts, fleet, upkeep, worker_repository
from app.jobs.fleet import Hardware, Worker
from app.jobs.models import Job, Outbox
from tests.helpers.job_life import SPEC, claim, submit, succeed, worker
from workers.engine.contracts.params import STAGES
from workers.engine.registry import methods
from workers.engine.spec import CompressionSpec

WANDA = CompressionSpec.model_validate(
    {**SPEC.model_dump(mode="json"), "score": {"method": "wanda"}, "calibrate": {"dataset": "c.txt"}}
)


def knowing(name: str, *scores: str, devices: int = 1) -> Worker:
    return replace(worker(name, devices=devices), methods={"score": scores, "allocate": ["uniform"], "prune": ["mask"]})


def messages(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(Outbox.job_id)))


def forget_messages(database: Database) -> None:
    with database.write() as session:
        upkeep.forget_sent(session, list(session.scalars(select(Outbox.id))))


def pass_on(database: Database, by: Worker) -> str | None:
    return database.transact(lambda session: attempts.pass_on(session, by))


def test_names_are_unique_among_stages() -> None:
    """Job.methods has no stages."""
    names = [method.name for stage in STAGES for method in methods(stage)]
    assert len(names) == len(set(names))


def test_a_claim_passes_over_what_its_worker_does_not_know(database: Database, tenant: str) -> None:
    old, new = knowing("old", "magnitude"), knowing("new", "magnitude", "wanda")
    first = submit(database, tenant, spec=WANDA, priority=9)
    second = submit(database, tenant)
    held = claim(database, by=old)
    assert held is not None
    assert held.job_id == second
    succeed(database, held)
    assert claim(database, by=old) is None
    with database.read() as session:
        assert not worker_repository.any_to_run(session, old, overtaking_ms=0)
    held = claim(database, by=new)
    assert held is not None
    assert held.job_id == first


def test_a_large_job_that_it_does_not_know_keeps_nothing_free(database: Database, tenant: str) -> None:
    old = knowing("old", "magnitude", devices=2)
    running = submit(database, tenant)
    assert claim(database, by=old) is not None
    two = WANDA.model_copy(update={"compute": WANDA.compute.model_copy(update={"devices": 2})})
    large, small = submit(database, tenant, spec=two), submit(database, tenant)
    with database.write() as session:
        session.execute(update(Job).where(Job.id == large).values(created_at=1))
    held = claim(database, by=old)
    assert held is not None
    assert held.job_id == small != running


def test_a_worker_that_says_no_methods_takes_any_job_and_any_takes_jobs_of_before(
    database: Database, tenant: str
) -> None:
    submit(database, tenant, spec=WANDA)
    assert claim(database, by=worker("silent", devices=1)) is not None
    earlier = submit(database, tenant, spec=WANDA)
    with database.write() as session:
        session.execute(update(Job).where(Job.id == earlier).values(methods=""))
    assert claim(database, by=knowing("old", "magnitude")) is not None


def test_a_message_that_the_wrong_worker_took_is_passed_on(database: Database, tenant: str) -> None:
    """Once, to an idle worker that can, and to nobody else."""
    old, new = knowing("old", "magnitude"), knowing("new", "magnitude", "wanda")
    job_id = submit(database, tenant, spec=WANDA)
    forget_messages(database)
    assert claim(database, by=old) is None
    assert pass_on(database, old) is None  # there is nobody
    with database.write() as session:
        fleet.make_known(session, new, ttl_s=60)
    assert pass_on(database, old) == job_id
    assert messages(database) == [job_id]
    assert pass_on(database, old) is None  # the message is on its way
    forget_messages(database)
    busy = submit(database, tenant, priority=9)
    held = claim(database, by=new)
    assert held is not None
    assert held.job_id == busy
    forget_messages(database)
    assert pass_on(database, old) is None  # it looks itself when it is done
    succeed(database, held)
    assert claim(database, by=new) is not None


def test_so_is_one_of_a_job_that_is_too_large(database: Database, tenant: str) -> None:
    one, pair = knowing("one", "magnitude"), knowing("pair", "magnitude", devices=2)
    two = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"devices": 2})})
    job_id = submit(database, tenant, spec=two)
    forget_messages(database)
    with database.write() as session:
        fleet.make_known(session, pair, ttl_s=60)
    assert claim(database, by=one) is None
    assert pass_on(database, one) == job_id


GIB = 2**30


def gpus(memory_bytes: int | None) -> dict[str, Any]:
    return {"kind": "gpu", "hardware": {name: Hardware("a", memory_bytes) for name in ("0", "1")}}


@pytest.mark.parametrize(
    ("has", "devices", "least", "fits"),
    [
        ({"memory_bytes": 8 * GIB}, 1, 8 * GIB, True),
        ({"memory_bytes": 8 * GIB}, 1, 8 * GIB + 1, False),
        ({"memory_bytes": 8 * GIB}, 2, 4 * GIB, True),
        ({"memory_bytes": 8 * GIB}, 2, 4 * GIB + 1, False),
        ({"memory_bytes": 8 * GIB}, 1, None, True),
        ({"memory_bytes": None}, 1, 2**62, True),
        ({"memory_bytes": 8 * GIB, **gpus(16 * GIB)}, 2, 16 * GIB, True),
        ({"memory_bytes": 64 * GIB, **gpus(16 * GIB)}, 1, 16 * GIB + 1, False),
        ({"memory_bytes": 8 * GIB, **gpus(None)}, 1, 64 * GIB, True),
    ],
)
def test_a_claim_passes_over_what_takes_more_memory_than_its_worker_has(
    has: dict[str, Any], devices: int, least: int | None, fits: bool, database: Database, tenant: str
) -> None:
    """The host's memory is of all processes of a job, a GPU's of one. What is behind the job starts."""
    by = replace(worker("w", devices=2), **has)
    spec = SPEC.model_copy(update={"compute": SPEC.compute.model_copy(update={"devices": devices})})
    first = submit(database, tenant, spec=spec, priority=9, peak_memory_bytes=least)
    second = submit(database, tenant)
    held = claim(database, by=by)
    assert held is not None
    assert held.job_id == (first if fits else second)
    if not fits:
        assert claim(database, by=by) is None
        large = claim(database, by=replace(worker("large", devices=2), memory_bytes=2**62))
        assert large is not None
        assert large.job_id == first


def test_a_job_too_large_for_the_worker_that_took_its_message_goes_to_one_that_has_the_memory(
    database: Database, tenant: str
) -> None:
    small, large = (replace(worker(name, devices=1), memory_bytes=size * GIB) for name, size in (("s", 8), ("l", 16)))
    job_id = submit(database, tenant, peak_memory_bytes=12 * GIB)
    forget_messages(database)
    for other, passed in ((replace(small, id="wrk_same"), None), (large, job_id)):
        with database.write() as session:
            fleet.make_known(session, other, ttl_s=60)
        assert claim(database, by=small) is None
        assert pass_on(database, small) == passed
