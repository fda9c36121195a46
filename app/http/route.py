"""The route class of every endpoint: allowed query parameters, the key, and limits on threads and waiting."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any, get_args, get_origin
from urllib.parse import parse_qsl

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from app.errors import InvalidRequest, MalformedRequest, NotReady
from app.http import direct
from app.http.field_problems import field_error
from app.http.payload import check_media_type, parse
from app.http.problems import described
from app.services import services

SLOTS = 24
"""Requests that work on threads at once: fewer than there are threads and database connections, so that whoever has a
slot waits for neither, and the probes for nobody."""
SLOT_WAIT_S = 1.5
SINGLE = frozenset(
    (b"authorization", b"content-type", b"host", b"idempotency-key", b"if-range", b"last-event-id", b"range")
)
"""Headers that can be there once: of two, each reader would choose its own."""


class StrictRoute(APIRoute):
    """Refuses queries that no parameter is for; reads no body without a key; answers 503 rather than queue for long."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:
        kwargs["responses"] = {**described(400, 422), **(kwargs.get("responses") or {})}
        super().__init__(path, endpoint, **kwargs)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.strictly(super().get_route_handler())

    def strictly(
        self, handle: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """`handle`, for requests that pass, when there is room for them."""
        dependants = list(_flattened(self.dependant))
        known = {
            field.alias: _is_list(field.field_info.annotation)
            for dependant in dependants
            for field in dependant.query_params
        }
        guards: list[Any] = [d.call for d in dependants if isinstance(d.call, SecurityBase)] if self.body_field else []
        on_threads = not inspect.iscoroutinefunction(self.endpoint)

        async def strict(request: Request) -> Response:
            check_query(request, known)
            _check_headers(request)
            for guard in guards:
                await guard(request)
            if self.body_field and (body := await request.body()):
                check_media_type(request.headers.get("content-type"))
                request._json = parse(body)
            if not on_threads:
                return await handle(request)
            slots = services(request).slots
            await _take(slots)
            try:
                return await handle(request)
            finally:
                slots.release()

        return strict


class DirectRoute(Route):
    """A short way to the endpoint of a StrictRoute, which stays behind this one, for OpenAPI. See direct.py."""

    def __init__(self, of: StrictRoute) -> None:
        super().__init__(of.path, of.strictly(direct.handler(of.dependant)), include_in_schema=False)
        self.methods = of.methods  # Starlette would add HEAD
        self._of = of

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        if match is not Match.FULL:  # whoever comes behind may take the method
            return Match.NONE, {}
        return match, {**found, "route": self._of}  # as FastAPI's routes do: metrics, logs and problems read it


async def _take(slots: asyncio.Semaphore) -> None:
    """Acquire one, waiting SLOT_WAIT_S at most."""
    if not slots.locked():
        await slots.acquire()  # at once
        return
    try:
        await asyncio.wait_for(slots.acquire(), SLOT_WAIT_S)
    except TimeoutError:
        raise NotReady(
            "The service has more to do than it can; try again shortly.",
            retryable=True,
            headers={"Retry-After": "5"},
        ) from None


def check_query(request: Request, known: Mapping[str, bool]) -> None:
    """Raises MalformedRequest or InvalidRequest unless the query holds only these: name -> whether it may repeat."""
    raw = request.scope["query_string"]
    if not raw:
        return
    try:
        if re.search(rb"%(?![0-9A-Fa-f]{2})", raw):
            raise ValueError
        names = [name for name, _ in parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict")]
    except ValueError:
        raise MalformedRequest(
            "The query cannot be read: send `name=value` pairs of percent-encoded UTF-8.", code="malformed_query"
        ) from None
    if unknown := next((name for name in names if name not in known), None):
        _refuse(unknown, "unknown_parameter", _takes(known), known)
    for name in known:
        if names.count(name) > 1 and not known[name]:
            _refuse(name, "repeated_parameter", "give this once", ())


def _takes(known: Collection[str]) -> str:
    return f"this path takes {', '.join(f'`{name}`' for name in known) or 'no query'}"


def _refuse(name: str, code: str, detail: str, allowed: Collection[str]) -> None:
    pointer = f"?{name[:100]}"
    raise InvalidRequest(f"{pointer}: {detail}.", errors=[field_error(pointer, code, detail, list(allowed))])


def _check_headers(request: Request) -> None:
    seen = set()
    for name, _ in request.scope["headers"]:
        if name in seen and name in SINGLE:
            raise MalformedRequest(f"`{name.decode()}` is there twice: send it once.", code="duplicate_header")
        seen.add(name)


def _is_list(kind: Any) -> bool:
    return any(get_origin(each) is list for each in (kind, *get_args(kind)))


def _flattened(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _flattened(inner)
