"""GET /v1/me: who is asking, as the service sees it."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Depends
from starlette.responses import Response

from app.access import Principal, Requires
from app.account.schemas import Me
from app.http.conditional import PRIVATE
from app.http.problems import responses
from app.http.route import StrictRoute
from app.jobs.views import iso
from app.keys import repository
from app.services import ServicesDep

router = APIRouter(prefix="/v1/me", tags=["account"], route_class=StrictRoute)


@router.get("", operation_id="me_get", response_model=Me, responses=responses())
def get(principal: Annotated[Principal, Depends(Requires(None))], has: ServicesDep) -> Response:
    """The tenant and the key of the request, what the key may do, and what the service allows."""
    with has.database.read() as session:
        key = repository.key(session, principal.key_id)
        assert key is not None  # keys are revoked, never deleted
        tenant = repository.tenant_name(session, principal.tenant_id)
        found = {
            "tenant": {"id": principal.tenant_id, "name": tenant},
            "key": {
                "id": key.id,
                "name": key.name,
                "scopes": key.scopes,
                "created_at": iso(key.created_at),
                "expires_at": iso(key.expires_at),
            },
            "limits": {name: getattr(has.settings, name) for name in ("max_body_bytes", "max_attempts", "deadline_s")},
        }
    return Response(orjson.dumps(found), headers=PRIVATE, media_type="application/json")
