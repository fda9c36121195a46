"""The status reader: one query for many, nothing from before the question, and no end by a broken connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import event, text

from app.db import Database
from app.errors import NotReady
from app.jobs import service, status_reader
from app.jobs.status_reader import StatusReader
from app.keys import service as keys
from workers.engine.spec import CompressionSpec

SPEC = CompressionSpec.model_validate(
    {"model": {"id": "m"}, "score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}
)


@asynccontextmanager
async def reading(database: Database) -> AsyncIterator[StatusReader]:
    reader = StatusReader(database)
    reader.start()
    try:
        yield reader
    finally:
        await reader.stop()


def key_of(database: Database, tenant: str) -> tuple[str, str]:
    """(hash, tenant id)"""
    with database.write() as session:
        key, _ = keys.create_key(session, secret=b"s", tenant=tenant, name="n", scopes=["jobs:read"], expires_days=None)
        return key.hash, key.tenant_id


def job_of(database: Database, tenant_id: str) -> str:
    with database.write() as session:
        return service.create(
            session,
            tenant_id=tenant_id,
            spec=SPEC,
            labels={},
            priority=0,
            max_attempts=1,
            deadline_s=60,
            request_id=None,
        ).id


def test_many_questions_share_a_query_and_get_their_own_answers(database: Database) -> None:
    ours, our_id = key_of(database, "ours")
    theirs, their_id = key_of(database, "theirs")
    our_jobs = [job_of(database, our_id) for _ in range(5)]
    their_jobs = [job_of(database, their_id) for _ in range(3)]
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    async def ask() -> None:
        async with reading(database) as reader:
            questions = [
                (key, job) for key in (ours, theirs, "unknown") for job in [*our_jobs, *their_jobs, "none", ""]
            ]
            answers = await asyncio.gather(*(reader.look(key, job) for key, job in questions))
        for (key, job), seen in zip(questions, answers, strict=True):
            visible = {ours: our_jobs, theirs: their_jobs}.get(key, [])
            assert (seen.key.hash if seen.key else "unknown") == key
            assert (seen.job.id if seen.job else None) == (job if job in visible else None)
            assert (seen.place is not None) == (job in visible)
        assert [a.place and a.place.position for a in answers[:5]] == [1, 2, 3, 4, 5]

    asyncio.run(ask())
    # The first question may go alone; the other 29 wait and go together: keys with jobs, then the live workers and the
    # places in the queue.
    assert len([s for s in statements if "api_keys" in s]) <= 2
    assert len([s for s in statements if s != "BEGIN"]) <= 6


def test_more_questions_than_a_query_takes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_reader, "BATCH", 4)
    key, tenant_id = key_of(database, "ours")
    jobs = [job_of(database, tenant_id) for _ in range(11)]

    async def ask() -> None:
        async with reading(database) as reader:
            answers = await asyncio.gather(*(reader.look(key, job) for job in jobs))
        assert [a.job.id for a in answers if a.job] == jobs

    asyncio.run(ask())


def test_an_answer_is_never_older_than_its_question(database: Database) -> None:
    key, tenant_id = key_of(database, "ours")
    job_id = job_of(database, tenant_id)

    async def ask() -> None:
        async with reading(database) as reader:
            background = [asyncio.create_task(reader.look(key, job_id)) for _ in range(50)]
            for version in range(2, 30):
                await asyncio.to_thread(relabel)
                background.append(asyncio.create_task(reader.look(key, job_id)))  # a query may be under way
                seen = await reader.look(key, job_id)
                assert seen.job is not None
                assert seen.job.version == version
            await asyncio.gather(*background)

    def relabel() -> None:
        with database.write() as session:
            job = session.get_one(status_reader.repository.Job, job_id)
            service.set_labels(session, job, {"a": "b"})

    asyncio.run(ask())


def test_a_client_that_left_disturbs_nobody(database: Database) -> None:
    key, tenant_id = key_of(database, "ours")
    job_id = job_of(database, tenant_id)

    async def ask() -> None:
        async with reading(database) as reader:
            gone = [asyncio.create_task(reader.look(key, job_id)) for _ in range(5)]
            await asyncio.sleep(0)
            for task in gone[::2]:
                task.cancel()
            stayed = await asyncio.gather(*gone[1::2])
            assert [seen.job.id for seen in stayed if seen.job] == [job_id, job_id]

    asyncio.run(ask())


def test_a_lost_connection_is_replaced(database: Database) -> None:
    key, _ = key_of(database, "ours")

    async def ask() -> None:
        async with reading(database) as reader:
            assert (await reader.look(key)).key is not None
            assert reader._connection is not None
            if database.engine.dialect.name == "postgresql":
                with database.engine.connect() as other:
                    other.execute(
                        text(
                            "select pg_terminate_backend(pid) from pg_stat_activity "
                            "where datname = current_database() and pid != pg_backend_pid()"
                        )
                    )
            else:
                reader._connection.connection.dbapi_connection.close()  # type: ignore[union-attr]
            assert (await reader.look(key)).key is not None

    asyncio.run(ask())


def test_without_a_database_the_answer_is_not_ready_and_comes_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = key_of(database, "ours")

    async def ask() -> None:
        async with reading(database) as reader:
            with monkeypatch.context() as broken:
                broken.setattr(reader, "_engine", Database("sqlite:////nowhere/at/all.db").engine)
                with pytest.raises(NotReady):
                    await reader.look(key)
            assert (await reader.look(key)).key is not None

    asyncio.run(ask())
