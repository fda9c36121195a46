"""The SELECTs of comparisons, scoped to a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import table
from app.jobs.models import Artifact, Job, ReportRecord
from app.jobs.views import COLUMNS, JobView


def jobs(session: Session, tenant_id: str, job_ids: Sequence[str]) -> dict[str, JobView]:
    """Those of them that the tenant has."""
    job = table(Job).c
    rows = session.execute(select(*COLUMNS).where(job.tenant_id == tenant_id, job.id.in_(job_ids)))
    return {view.id: view for view in map(JobView._make, rows)}


def reports(session: Session, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of jobs that are known to be the tenant's."""
    rows = session.execute(select(ReportRecord.job_id, ReportRecord.body).where(ReportRecord.job_id.in_(job_ids)))
    return {row.job_id: row.body for row in rows}


def weight_bytes(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """Likewise; what the safetensors files of each take together."""
    rows = session.execute(
        select(Artifact.job_id, func.sum(Artifact.bytes).label("bytes"))
        .where(Artifact.job_id.in_(job_ids), Artifact.path.like("%.safetensors"))
        .group_by(Artifact.job_id)
    )
    return {row.job_id: int(row.bytes) for row in rows}
