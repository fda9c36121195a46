"""Middleware of every request, as plain ASGI: its id, log line and metric, and the limit of its body."""

from __future__ import annotations

import re
import time

import structlog
from prometheus_client import CollectorRegistry, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http import problems
from app.ids import new_id

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
log = structlog.get_logger("app.requests")


class RequestContext:
    """Gives the request an id, answers unhandled exceptions, logs and counts.

    A successful GET is logged at `debug`: dashboards poll, and thousands of such lines a second help nobody.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        self.app = app
        self._duration = Histogram(
            "espalier_http_request_duration_seconds",
            "Time from a request's first byte to its answer's last.",
            ["route", "method", "status"],
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = 499  # as nginx counts requests that the client closed
        except Exception:
            log.exception("request_failed", method=scope["method"], path=scope["path"])
            if status:  # too late for another answer: close, so that it is not taken as complete
                raise
            await problems.internal_error(Request(scope))(scope, receive, send_with_id)
        finally:
            elapsed = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in METHODS else "other"  # a client may send any word
            self._duration.labels(route, method, status).observe(elapsed)
            level = log.debug if scope["method"] == "GET" and status < 400 else log.info
            level("request", method=scope["method"], path=scope["path"], route=route, status=status, elapsed_s=elapsed)
            structlog.contextvars.unbind_contextvars("request_id")


class BodyLimit:
    """Refuses bodies over a size with 413: by their Content-Length, or while reading those that have none."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        announced = Headers(scope=scope).get("content-length", "")
        too_large = announced.isdecimal() and (len(announced) > 18 or int(announced) > self.max_bytes)
        read = 0

        async def limited() -> Message:
            nonlocal read
            if too_large:
                raise HTTPException(413)
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self.max_bytes:
                    raise HTTPException(413)
            return message

        await self.app(scope, limited, send)
