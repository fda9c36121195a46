"""Probes of the orchestrator: is the process alive, may it get requests?"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from app.errors import NotReady
from app.http.problems import responses
from app.http.route import StrictRoute
from app.jobs import repository
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


@router.get("/livez", operation_id="health_live")
async def livez() -> Live:
    """Answers as long as the process does; asks nobody."""
    return Live(status="ok")


@router.get("/readyz", operation_id="health_ready", responses=responses())
def readyz(has: ServicesDep) -> Ready:
    """Whether the database answers and has the schema this version needs."""
    from app import migrate  # alembic takes as long to import as the web framework

    try:
        current = migrate.current(has.database)
        if current == migrate.head():
            with has.database.read() as session:
                late_s = repository.outbox_oldest_s(session)
    except SQLAlchemyError as error:
        raise NotReady("The database cannot be reached.", code="database_unreachable") from error
    if current != migrate.head():
        raise NotReady(
            f"The database is at revision {current}, this version needs {migrate.head()}: run `espalier db upgrade`.",
            code="schema_mismatch",
        )
    return Ready(status="ok", schema_revision=current, broker="ok" if late_s < BROKER_LATE_S else "unreachable")
