"""Peers that the API is measured against in the same run: a bare FastAPI endpoint, and a minimal job service."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from app.jobs.models import Job


def create_app() -> FastAPI:
    app = FastAPI()
    engine = create_engine(os.environ["ESPALIER_DATABASE_URL"], pool_size=16)

    @app.get("/bare")
    async def bare() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/naive/{job_id}")
    def naive(job_id: str) -> dict[str, Any]:
        """No authentication, no ETag, a few of the columns: less work than the API does."""
        with Session(engine) as session:
            job = session.get_one(Job, job_id)
            return {"id": job.id, "status": job.status, "spec": job.spec, "progress": job.progress}

    return app
