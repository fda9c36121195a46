"""API keys over HTTP, for operators: list, make, revoke. The command line does the same beside the database."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.access import Principal, Requires
from app.account.schemas import KeyDetail, KeyList, KeySubmit, KeyWithText
from app.errors import NotFound
from app.http.private import private_json
from app.http.problems import responses
from app.http.route import StrictRoute
from app.jobs.views import iso
from app.keys import repository, service
from app.keys.models import ApiKey
from app.services import ServicesDep

router = APIRouter(prefix="/v1/keys", tags=["account"], route_class=StrictRoute)

Admin = Annotated[Principal, Depends(Requires("admin"))]
KeyId = Annotated[str, Path(examples=["key_01a201bb6ce13078a5210ce45142be09"])]


@router.get("", operation_id="keys_list", response_model=KeyList, responses=responses())
def list_keys(principal: Admin, has: ServicesDep) -> Response:
    """The keys of all tenants, oldest first, revoked ones included; never their texts."""
    with has.database.read() as session:
        return private_json({"data": [_detail(key, tenant) for key, tenant in service.list_keys(session)]})


@router.post(
    "",
    operation_id="keys_create",
    status_code=201,
    response_model=KeyWithText,
    responses=responses(400, 413, 415, 422),
)
def create(submit: KeySubmit, principal: Admin, has: ServicesDep) -> Response:
    """Make a key. Its text is in this answer and nowhere else: whoever loses it makes another."""

    def make(session: Session) -> dict[str, Any]:
        key, text = service.create_key(
            session,
            secret=has.secret,
            tenant=submit.tenant,
            name=submit.name,
            scopes=submit.scopes,
            expires_days=submit.expires_days,
        )
        return {**_detail(key, submit.tenant), "text": text}

    return Response(
        orjson.dumps(has.database.transact(make)), 201, {"Cache-Control": "no-store"}, media_type="application/json"
    )


@router.post("/{key_id}/revoke", operation_id="keys_revoke", response_model=KeyDetail, responses=responses(404))
def revoke(key_id: KeyId, principal: Admin, has: ServicesDep) -> Response:
    """Refuse a key, and every session that stands for it, from the next request on. Idempotent."""

    def change(session: Session) -> dict[str, Any]:
        if repository.key(session, key_id) is None:
            raise NotFound("There is no such key: the list has those that there are.")
        key = service.revoke_key(session, key_id)
        return _detail(key, repository.tenant_name(session, key.tenant_id))

    return private_json(has.database.transact(change))


def _detail(key: ApiKey, tenant: str) -> dict[str, Any]:
    """The key as schemas.KeyDetail has it."""
    return {
        "id": key.id,
        "name": key.name,
        "scopes": key.scopes,
        "created_at": iso(key.created_at),
        "expires_at": iso(key.expires_at),
        "tenant": {"id": key.tenant_id, "name": tenant},
        "revoked_at": iso(key.revoked_at),
        "last_used_at": iso(key.last_used_at),
    }
