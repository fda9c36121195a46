"""Probes of the orchestrator: whether the process runs, and whether it may get requests."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.errors import NotReady
from app.http.problems import described
from app.http.route import StrictRoute
from app.services import ServicesDep

router = APIRouter(tags=["health"], route_class=StrictRoute)

BROKER_LATE_S = 10
"""The relay tries every second: a message due this long cannot be delivered."""


class Live(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    status: Literal["ok"]
    schema_revision: str
    broker: Literal["ok", "unreachable"] = Field(
        description="`unreachable`: messages to workers are piling up. Jobs are still accepted; none is lost."
    )


@router.get("/livez", operation_id="health_live", responses=described(500))
async def livez() -> Live:
    """Answers as long as the process runs, without asking the database."""
    return Live(status="ok")


@router.get("/readyz", operation_id="health_ready", responses=described(500, 503))
async def readyz(has: ServicesDep) -> Ready:
    """Whether the database answers and has the schema this version needs, or a later one, as of the last second."""
    found = await has.readiness()
    if found is None:
        raise NotReady("The database cannot be reached.", code="database_unreachable")
    if found.revision is None or not found.fits:
        raise NotReady(
            f"The database is at revision {found.revision}, this version needs {found.needed}: "
            "run `espalier db upgrade`.",
            code="schema_mismatch",
        )
    broker: Literal["ok", "unreachable"] = "ok" if found.broker_late_s < BROKER_LATE_S else "unreachable"
    return Ready(status="ok", schema_revision=found.revision, broker=broker)
