"""A deployment that is being upgraded: one real worker without a method, and one that has it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.helpers.cluster import MAGNITUDE, WANDA, Cluster, eventually

WITHOUT_MAGNITUDE = """
import runpy, sys
from workers.engine import registry
del registry.discover()["score", "magnitude"]
sys.argv = sys.argv[3:]
runpy.run_module("celery", run_name="__main__", alter_sys=True)
"""
"""Runs what comes behind it, `python -m celery …`."""


def test_jobs_go_to_the_worker_that_has_their_method(tmp_path: Path) -> None:
    """No message is sent twice by the reconciler meanwhile: those that the old worker takes it passes on."""
    cluster = Cluster(tmp_path / "home", redispatch_s=600)
    try:
        for name in ("api", "reconciler"):
            cluster.start(name)
        old = cluster.start("worker1", within=[sys.executable, "-c", WITHOUT_MAGNITUDE])
        eventually(cluster.ready, 30, "the API is ready")
        eventually(lambda: cluster.http.get("/v1/workers").json()["data"], 30, "the old worker is known")
        first = cluster.submit(MAGNITUDE)
        assert cluster.job(first)["queue"]["waiting_for"] == "no live worker has the method magnitude"
        plan = cluster.http.post("/v1/jobs?dry_run=true", json={"spec": MAGNITUDE}).json()
        assert plan["warnings"][-1] == "the job would wait: no live worker has the method magnitude"
        new = cluster.start("worker2")
        eventually(lambda: len(cluster.http.get("/v1/workers").json()["data"]) == 2, 30, "the new one is known")
        known = cluster.submit(WANDA)
        jobs = [first, known, *(cluster.submit(MAGNITUDE) for _ in range(2))]
        for job_id in jobs:
            assert cluster.wait(job_id)["status"] == "succeeded"
        for job_id in jobs:
            [attempt] = cluster.http.get(f"/v1/jobs/{job_id}/attempts").json()["data"]
            of_new = attempt["worker"].endswith(f":{new.pid}")
            assert of_new or (job_id == known and attempt["worker"].endswith(f":{old.pid}")), attempt
    finally:
        cluster.stop()
