"""Two workers with five devices, jobs of one to three, six kill -9: no device has two jobs, and none is lost."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine, select, text

from app.jobs.models import DeviceLease, Job
from tests.helpers.cluster import MAGNITUDE, WANDA, Cluster, eventually, running
from tests.helpers.clusters import BACKENDS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
JOBS, KILLS = 14, 6


@pytest.fixture(params=BACKENDS)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    settings: dict[str, Any] = {"worker_slots": 3, "overtaking_s": 5}
    if request.param == "production":
        server: str = request.getfixturevalue("postgresql_server")
        engine = create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("drop database if exists chaos_devices with (force)"))
            connection.execute(text("create database chaos_devices"))
        engine.dispose()
        settings["database_url"] = server.replace("/postgres?", "/chaos_devices?")
        settings["broker_url"] = request.getfixturevalue("redis").url
    with running(Cluster(tmp_path, **settings)) as cluster:
        cluster.env["ESPALIER_WORKER_SLOTS"] = "2"
        cluster.start("worker1")
        yield cluster


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Sampler(threading.Thread):
    """Notes the most processes of jobs that lived at once, and leases that no running job has."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.cluster, self.stop = cluster, threading.Event()
        self.processes, self.held, self.nobodys = 0, 0, set[str]()

    def run(self) -> None:
        running = select(Job.id).where(Job.status.in_(("running", "cancelling")))
        while not self.stop.wait(0.1):
            self.processes = max(self.processes, sum(map(alive, self.cluster.runners())))
            with self.cluster.database.read() as session:
                self.held = max(self.held, len(session.scalars(select(DeviceLease.device)).all()))
                self.nobodys |= set(session.scalars(select(DeviceLease.device).where(~DeviceLease.job_id.in_(running))))


def kill(cluster: Cluster, rng: random.Random, victim: str) -> None:
    name = rng.choice(["worker0", "worker1"])
    if victim == "worker":
        cluster.kill(name)
        cluster.processes[name].wait()
        cluster.env["ESPALIER_WORKER_SLOTS"] = "3" if name == "worker0" else "2"
        cluster.start(name)
        return
    runners = cluster.runners()
    found = runners if victim == "runner" else psutil.Process(cluster.processes[name].pid).children()
    if found:
        rng.choice(found).kill()


def test_each_device_has_one_job_whoever_dies(cluster: Cluster) -> None:
    rng = random.Random(3)
    sampler = Sampler(cluster)
    sampler.start()
    jobs = [
        cluster.submit({**(WANDA if n % 2 else MAGNITUDE), "compute": {"devices": 1 + n % 3}}, max_attempts=10)
        for n in range(JOBS)
    ]
    for victim in ["supervisor", "runner", "worker"] * (KILLS // 3):
        time.sleep(rng.uniform(2, 5))
        kill(cluster, rng, victim)
    for job_id in jobs:
        assert cluster.wait(job_id, 900)["status"] == "succeeded"
    sampler.stop.set()
    sampler.join()
    assert sampler.nobodys == set()
    assert 2 <= sampler.processes <= 5
    with cluster.database.read() as session:
        assert session.scalars(select(DeviceLease)).all() == []
    eventually(lambda: not cluster.runners(), 30, "no runner is left")
