"""A real worker with two devices: two jobs at once, then one that takes both."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from app.jobs.models import DeviceLease, Job, WorkerRecord
from app.keys.models import Tenant
from app.queue import Publisher, relay
from tests.helpers.cluster import MAGNITUDE, SLOW, Cluster, eventually
from tests.helpers.job_life import submit
from workers.engine.spec import CompressionSpec

pytestmark = pytest.mark.xdist_group("embedded")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """The worker alone: the messages are sent by the test."""
    cluster = Cluster(tmp_path, worker_slots=2, overtaking_s=0)
    try:
        yield cluster
    finally:
        cluster.stop()


def test_two_jobs_at_once_then_one_that_takes_both(cluster: Cluster) -> None:
    with cluster.database.read() as session:
        tenant = session.scalars(select(Tenant.id)).one()

    def send(spec: dict[str, Any], devices: int) -> str:
        asked = CompressionSpec.model_validate({**spec, "compute": {"devices": devices}})
        return submit(cluster.database, tenant, spec=asked)

    def held() -> dict[str, set[str]]:
        """Job -> numbers of the slots."""
        found: dict[str, set[str]] = {}
        with cluster.database.read() as session:
            for lease in session.scalars(select(DeviceLease)):
                found.setdefault(lease.job_id, set()).add(lease.device.rpartition("/")[2])
        return found

    def jobs() -> list[Job]:
        with cluster.database.read() as session:
            return list(session.scalars(select(Job).order_by(Job.created_at)))

    one, two, large, small = send(SLOW, 1), send(SLOW, 1), send(MAGNITUDE, 2), send(MAGNITUDE, 1)
    publisher = Publisher(cluster.config)
    assert relay(cluster.database, publisher) == 4
    publisher.close()
    worker = cluster.start("worker0")
    seen: list[dict[str, set[str]]] = []

    def watch() -> bool:
        seen.append(held())
        return all(job.status == "succeeded" for job in jobs())

    try:
        eventually(watch, 120, "all succeed")
    except AssertionError as error:
        raise AssertionError(cluster.last_words()) from error
    assert {one: {"0"}, two: {"1"}} in seen
    assert {large: {"0", "1"}} in seen
    ends = {job.id: (job.started_at, job.finished_at) for job in jobs()}
    assert ends[large][0] >= max(ends[one][1], ends[two][1])  # type: ignore[type-var]
    assert ends[small][0] >= ends[large][1], "nothing overtakes a job that has waited"  # type: ignore[operator]
    assert held() == {}

    with cluster.database.read() as session:
        known = session.scalars(select(WorkerRecord)).one()
        assert (known.kind, known.devices) == ("cpu", 2)
        assert known.name.endswith(f":{worker.pid}")
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)
    with cluster.database.read() as session:
        assert session.execute(text("select count(*) from workers")).scalar_one() == 0
