"""GET /metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from app.http.route import StrictRoute
from app.services import ServicesDep

router = APIRouter(tags=["health"], route_class=StrictRoute)


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(has: ServicesDep) -> Response:
    """Jobs by status, backlog, failures, and request times. Names no tenant."""
    return Response(generate_latest(has.metrics), media_type=CONTENT_TYPE_LATEST)
