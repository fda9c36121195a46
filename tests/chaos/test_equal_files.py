"""Processes that finish and delete jobs with equal files are killed at any moment: no file is lost or left."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from app.db import Database, clock
from app.jobs import removals, upkeep
from app.jobs.models import FileRemoval, Job
from app.keys.models import Tenant
from app.storage import ArtifactStore
from tests.chaos.equal_files import TENANT
from tests.helpers.cluster import ROOT
from tests.helpers.equal_files import check, store

__all__ = ["store"]
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
PROCESSES, KILLS, LIFE_S = 3, 12, 3.0


def test_none_is_lost_or_left(database: Database, database_url: str, store: ArtifactStore, tmp_path: Path) -> None:
    with database.write() as session:
        session.add(Tenant(id=TENANT, name="one", created_at=clock(session)))
    by = random.Random(7)

    def start(seed: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.chaos.equal_files", database_url, store.url, str(seed)]
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    running = [start(seed) for seed in range(PROCESSES)]
    try:
        for number in range(KILLS):
            time.sleep(by.uniform(0.5, LIFE_S))
            victim = by.randrange(PROCESSES)
            assert running[victim].poll() is None, (tmp_path / "log").read_text()[-3000:]
            running[victim].kill()
            running[victim].wait()
            running[victim] = start(PROCESSES + number)
    finally:
        for process in running:
            process.kill()
            process.wait()
    with database.write() as session:
        session.execute(update(Job).where(Job.lease_expires_at.is_not(None)).values(lease_expires_at=1))
    while database.transact(lambda session: upkeep.reap(session, backoff_s=0)):
        pass
    removals.work_off(database, store)
    with database.read() as session:
        done = session.execute(select(func.count()).where(Job.status == "succeeded")).scalar_one()
        removed = session.execute(select(func.count()).select_from(FileRemoval)).scalar_one()
    print(f"{done} results left, {removed} removals, {KILLS} kills")  # noqa: T201
    assert done
    assert removed
    check(database, store)
