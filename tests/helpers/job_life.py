"""A tenant's job in the database, moved along by hand."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from app.db import Database, clock
from app.jobs import attempts, service
from app.jobs.models import Job
from app.keys.models import Tenant
from workers.engine.report import Report
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


def claim(database: Database, ttl_s: float = 60, queues: tuple[str, ...] = ("any",)) -> attempts.Claim | None:
    with database.write() as session:
        return attempts.claim(session, worker="w", queues=queues, ttl_s=ttl_s)


def claimed(database: Database, ttl_s: float = 60) -> attempts.Claim:
    held = claim(database, ttl_s)
    assert held is not None
    return held


def status(database: Database, job_id: str) -> str:
    with database.read() as session:
        return session.execute(select(Job.status).where(Job.id == job_id)).scalar_one()
