"""GET /v1/capabilities: what this service can do to a model."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Header
from starlette.responses import Response

from app.access import Principal, Requires
from app.capabilities.of_service import Capabilities, of_service
from app.http.conditional import PRIVATE, matches
from app.http.problems import responses
from app.http.route import StrictRoute

router = APIRouter(prefix="/v1/capabilities", tags=["capabilities"], route_class=StrictRoute)


@router.get(
    "",
    operation_id="capabilities_get",
    response_model=Capabilities,
    responses={**responses(), 304: {"description": "Nothing has changed."}},
)
def get(
    principal: Annotated[Principal, Depends(Requires(None))],
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The stages of a spec, the methods of each, and their parameters."""
    body, etag = rendered()
    headers = {**PRIVATE, "ETag": etag}
    if matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@cache
def rendered() -> tuple[bytes, str]:
    """(body, ETag); the registry does not change while a process lives."""
    body = orjson.dumps(of_service().model_dump())
    return body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
