"""Who is asking, as the service sees it; and for operators all tenants, their shares and quotas."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.access import Principal, Requires
from app.account import tenants
from app.account.schemas import Me, TenantDetail, TenantList, TenantPatch
from app.errors import NotFound
from app.http.private import private_json
from app.http.problems import responses
from app.http.route import StrictRoute
from app.ids import is_id
from app.jobs.views import iso
from app.keys import repository
from app.keys.models import Tenant
from app.services import ServicesDep

router = APIRouter(prefix="/v1", tags=["account"], route_class=StrictRoute)

Admin = Annotated[Principal, Depends(Requires("admin"))]
LIMITS = ("max_body_bytes", "max_attempts", "deadline_s", "keep_days")
TenantId = Annotated[str, Path(examples=["ten_01a201bb6ce13078a5210ce45142be09"])]


@router.get("/me", operation_id="me_get", response_model=Me, responses=responses())
def get_me(principal: Annotated[Principal, Depends(Requires(None))], has: ServicesDep) -> Response:
    """The tenant and the key of the request, what the key may do, and what the service allows and counts."""
    with has.database.read() as session:
        key = repository.key(session, principal.key_id)
        assert key is not None  # keys are revoked, never deleted
        tenant = session.get_one(Tenant, principal.tenant_id)
        found = {
            "tenant": {"id": tenant.id, "name": tenant.name},
            "key": {
                "id": key.id,
                "name": key.name,
                "scopes": key.scopes,
                "created_at": iso(key.created_at),
                "expires_at": iso(key.expires_at),
            },
            "limits": {name: getattr(has.settings, name) for name in LIMITS},
            "quotas": tenants.quotas_of(tenant),
            "retention": tenants.retention_of(tenant),
            "usage": tenants.usage_of(session, tenant),
        }
    return private_json(found)


@router.get("/tenants", operation_id="tenants_list", response_model=TenantList, responses=responses())
def list_tenants(principal: Admin, has: ServicesDep) -> Response:
    """All tenants, by name, with their weights, quotas and usage."""
    with has.database.read() as session:
        return private_json({"data": [tenants.detail(session, tenant) for tenant in tenants.every(session)]})


@router.get("/tenants/{tenant_id}", operation_id="tenants_get", response_model=TenantDetail, responses=responses(404))
def get_tenant(tenant_id: TenantId, principal: Admin, has: ServicesDep) -> Response:
    """A tenant with its weight, quotas and usage."""
    with has.database.read() as session:
        tenant = session.get(Tenant, tenant_id) if is_id("ten", tenant_id) else None
        if tenant is None:
            raise _no_such_tenant()
        return private_json(tenants.detail(session, tenant))


@router.patch(
    "/tenants/{tenant_id}",
    operation_id="tenants_update",
    response_model=TenantDetail,
    responses=responses(400, 404, 413, 415, 422),
)
def update_tenant(tenant_id: TenantId, patch: TenantPatch, principal: Admin, has: ServicesDep) -> Response:
    """Set a tenant's weight, quotas and retention. They count from the next request and the next claim on."""

    def change(session: Session) -> dict[str, Any]:
        tenant = tenants.locked(session, tenant_id) if is_id("ten", tenant_id) else None
        if tenant is None:
            raise _no_such_tenant()
        tenants.change(
            session,
            tenant,
            weight=patch.weight,
            quotas=patch.quotas.model_dump(include=patch.quotas.model_fields_set),
            retention=patch.retention,
        )
        return tenants.detail(session, tenant)

    return private_json(has.database.transact(change))


def _no_such_tenant() -> NotFound:
    return NotFound("There is no such tenant: the list has those that there are.")
