"""Equal files of a tenant's jobs are stored once, and none is lost or left, whoever deletes what meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import Database, clock
from app.jobs import removals, service
from app.jobs.models import Job
from app.keys.models import Tenant
from app.storage import ArtifactStore
from tests.helpers.equal_files import check, keys, store, succeed, upload
from tests.helpers.job_life import claimed, submit

__all__ = ["store"]
WEIGHTS, TOKENIZER = b"w" * 1000, b"t" * 100
FILES = {"model.safetensors": WEIGHTS, "tokenizer.json": TOKENIZER}


def done(database: Database, store: ArtifactStore, tenant: str, files: Mapping[str, bytes] = FILES) -> str:
    """A job that has left these files."""
    job_id = submit(database, tenant)
    held = claimed(database)
    uploaded = upload(store, held, files)
    database.transact(lambda session: succeed(session, held, uploaded))
    removals.work_off(database, store)
    return job_id


def delete(session: Session, job_id: str) -> None:
    service.remove(session, session.get_one(Job, job_id, with_for_update=True))


def remove(database: Database, store: ArtifactStore, job_id: str) -> None:
    database.transact(lambda session: delete(session, job_id))
    removals.work_off(database, store)


def test_they_go_with_the_last_job_that_has_them(database: Database, tenant: str, store: ArtifactStore) -> None:
    first, second, third = (done(database, store, tenant) for _ in range(3))
    other = done(database, store, tenant, {**FILES, "model.safetensors": b"other"})
    check(database, store)
    assert len(keys(store)) == 4 + 2 + 1  # manifests, weights, the tokenizer
    for job_id in (first, third):
        remove(database, store, job_id)
        check(database, store)
        assert len(keys(store)) == len({first, second, third, other}) + (2 if job_id == first else 1)
    remove(database, store, second)
    check(database, store)
    remove(database, store, other)
    check(database, store)
    assert keys(store) == []


def test_of_two_tenants_are_two(database: Database, tenant: str, tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}/store")
    with database.write() as session:
        session.add(Tenant(id="ten_2", name="two", created_at=clock(session)))
    for each in (tenant, "ten_2"):
        done(database, store, each)
    check(database, store)
    assert sum("model.safetensors" in key for key in keys(store)) == 2
    with database.read() as session:
        assert len(set(session.scalars(select(Tenant.stored_bytes)))) == 1


def test_one_that_is_damaged_is_shared_no_more(database: Database, tenant: str, tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}/store")
    done(database, store, tenant)
    [key] = [key for key in keys(store) if "model.safetensors" in key]
    for _ in range(2):
        submit(database, tenant)
        held = claimed(database)
        uploaded = upload(store, held, FILES)
        with database.write() as session:
            succeed(session, held, uploaded, damaged=[key])
        removals.work_off(database, store)
    assert sum("model.safetensors" in key for key in keys(store)) == 2
    check(database, store)


def at_once(database: Database, first: Callable[[Session], None], second: Callable[[Session], None]) -> None:
    """`second` begins when `first` has done all but commit."""
    errors: list[BaseException] = []

    def other() -> None:
        try:
            database.transact(second)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    with database.write() as session:
        first(session)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "it did not wait for the tenant"
    thread.join(30)
    assert errors == []


@pytest.mark.parametrize("order", ["finish first", "delete first"])
def test_a_job_that_finishes_while_the_other_is_deleted(
    database: Database, tenant: str, tmp_path: Path, order: str
) -> None:
    store = ArtifactStore(f"file://{tmp_path}/store")
    old = done(database, store, tenant)
    submit(database, tenant)
    held = claimed(database)
    uploaded = upload(store, held, FILES)
    steps = [lambda session: succeed(session, held, uploaded), lambda session: delete(session, old)]
    at_once(database, *(steps if order == "finish first" else reversed(steps)))
    removals.work_off(database, store)
    check(database, store)
    assert len(keys(store)) == 3


def test_two_that_finish_at_once_while_the_third_is_deleted(database: Database, tenant: str, tmp_path: Path) -> None:
    store = ArtifactStore(f"file://{tmp_path}/store")
    old = done(database, store, tenant)
    for _ in range(2):
        submit(database, tenant)
    one, two = claimed(database), claimed(database)
    uploaded = [upload(store, held, FILES) for held in (one, two)]
    at_once(database, lambda session: delete(session, old), lambda session: succeed(session, one, uploaded[0]))
    at_once(database, lambda session: succeed(session, two, uploaded[1]), lambda session: delete(session, one.job_id))
    removals.work_off(database, store)
    check(database, store)
    assert len(keys(store)) == 3


def test_a_removal_that_was_cut_off_is_finished(database: Database, tenant: str, tmp_path: Path) -> None:
    """After the commit, before any file was deleted, or after the first."""
    store = ArtifactStore(f"file://{tmp_path}/store")
    first, second = (done(database, store, tenant) for _ in range(2))
    for job_id in (first, second):
        database.transact(lambda session, job_id=job_id: delete(session, job_id))
    store.delete(keys(store)[:1])
    removals.work_off(database, store)
    check(database, store)
    assert keys(store) == []
