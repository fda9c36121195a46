"""Sixty jobs, two workers, twenty kill -9, two broker restarts: every job succeeds once, and nothing is left over.

`make chaos` runs it; it takes minutes. The seed is fixed, the moments are not: processes keep their own time.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from sqlalchemy import select, text

from app.jobs.models import Artifact, Attempt, Event, Job
from app.storage import ArtifactStore
from tests.helpers.cluster import MAGNITUDE, Cluster, Redis, eventually

JOBS, KILLS, RESTARTS = 60, 20, 2
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


class Submitter(threading.Thread):
    """Submits the jobs one by one while the API dies and comes back; a key makes each submission safe to repeat."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.cluster, self.ids = cluster, list[str]()

    def run(self) -> None:
        for n in range(JOBS):
            spec = {**MAGNITUDE, "prune": {"method": "mask", "sparsity": 0.1 + n / 100}}
            body = {"spec": spec, "max_attempts": 10}
            while True:
                try:
                    response = self.cluster.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": f"chaos-{n}"})
                except httpx2.HTTPError:
                    time.sleep(0.2)
                    continue
                assert response.status_code == 202, response.text
                self.ids.append(response.json()["id"])
                break
            time.sleep(0.3)


def _restart(cluster: Cluster, name: str) -> None:
    cluster.processes[name].wait()
    cluster.start(name)


def _kill_runner(cluster: Cluster, rng: random.Random) -> bool:
    runners = cluster.runners()
    if runners:
        rng.choice(runners).kill()
    return bool(runners)


def _kill_supervisor(cluster: Cluster, rng: random.Random) -> bool:
    """The pool's child, which supervises; its runner must go with it."""
    name = rng.choice(["worker0", "worker1"])
    children = [p for p in cluster.descendants(name) if p not in cluster.runners()]
    if children:
        rng.choice(children).kill()
    return bool(children)


def _kill_role(*names: str) -> Callable[[Cluster, random.Random], bool]:
    def kill(cluster: Cluster, rng: random.Random) -> bool:
        name = rng.choice(names)
        cluster.kill(name)
        _restart(cluster, name)
        return True

    return kill


VICTIMS: dict[str, Callable[[Cluster, random.Random], bool]] = {
    "runner": _kill_runner,
    "supervisor": _kill_supervisor,
    "worker": _kill_role("worker0", "worker1"),
    "reconciler": _kill_role("reconciler"),
    "api": _kill_role("api"),
}


def test_nothing_lost_nothing_doubled(
    cluster: Cluster, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    backend: str = request.node.callspec.params["cluster"]
    rng, kills, restarts, began = random.Random(7), Counter[str](), 0, time.monotonic()
    cluster.start("worker1")
    submitter = Submitter(cluster)
    submitter.start()

    victims = sorted(VICTIMS) * (KILLS // len(VICTIMS))
    rng.shuffle(victims)
    for victim in victims:
        time.sleep(rng.uniform(0.5, 5))
        eventually(lambda victim=victim: VICTIMS[victim](cluster, rng), 60, f"there is a {victim} to kill")
        kills[victim] += 1
        if restarts < RESTARTS and sum(kills.values()) >= KILLS * (restarts + 1) // (RESTARTS + 1):
            _lose_the_broker(cluster, request, backend)
            restarts += 1
    submitter.join(timeout=600)
    assert len(set(submitter.ids)) == JOBS
    eventually(lambda: not _active(cluster), 1800, "every job ends")
    elapsed_s = time.monotonic() - began

    with cluster.database.read() as session:
        jobs = session.scalars(select(Job)).all()
        assert len(jobs) == JOBS
        assert {job.id: (job.status, job.error) for job in jobs if job.status != "succeeded"} == {}
        endings = Counter(session.scalars(select(Event.job_id).where(Event.type == "succeeded")))
        assert endings == Counter(submitter.ids)
        outcomes = Counter(session.scalars(select(Attempt.outcome)))
        assert outcomes["succeeded"] == JOBS
    for job_id in submitter.ids:
        _verify(cluster, job_id)

    eventually(lambda: not cluster.runners(), 10, "no runner is left")
    eventually(lambda: not _scratch(cluster), 90, "no scratch is left")
    for name in list(cluster.processes):
        family = cluster.descendants(name)
        cluster.processes[name].terminate()
        cluster.processes[name].wait(timeout=30)
        assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    with capsys.disabled():
        summary = {
            "backend": backend,
            "jobs": JOBS,
            "succeeded": outcomes["succeeded"],
            "attempts": dict(outcomes),
            "kills": dict(kills),
            "broker_restarts": restarts,
            "elapsed_s": round(elapsed_s),
        }
        print("\n" + json.dumps(summary))  # noqa: T201 - the figures that docs/operations.md quotes


def _lose_the_broker(cluster: Cluster, request: pytest.FixtureRequest, backend: str) -> None:
    """Everything in the broker is gone, as after a crash without persistence."""
    if backend == "embedded":
        messages = Path(cluster.home / "broker" / "messages")
        shutil.rmtree(messages)
        messages.mkdir()
    else:
        redis: Redis = request.getfixturevalue("redis")
        redis.kill()
        time.sleep(2)
        redis.start()


def _active(cluster: Cluster) -> int:
    with cluster.database.read() as session:
        query = "select count(*) from jobs where status in ('queued', 'running', 'cancelling')"
        return int(session.execute(text(query)).scalar_one())


def _scratch(cluster: Cluster) -> list[Any]:
    return [p for p in (cluster.home / "work").iterdir() if p.is_dir()]


def _verify(cluster: Cluster, job_id: str) -> None:
    """One manifest, its digests right, and no file of any other attempt."""
    store = ArtifactStore(cluster.config.artifacts_url)
    with cluster.database.read() as session:
        job = session.get_one(Job, job_id)
        files = {a.path: a for a in session.scalars(select(Artifact).where(Artifact.job_id == job_id))}
    content = {path: store.read(a.key) for path, a in files.items()}
    assert hashlib.sha256(content["manifest.json"]).hexdigest() == job.manifest_sha256
    for entry in json.loads(content["manifest.json"])["files"]:
        assert hashlib.sha256(content[entry["path"]]).hexdigest() == entry["sha256"]
    folders = {p.parent for p in (cluster.home / "artifacts" / job.tenant_id / job_id).glob("*/files")}
    assert len(folders) == 1
