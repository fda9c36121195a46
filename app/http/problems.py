"""Every error answer: RFC 9457 problem+json. One handler per kind of exception, and the schema OpenAPI shows.

A problem never repeats what the client sent: it may hold a secret.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from app.db import is_outage, took_too_long
from app.errors import AppError, NotReady
from app.http.field_problems import MOST_ERRORS, field_problem
from app.storage import StorageError

MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger(__name__)


class FieldProblem(BaseModel):
    """The error of one field."""

    pointer: str = Field(
        description="JSON pointer into the body, or `?name`, `#name` of a query parameter or a header.",
        examples=["/spec/prune/sparsity"],
    )
    code: str = Field(examples=["greater_than_equal"])
    detail: str = Field(examples=["Input should be greater than or equal to 0"])
    allowed: list[str] | None = Field(None, description="The valid values, where there are few.")
    children: list[int] | None = Field(None, description="Of a sweep: the children that it is wrong in, the first few.")


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:espalier:problem:invalid_request"])
    title: str
    status: int = Field(examples=[422])
    detail: str = Field(description="What is wrong and what to do about it.")
    instance: str = Field(description="Path of the request.")
    code: str = Field(description="Stable: what clients switch on.", examples=["invalid_request"])
    request_id: str = Field(description="Names the request in the service's log.")
    errors: list[FieldProblem] | None = Field(None, max_length=MOST_ERRORS)
    more_errors: int | None = Field(None, description="Mistakes that were found and are not in `errors`.")
    children_not_checked: int | None = Field(
        None, description="Of a sweep: children that were not looked at, because enough was wrong with the others."
    )
    allowed: list[str] | None = Field(None, description="What would have been valid instead.")
    current: str | None = Field(None, description="The state that forbids the request.")
    quota: str | None = Field(None, description="The tenant's quota that is used up.", examples=["queued"])
    limit: int | None = Field(None, description="How much it allows.")
    used: float | None = Field(None, description="How much is used.")
    resets_at: str | None = Field(None, description="When it begins anew, where it does by itself.")
    retryable: bool | None = Field(None, description="Whether the same request may succeed later.")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that wants a key: these problems, and those that any such route may answer."""
    return described(*statuses, 401, 403, 429, 500, 503)


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These problems, as OpenAPI has them."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted(set(statuses))
    }


def install(app: FastAPI) -> None:
    app.add_exception_handler(AppError, _app_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    for unavailable in (DBAPIError, PoolTimeout, StorageError):
        app.add_exception_handler(unavailable, _unavailable)


def problem(
    request: Request,
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> Response:
    """A problem document; members that are None are left out."""
    document = {
        "type": f"urn:espalier:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.scope["path"],  # `request.url` is made with the Host header, which may be anything
        "code": code,
        "request_id": request.state.request_id,
        **{k: v for k, v in extra.items() if v is not None},
    }
    return Response(orjson.dumps(document), status, headers, MEDIA_TYPE)


def internal_error(request: Request) -> Response:
    """The answer to an unhandled exception: it holds the id under which the log has the traceback."""
    return problem(
        request,
        status=500,
        code="internal",
        title="Internal error",
        detail="The service failed; this is a bug in it. Its log has the cause under the request_id.",
    )


async def _app_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)
    return problem(
        request,
        status=error.status,
        code=error.code,
        title=error.title,
        detail=error.detail,
        headers=error.headers,
        **error.extra,
    )


async def _unavailable(request: Request, error: Exception) -> Response:
    """The database or the artifact store does not answer, or does not keep up. What else the database says is a bug."""
    if isinstance(error, DBAPIError) and not is_outage(error):
        raise error
    log.error("backend_unavailable", error=repr(error))
    what = "artifact store" if isinstance(error, StorageError) else "database"
    detail = f"The {what} does not answer; try again shortly."
    if isinstance(error, DBAPIError) and took_too_long(error):
        detail = "The database was not done with this in time: ask for less, or try again shortly."
    return await _app_error(request, NotReady(detail, retryable=True, headers={"Retry-After": "5"}))


HTTP_ERRORS = {
    404: ("not_found", "There is nothing at this path; /docs lists the paths."),
    405: ("method_not_allowed", "This path does not take this method; `Allow` lists the ones it takes."),
    413: ("body_too_large", "The body is larger than this service accepts (ESPALIER_MAX_BODY_BYTES)."),
}


async def _http_exception(request: Request, error: Exception) -> Response:
    """The answer to exceptions that the framework raises."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    code, detail = HTTP_ERRORS.get(status, (f"http_{status}", error.detail))
    title = HTTPStatus(status).phrase
    headers = dict(error.headers or {})
    if status == 405:  # the framework names the methods of one route only
        headers["Allow"] = ", ".join(_allowed(request))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
    return problem(request, status=status, code=code, title=title, detail=detail, headers=headers)


def _allowed(request: Request) -> list[str]:
    """The methods that some route takes at this path."""
    app: FastAPI = request.app
    taken = [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in app.router.routes)
    ]
    return sorted([*taken, "OPTIONS"])


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    model = _body_model(request)
    errors = [field_problem(e, model) for e in found[:MOST_ERRORS]]
    first = errors[0]
    more = f" ({len(found) - 1} more in `errors`.)" if len(found) > 1 else ""
    return problem(
        request,
        status=422,
        code="invalid_request",
        title="The request is not valid",
        detail=f"{first['pointer'] or 'body'}: {first['detail']}.{more}",
        errors=errors,
        more_errors=max(len(found) - MOST_ERRORS, 0) or None,
    )


def _body_model(request: Request) -> Any:
    field = getattr(request.scope.get("route"), "body_field", None)
    return field.field_info.annotation if field else None
