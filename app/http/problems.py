"""Every error answer: RFC 9457 problem+json. One handler per kind of exception, and the schema OpenAPI shows.

A problem never repeats what the client sent: it may hold a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from app.errors import AppError, NotReady
from app.http.suggest import did_you_mean, field_names, homes
from app.publications.contract import Params
from app.publications.registry import publishers
from app.storage import StorageError
from workers.engine.contracts.params import STAGES
from workers.engine.method_packages import VARIABLE, refused
from workers.engine.registry import methods, untagged
from workers.engine.spec import CompressionSpec

MEDIA_TYPE = "application/problem+json"
MOST_ERRORS = 100
"""Entries of `errors`; there may be as many mistakes as a body has fields."""
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
    for unavailable in (OperationalError, PoolTimeout, StorageError):
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


def field_error(pointer: str, code: str, detail: str, allowed: Sequence[str] | None = None) -> dict[str, Any]:
    """One entry of `errors`."""
    entry: dict[str, Any] = {"pointer": pointer, "code": code, "detail": detail}
    return entry | {"allowed": list(allowed)} if allowed else entry


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
    """The database or the artifact store does not answer, or does not keep up."""
    log.error("backend_unavailable", error=repr(error))
    what = "artifact store" if isinstance(error, StorageError) else "database"
    detail = f"The {what} does not answer; try again shortly."
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


def field_problem(error: Mapping[str, Any], body: Any = None) -> dict[str, Any]:
    """One entry of `errors`, of an error of pydantic's whose place begins with `body`, `query` or `header`.

    `body` is the model that the body was read as; below `/spec` it is always the spec's.
    """
    code, context = error["type"], error.get("ctx", {})
    pointer = _pointer(error["loc"], body)
    match code:
        case "missing":
            return field_error(pointer, code, "this field is required")
        case "extra_forbidden":
            known, elsewhere = _fields_there(error["loc"], body)
            close = did_you_mean(error["loc"][-1], known)
            if elsewhere and not close:
                close = f" (it is one of {' and of '.join(f'`{home}`' for home in elsewhere)})"
            advice = f"here can be {', '.join(known)}" if known else "check the spelling, or leave it out"
            return field_error(pointer, code, f"there is no such field{close}: {advice}", known)
        case "model_attributes_type" | "model_type" | "dict_type":
            return field_error(pointer, code, f"this must be a JSON object{_naming_a_method(error)}")
        case "union_tag_invalid":  # pydantic's own message repeats the tag
            allowed = re.findall(r"'([^']+)'", context["expected_tags"])
            if one := _refused_method(error["loc"], str(context["tag"])):
                return field_error(f"{pointer}/method", "method_not_allowed_here", one, allowed)
            tag = context["discriminator"].strip("'")
            close = did_you_mean(context["tag"], allowed)
            return field_error(f"{pointer}/{tag}", code, _choice(tag, close, allowed), allowed)
        case "union_tag_not_found":
            tag = context["discriminator"].strip("'")
            what = "the method" if tag == "method" else "the kind of place"
            return field_error(f"{pointer}/{tag}", code, f"this field is required: it names {what}")
        case "literal_error":
            allowed = re.findall(r"'([^']+)'", context["expected"])
            close = did_you_mean(error["input"], allowed) if isinstance(error.get("input"), str) else ""
            return field_error(pointer, code, _choice("value", close, allowed), allowed)
    return field_error(pointer, code, error["msg"].removesuffix("."))


def _choice(what: str, close: str, allowed: Sequence[str]) -> str:
    choose = f"choose one of {', '.join(allowed)}"
    return f"there is no such {what}{close}: {choose}" if close else choose


def _refused_method(loc: Sequence[str | int], name: str) -> str:
    """Advice, where a package that the operator has not allowed offers the method."""
    one = refused(str(loc[2]), name) if tuple(loc[:2]) == ("body", "spec") and len(loc) > 2 else None
    if one is None:
        return ""
    return (
        f"{one.origin} offers this method, and this service does not use that package's: its operator may allow it "
        f"by {VARIABLE}={one.package}, for the API and the workers"
    )


def _naming_a_method(error: Mapping[str, Any]) -> str:
    """`, e.g. {"method": "owl"}` of a stage of the spec."""
    loc = error["loc"]
    if tuple(loc[:2]) != ("body", "spec") or len(loc) < 3 or loc[2] not in STAGES:
        return ""
    names = [method.name for method in methods(loc[2])]
    name = error.get("input") if error.get("input") in names else names[0]
    return f', e.g. {{"method": "{name}"}}'


def _fields_there(loc: Sequence[str | int], body: Any) -> tuple[Sequence[str], Sequence[str]]:
    """The fields that there can be beside the one at this place, and the objects that have a field of its name."""
    root, path = (CompressionSpec, loc[2:]) if tuple(loc[:2]) == ("body", "spec") and len(loc) > 2 else (body, loc[1:])
    if loc[0] != "body" or root is None:
        return [], []
    elsewhere = homes(root).get(str(path[-1]), [])
    return field_names(root, tuple(path[:-1])), [home for home in elsewhere if home != path[0]]


def _body_model(request: Request) -> Any:
    field = getattr(request.scope.get("route"), "body_field", None)
    return field.field_info.annotation if field else None


def _pointer(loc: Sequence[str | int], body: Any) -> str:
    """JSON pointer of a pydantic location, `?name` of a query parameter, `#name` of a header.

    Inside a union pydantic names the member it tried, which is no part of the document.
    """
    where, *path = loc
    if where != "body":
        return f"{'?' if where == 'query' else '#'}{'/'.join(map(str, path))}"
    if path and path[-1] == "[key]":  # of a dict: the key itself is what is wrong
        path.pop()
    if path and path[0] == "spec":
        path[1:] = untagged(path[1:])
    if path and path[0] == "publish":
        path[2:] = _untagged_place(path[2:])
    elif _is_place(body):
        path = _untagged_place(path)
    return json_pointer(path)


def _is_place(body: Any) -> bool:
    """Whether a body is a publisher's parameters."""
    members = get_args(body) or (body,)
    return all(isinstance(each, type) and issubclass(each, Params) for each in members)


def _untagged_place(path: list[str | int]) -> list[str | int]:
    return path[1:] if path and path[0] in publishers() else path


def json_pointer(path: Sequence[str | int]) -> str:
    """RFC 6901."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
