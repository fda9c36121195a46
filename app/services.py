"""Objects of a running API, made once by the lifespan and passed to every endpoint."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.db import Database
from app.health.look import Look
from app.health.readiness import Readiness
from app.jobs.bodies import Bodies
from app.jobs.status_reader import StatusReader
from app.keys.usage import KeyUsage
from app.publications.credentials import Credentials
from app.queue import Relay
from app.rates import Rates
from app.settings import Settings
from app.signing.keys import KeyRing
from app.storage import ArtifactStore


@dataclass(frozen=True)
class Services:
    settings: Settings
    secret: bytes
    """Signs cursors, hashes API keys."""
    database: Database
    store: ArtifactStore
    signing: KeyRing
    credentials: Credentials
    relay: Relay
    bodies: Bodies
    reader: StatusReader
    key_usage: KeyUsage
    rates: Rates
    readiness: Look[Readiness | None]
    metrics: Look[bytes | None]
    slots: asyncio.Semaphore
    """One for each request that works on threads; see app/http/route.py."""


def services(connection: HTTPConnection) -> Services:
    found: Services = connection.app.state.services
    return found


async def _services(connection: HTTPConnection) -> Services:
    return services(connection)  # async, or FastAPI would run it on a thread


ServicesDep = Annotated[Services, Depends(_services)]
