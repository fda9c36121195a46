"""A process that finishes, deletes and cleans up jobs of a tenant, with few contents of files among them, until it is
killed: `python -m tests.chaos.equal_files DATABASE_URL STORE_URL SEED`."""

from __future__ import annotations

import random
import sys
import uuid
from contextlib import suppress

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import Database
from app.errors import InvalidTransition
from app.jobs import attempts, removals, results, service
from app.jobs.models import Job
from app.storage import ArtifactStore, StorageError
from tests.helpers.equal_files import succeed, upload
from tests.helpers.job_life import SPEC, worker

TENANT = "ten_1"
CONTENTS = [bytes([number]) * 2000 for number in range(3)]
REPORTS = ("manifest.json",)


def step(database: Database, store: ArtifactStore, by: random.Random) -> None:
    kind = by.random()
    if kind < 0.5:
        finish(database, store, by)
    elif kind < 0.9:
        database.transact(lambda session: take_away(session, whole=kind < 0.75))
    with suppress(OSError, StorageError):
        removals.work_off(database, store)


def finish(database: Database, store: ArtifactStore, by: random.Random) -> None:
    database.transact(
        lambda session: service.create(
            session, tenant_id=TENANT, spec=SPEC, labels={}, priority=0, max_attempts=3, deadline_s=600, request_id=None
        )
    )
    mine = worker(uuid.uuid4().hex)
    held = database.transact(lambda session: attempts.claim(session, mine, ttl_s=2, overtaking_ms=0))
    if held is None:
        return
    files = {name: by.choice(CONTENTS) for name in ("model.safetensors", "tokenizer.json", "merges.txt")}
    uploaded = upload(store, held, files)
    with suppress(attempts.Fenced, InvalidTransition):
        database.transact(lambda session: succeed(session, held, uploaded))


def take_away(session: Session, *, whole: bool) -> None:
    """Some result: the job, or all but its report."""
    query = select(Job).where(Job.status == "succeeded").order_by(func.random()).limit(1)
    job = session.scalars(query.with_for_update(skip_locked=True)).one_or_none()
    if job is not None and whole:
        service.remove(session, job)
    elif job is not None:
        results.remove(session, job, but=REPORTS)


def main(database_url: str, store_url: str, seed: str) -> None:
    database, store, by = Database(database_url), ArtifactStore(store_url), random.Random(int(seed))
    while True:
        step(database, store, by)


if __name__ == "__main__":
    main(*sys.argv[1:])
