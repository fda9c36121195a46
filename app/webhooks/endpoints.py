"""Webhooks over HTTP: make, change, rotate, try out, and look at what was sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from app.access import Principal, Requires
from app.http.pagination import decode_cursor, encode_cursor, next_link
from app.http.private import private_json
from app.http.problems import responses
from app.http.queries import WholeNumber
from app.http.route import StrictRoute
from app.jobs.parameters import Cursor, Limit
from app.jobs.views import iso
from app.services import Services, ServicesDep
from app.webhooks import service
from app.webhooks.addresses import networks
from app.webhooks.models import Delivery, Webhook
from app.webhooks.schemas import (
    WEBHOOK_ID,
    DeliveryPage,
    DeliveryRead,
    RotateRequest,
    WebhookList,
    WebhookPatch,
    WebhookRead,
    WebhookSubmit,
    WebhookWithSecret,
)
from app.webhooks.secrets import secret_of

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=StrictRoute)

Owner = Annotated[Principal, Depends(Requires("webhooks"))]
WebhookId = Annotated[str, Path(max_length=100, examples=[WEBHOOK_ID])]
DeliveryId = Annotated[WholeNumber, Path(ge=0, le=2**53, examples=[7])]


@router.post(
    "",
    operation_id="webhooks_create",
    status_code=201,
    response_model=WebhookWithSecret,
    responses=responses(400, 413, 415, 422),
)
def create(submit: WebhookSubmit, principal: Owner, has: ServicesDep) -> Response:
    """Make a webhook. It is told of what happens from then on."""
    service.check_url(submit.url, networks(has.settings.webhook_allow))

    def make(session: Session) -> dict[str, Any]:
        made = service.create(
            session,
            tenant_id=principal.tenant_id,
            url=submit.url,
            events=list(dict.fromkeys(submit.events)),
            labels=submit.labels,
        )
        return _with_secret(made, has)

    made = has.database.transact(make)
    return private_json(made, 201, {"Location": f"{router.prefix}/{made['id']}"})


@router.get("", operation_id="webhooks_list", response_model=WebhookList, responses=responses())
def list_webhooks(principal: Owner, has: ServicesDep) -> Response:
    """The tenant's webhooks, oldest first."""
    with has.database.read() as session:
        return private_json({"data": [_webhook(each) for each in service.every(session, principal.tenant_id)]})


@router.get("/{webhook_id}", operation_id="webhooks_get", response_model=WebhookWithSecret, responses=responses(404))
def get(webhook_id: WebhookId, principal: Owner, has: ServicesDep) -> Response:
    """A webhook with its secret."""
    return _changed(has, principal, webhook_id, lambda session, found: _with_secret(found, has))


@router.patch(
    "/{webhook_id}",
    operation_id="webhooks_update",
    response_model=WebhookRead,
    responses=responses(400, 404, 413, 415, 422),
)
def update(webhook_id: WebhookId, patch: WebhookPatch, principal: Owner, has: ServicesDep) -> Response:
    """Change a webhook."""
    if patch.url is not None:
        service.check_url(patch.url, networks(has.settings.webhook_allow))

    def change(session: Session, found: Webhook) -> dict[str, Any]:
        for name in ("url", "events", "labels"):
            if (value := getattr(patch, name)) is not None:
                setattr(found, name, value)
        if patch.enabled is not None:
            service.enable(session, found, patch.enabled)
        session.flush()
        return _webhook(found)

    return _changed(has, principal, webhook_id, change)


@router.delete("/{webhook_id}", operation_id="webhooks_delete", status_code=204, responses=responses(404))
def delete(webhook_id: WebhookId, principal: Owner, has: ServicesDep) -> Response:
    """Delete a webhook, and what it has not got yet."""

    def remove(session: Session, found: Webhook) -> dict[str, Any]:
        service.remove(session, found)
        return {}

    _changed(has, principal, webhook_id, remove)
    return Response(status_code=204)


@router.post(
    "/{webhook_id}/rotate",
    operation_id="webhooks_rotate",
    response_model=WebhookWithSecret,
    responses=responses(400, 404, 413, 415, 422),
)
def rotate(webhook_id: WebhookId, asked: RotateRequest, principal: Owner, has: ServicesDep) -> Response:
    """Give a webhook a new secret. Until `previous_secret_until` messages are signed by both."""

    def change(session: Session, found: Webhook) -> dict[str, Any]:
        service.rotate(session, found, keep_hours=asked.keep_hours)
        return _with_secret(found, has)

    return _changed(has, principal, webhook_id, change)


@router.post("/{webhook_id}/test", operation_id="webhooks_test", response_model=DeliveryRead, responses=responses(404))
def test(webhook_id: WebhookId, principal: Owner, has: ServicesDep) -> Response:
    """Send a message of type `webhook.test`; its delivery says how it went."""
    return _changed(has, principal, webhook_id, lambda session, found: _delivery(service.test(session, found)))


@router.get(
    "/{webhook_id}/deliveries",
    operation_id="webhooks_deliveries",
    response_model=DeliveryPage,
    responses=responses(400, 404, 422),
)
def deliveries(
    request: Request,
    webhook_id: WebhookId,
    principal: Owner,
    has: ServicesDep,
    state: Annotated[Literal["pending", "delivered", "failed"] | None, Query(description="Only those.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Messages that were sent to a webhook, or wait for it, newest first. They are kept for 30 days."""
    binding = f"{principal.tenant_id} {webhook_id} {state}"
    older_than = None if cursor is None else int(decode_cursor(has.secret, binding, cursor)[0])
    with has.database.read() as session:
        service.of_tenant(session, principal.tenant_id, webhook_id)
        found = service.deliveries(session, webhook_id, state=state, older_than=older_than, limit=limit + 1)
        has_more, data = len(found) > limit, [_delivery(each) for each in found[:limit]]
    next_cursor = encode_cursor(has.secret, binding, data[-1]["id"]) if has_more else None
    page = {"data": data, "next_cursor": next_cursor, "has_more": has_more}
    return private_json(page, headers=next_link(request, next_cursor))


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/redeliver",
    operation_id="webhooks_redeliver",
    response_model=DeliveryRead,
    responses=responses(404, 422),
)
def redeliver(webhook_id: WebhookId, delivery_id: DeliveryId, principal: Owner, has: ServicesDep) -> Response:
    """Send a message again: the same body under the same `webhook-id`."""
    return _changed(
        has,
        principal,
        webhook_id,
        lambda session, found: _delivery(service.redeliver(session, found.id, delivery_id)),
    )


def _changed(
    has: Services, principal: Principal, webhook_id: str, change: Callable[[Session, Webhook], dict[str, Any]]
) -> Response:
    def owned(session: Session) -> dict[str, Any]:
        return change(session, service.of_tenant(session, principal.tenant_id, webhook_id, lock=True))

    return private_json(has.database.transact(owned))


def _webhook(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": webhook.events,
        "labels": webhook.labels,
        "enabled": webhook.disabled_at is None,
        "disabled_because": webhook.disabled_because,
        "previous_secret_until": iso(webhook.previous_until),
        "created_at": iso(webhook.created_at),
    }


def _with_secret(webhook: Webhook, has: Services) -> dict[str, Any]:
    return {**_webhook(webhook), "secret": secret_of(has.secret, webhook.id, webhook.secret_number)}


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "message_id": service.message_id(delivery),
        "type": delivery.type,
        "job_id": delivery.job_id,
        "state": delivery.state,
        "tries": delivery.tries,
        "at": iso(delivery.at),
        "due_at": iso(delivery.due_at) if delivery.state == "pending" else None,
        "log": delivery.log,
    }
