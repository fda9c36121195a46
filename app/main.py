"""The API: what `espalier api` starts, see app/cli/processes.py. Puts the parts together and holds no logic."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from app import deployment, tracing
from app.account import endpoints as account
from app.account import keys as account_keys
from app.artifacts import endpoints as artifacts
from app.capabilities import endpoints as capabilities
from app.compare import endpoints as compare
from app.db import Database
from app.fleet import endpoints as workers
from app.health import endpoints as health
from app.health.look import Look
from app.health.readiness import readiness
from app.http import openapi, problems
from app.http.lifespan import PlainRefusal
from app.http.middleware import BodyLimit, RequestContext
from app.http.route import SLOTS
from app.jobs import endpoints as jobs
from app.jobs import history
from app.jobs.bodies import Bodies
from app.jobs.status_reader import StatusReader
from app.keys.usage import KeyUsage
from app.logs import configure_logging
from app.metrics import endpoints as metrics_endpoints
from app.metrics.collector import StateCollector
from app.models import endpoints as models
from app.pages import endpoints as pages
from app.publications import endpoints as publications
from app.publications.credentials import Credentials
from app.queue import Relay
from app.rates import Rates
from app.reports import endpoints as reports
from app.services import Services
from app.sessions import endpoints as sessions
from app.settings import Settings, get_settings
from app.signing import endpoints as signing
from app.signing.keys import key_ring
from app.storage import ArtifactStore
from app.sweeps import endpoints as sweeps
from app.webhooks import endpoints as webhooks

CORS: dict[str, Any] = {
    "allow_credentials": False,
    "allow_methods": ["GET", "HEAD", "POST", "PATCH", "DELETE"],
    "allow_headers": [
        *("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "If-Range"),
        *("Last-Event-ID", "Prefer", "Range", "X-Request-ID"),
    ],
    "expose_headers": [
        *("ETag", "Link", "Location", "Retry-After", "X-Request-ID", "Idempotency-Replayed", "Preference-Applied"),
        *("Content-Disposition", "Content-Range", "Repr-Digest"),
    ],
    "max_age": 600,
}
"""For pages of `cors_origins`."""
UNTRACED = ("/livez", "/readyz", "/metrics")
"""Asked by machines every few seconds."""
PATIENCE_S = 2
"""How long a request waits for the database, which a person or a program at the other end waits for too."""


def create_app(settings: Settings | None = None) -> FastAPI:
    settings = settings or get_settings()
    configure_logging(settings.log_level)
    metrics = CollectorRegistry()
    tracer = tracing.provider("api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url, pool_size=20, patience_s=PATIENCE_S)
        probed = Database(settings.database_url, pool_size=1, patience_s=PATIENCE_S)
        reader = StatusReader(database)
        has = Services(
            settings=settings,
            secret=settings.secret(),
            database=database,
            store=ArtifactStore(settings.artifacts_url),
            signing=key_ring(settings),
            credentials=Credentials(settings.credentials),
            relay=Relay(database, settings),
            bodies=Bodies(),
            reader=reader,
            key_usage=KeyUsage(database),
            rates=Rates(),
            readiness=Look(partial(readiness, probed), name="readiness", wait_s=1, recent_s=1),
            metrics=Look(partial(metrics_endpoints.exposition, metrics), name="metrics", wait_s=2 * PATIENCE_S),
            slots=asyncio.Semaphore(SLOTS),
        )
        app.state.services = has
        try:
            checking = await deployment.check_at_start(database, has.store)
        except deployment.Refused:
            probed.dispose()
            database.dispose()
            raise
        state = StateCollector(database, tenants=settings.metrics_tenants)
        metrics.register(state)
        reader.start()
        has.relay.start()
        # All that exists now lives as long as the process: a full collection that walks it is 0.1 s without an answer.
        gc.freeze()
        yield
        gc.unfreeze()
        checking.cancel()
        metrics.unregister(state)
        has.relay.stop()
        await has.key_usage.finish()
        await reader.stop()
        has.readiness.close()
        has.metrics.close()
        probed.dispose()
        database.dispose()
        if tracer is not None:
            tracer.shutdown()

    app = FastAPI(
        title="espalier",
        summary="Compression of language models as a service.",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would repeat the Host header, which is whatever the client says
        openapi_url=None,  # `pages` serves it, and a page of it without anybody else's files
        telemetry={
            "tracing": tracer is not None,
            "tracer_provider": tracer,
            "exclude": lambda scope: scope.get("path") in UNTRACED,
            "operation_spans": False,
            "auto_configure": False,
            "metrics": False,
            "logs": False,
        },
    )
    openapi.install(app)
    problems.install(app)
    if origins := [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]:
        app.add_middleware(CORSMiddleware, allow_origins=origins, **CORS)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestContext, registry=metrics)
    app.add_middleware(PlainRefusal)
    api = (
        jobs,
        history,
        artifacts,
        reports,
        compare,
        publications,
        sweeps,
        capabilities,
        models,
        workers,
        account,
        account_keys,
        sessions,
        webhooks,
    )
    # Themselves, not included: FastAPI would build each anew, for every app, at the first request that looks at it.
    app.router.routes.extend(jobs.hot_routes)
    for feature in (*api, signing, health, metrics_endpoints, pages):
        app.router.routes.extend(feature.router.routes)
    return app
