"""The migrations make what the models say, and can be taken back, with rows in the tables, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app import migrate
from app.db import Base
from app.settings import Settings
from tests.helpers.api import GATED, Api


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
