"""GET /metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from app.errors import NotReady
from app.http.problems import described
from app.http.route import StrictRoute
from app.services import ServicesDep

router = APIRouter(tags=["health"], route_class=StrictRoute)


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={**described(500, 503), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(has: ServicesDep) -> Response:
    """Jobs by status, durations, waits, failures, workers and request times.

    Tenants are named only where `ESPALIER_METRICS_TENANTS` says so.
    """
    page = await has.metrics()
    if page is None:
        raise NotReady("The database cannot be reached.", code="database_unreachable", headers={"Retry-After": "5"})
    return Response(page, media_type=CONTENT_TYPE_LATEST)


def exposition(metrics: CollectorRegistry) -> bytes | None:
    """All metrics as Prometheus reads them; None if the database does not answer."""
    try:
        return generate_latest(metrics)
    except SQLAlchemyError:
        return None
