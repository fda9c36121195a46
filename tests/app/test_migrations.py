"""The migrations make what the models say, and can be taken back, with rows in the tables, on both databases."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app import migrate
from app.db import Base
from app.settings import Settings
from migrations import online
from tests.helpers.api import GATED, Api, eventually


def differences(api: Api) -> list[Any]:
    with api.database.engine.connect() as connection:
        # Alembic cannot read SQLite's index over an expression.
        compared = {"include_object": lambda thing, name, *_: name != "ix_jobs_queue"}
        return list(compare_metadata(MigrationContext.configure(connection, opts=compared), Base.metadata))


def test_they_make_what_the_models_say(api: Api) -> None:
    assert differences(api) == []


def test_down_and_up_again_keeps_the_jobs(api: Api, settings: Settings) -> None:
    job = api.submit(GATED)
    api.succeed(api.claim())
    job = api.get(job).json()
    api.services.relay.stop()
    migrate.downgrade(settings.database_url, "0001")
    assert differences(api) != []
    with api.database.write() as session:
        assert session.execute(text("select id from jobs")).scalars().all() == [job["id"]]
    migrate.upgrade(settings.database_url)
    assert differences(api) == []
    assert api.get(job).json() == {**job, "verdict": None, "asked_by": None}
    for method, found in {"magnitude": 1, "size": 1, "wanda": 0}.items():
        assert len(api.client.get("/v1/jobs", params={"method": method}).json()["data"]) == found


def test_a_paused_job_is_queued_by_going_back(api: Api, settings: Settings) -> None:
    job = api.submit()
    api.post(job, "pause")
    done = api.succeeded()
    api.services.relay.stop()
    migrate.downgrade(settings.database_url, "0008")
    with api.database.write() as session:
        assert session.execute(text("select status from jobs where id = :id"), job).scalar_one() == "queued"
        assert session.execute(text("select count(*) from events")).scalar_one() > 3
    with pytest.raises(IntegrityError), api.database.write() as session:
        session.execute(text("update jobs set status = 'paused'"))
    migrate.upgrade(settings.database_url)
    assert api.post(job, "pause").json()["status"] == "paused"
    assert api.get(done).json() == done
    with pytest.raises(IntegrityError), api.database.write() as session:
        session.execute(text("update jobs set status = 'nonsense'"))


on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@on_postgresql
def test_one_that_was_interrupted_behind_its_first_steps_is_done_again(
    api: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = api.succeeded()
    api.services.relay.stop()
    migrate.downgrade(settings.database_url, "0007")
    for step in ("make_index", "fill_jobs", "fill_jobs", "fill_jobs"):
        done = getattr(online, step)

        def interrupted(*arguments: Any, step: str = step, done: Any = done, **options: Any) -> None:
            monkeypatch.setattr(online, step, done)  # in migrations that are loaded from now on
            raise KeyboardInterrupt

        monkeypatch.setattr(online, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            migrate.upgrade(settings.database_url)
        # Those before it are done for good; the rest goes on in batches of one job.
        monkeypatch.setattr(online, "BATCH", 1)
        with api.database.engine.connect() as connection:
            reached = migrate.revision(connection)
        assert reached is not None
        migrate.upgrade(settings.database_url, {"0007": "0008", "0009": "0010", "0011": "0012"}.get(reached, "head"))
    assert differences(api) == []
    assert api.get(job).json() == {**job, "asked_by": None}


@on_postgresql
def test_they_wait_for_a_reader_without_holding_up_others(api: Api, settings: Settings) -> None:
    api.submit()
    api.services.relay.stop()
    migrate.downgrade(settings.database_url, "0009")
    tries = []
    with api.database.engine.connect() as reader:
        reader.execute(text("select * from jobs"))  # and its transaction stays open
        thread = threading.Thread(target=migrate.upgrade, args=[settings.database_url])
        thread.start()
        waiting = text("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query ~ 'ALTER TABLE'")
        with api.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
            while tries[-4:] != [0, 1, 0, 1]:  # it has given up, and tried again
                now = watcher.execute(waiting).scalar_one()
                if not tries or tries[-1] != now:
                    tries.append(now)
                time.sleep(0.01)
        assert thread.is_alive()
    thread.join()
    assert differences(api) == []


def test_a_schema_of_a_later_version_is_ready(api: Api) -> None:
    with api.database.write() as session:
        session.execute(text("update alembic_version set version_num = '9999'"))
    ready = api.client.get("/readyz")
    assert (ready.status_code, ready.json()["schema_revision"]) == (200, "9999")
    with api.database.write() as session:
        session.execute(text("update alembic_version set version_num = '0001'"))
    eventually(lambda: api.client.get("/readyz").status_code == 503)
