"""A tenant's job in the database, moved along by hand."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from sqlalchemy import select, text

from app.db import Database, clock
from app.failure import Failure
from app.jobs import attempts, service, upkeep
from app.jobs.fleet import Worker
from app.jobs.models import Job
from app.keys.models import Tenant
from workers.engine.report import FileEntry, Report
from workers.engine.spec import CompressionSpec

SPEC = CompressionSpec.model_validate(
    {"model": {"id": "m"}, "score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}
)
REPORT = Report.model_validate(
    {
        "spec": {},
        "provenance": {
            "spec_digest": "sha256:0",
            "model_id": "m",
            "model_commit": "c",
            "data_digests": {},
            "seed": 0,
            "versions": {},
            "device": "cpu",
            "threads": 1,
            "compute_dtype": "float32",
        },
        "parameters": 1,
        "prunable_parameters": 1,
        "zeros": 0,
        "sparsity": 0,
        "layers": [],
        "metrics": [{"name": "x/y", "unit": "1", "higher_is_better": False, "dense": 2.0, "pruned": 3.0, "ratio": 1.5}],
        "stages": [],
        "runtimes": [],
        "warnings": [],
    }
)


FINAL = Failure(code="model_not_found", message="no such model", hint="name another", retryable=False)


@pytest.fixture
def tenant(database: Database) -> str:
    with database.write() as session:
        session.add(Tenant(id="ten_1", name="one", created_at=clock(session)))
    return "ten_1"


def submit(database: Database, tenant: str, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "tenant_id": tenant,
        "spec": SPEC,
        "labels": {},
        "priority": 0,
        "max_attempts": 3,
        "deadline_s": 60,
        "request_id": None,
    }
    with database.write() as session:
        return service.create(session, **{**arguments, **changes}).id


def worker(name: str = "w", kind: Literal["cpu", "gpu"] = "cpu", devices: int = 64) -> Worker:
    return Worker(f"wrk_{name}", name, kind, {f"{name}/{number}": str(number) for number in range(devices)})


MANY = worker()
"""Runs any number of jobs at once, for practical purposes."""


def claim(database: Database, ttl_s: float = 60, by: Worker = MANY, overtaking_ms: int = 0) -> attempts.Claim | None:
    with database.write() as session:
        return attempts.claim(session, by, ttl_s=ttl_s, overtaking_ms=overtaking_ms)


def claimed(database: Database, ttl_s: float = 60) -> attempts.Claim:
    held = claim(database, ttl_s)
    assert held is not None
    return held


def status(database: Database, job_id: str) -> str:
    with database.read() as session:
        return session.execute(select(Job.status).where(Job.id == job_id)).scalar_one()


def succeed(database: Database, held: attempts.Claim) -> None:
    files = [(FileEntry(path="a", bytes=1, sha256="0" * 64), f"key/{held.fence}")]
    with database.write() as session:
        attempts.succeed(session, held, report=REPORT, manifest_sha256="f" * 64, files=files)


def expire_lease(database: Database, job_id: str) -> None:
    with database.write() as session:
        session.execute(text("update jobs set lease_expires_at = 1 where id = :id"), {"id": job_id})


def reap(database: Database) -> int:
    with database.write() as session:
        return len(upkeep.reap(session, backoff_s=0))
