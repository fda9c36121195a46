"""Three tenants and two real workers: a flood of one tenant's jobs at top priority holds up nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from sqlalchemy import func, select

from app.jobs.models import Event, Job
from app.keys import service as keys
from app.keys.scopes import SCOPES
from tests.helpers.cluster import MAGNITUDE, Cluster, eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
FLOOD = 500


@contextmanager
def client(cluster: Cluster, tenant: str) -> Iterator[httpx2.Client]:
    with cluster.database.write() as session:
        _, key = keys.create_key(
            session, secret=cluster.config.secret(), tenant=tenant, name=tenant, scopes=SCOPES, expires_days=None
        )
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=cluster.http.base_url, headers=headers, timeout=60) as http:
        yield http


def test_a_flood_holds_up_nobody_else(cluster: Cluster) -> None:
    cluster.start("worker1")
    with client(cluster, "flood") as flood, client(cluster, "b") as b, client(cluster, "c") as c:
        flooded(cluster, flood, [b, c])


def flooded(cluster: Cluster, flood: httpx2.Client, others: list[httpx2.Client]) -> None:
    sweeps = []
    for count in (250, FLOOD - 250):
        body = {"spec": MAGNITUDE, "grid": {"/seed": list(range(count))}, "priority": 100}
        sweeps.append(flood.post("/v1/sweeps", json=body).json()["id"])

    def running() -> int:
        with cluster.database.read() as session:
            return session.execute(select(func.count()).where(Job.status == "running")).scalar_one()

    eventually(lambda: running() == 2, 60, "both workers are at the flood")
    first = [each.post("/v1/jobs", json={"spec": MAGNITUDE, "priority": -100}).json()["id"] for each in others]
    for job_id, each in zip(first, others, strict=True):
        job = eventually(
            lambda job_id=job_id, each=each: (
                found if (found := each.get(f"/v1/jobs/{job_id}").json())["status"] == "succeeded" else None
            ),
            120,
            "the others' jobs end",
        )
        assert job["attempt"] == 1
    with cluster.database.read() as session:
        for job_id in first:
            mine = session.get_one(Job, job_id)
            between = select(func.count()).where(
                Event.type == "running", Event.job_id.not_in(first), Event.at > mine.created_at,
                Event.at < mine.started_at,
            )  # fmt: skip
            # Two lengths of a job on two workers are four starts; of these one is the other tenant's.
            assert session.execute(between).scalar_one() <= 3
    for sweep_id in sweeps:
        flood.post(f"/v1/sweeps/{sweep_id}/cancel")
    eventually(lambda: running() == 0, 60, "nothing runs")
