"""HTTP on the wire: uvicorn's parser, with bounds on what a client may send and on how long it may take to.

uvicorn appends headers and URLs without end, at a cost that grows with their square, and waits for ever for the rest
of a request. None of this needs an API key, so the bounds are here, before any of the application runs.
"""

from __future__ import annotations

import weakref
from asyncio import Transport
from asyncio.events import TimerHandle
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from app.ids import new_id
from app.settings import get_settings

HEAD_BYTES = 16 * 1024
"""Most bytes of a request's URL and headers, counted as they arrive."""
URL_BYTES = 8 * 1024
HEADERS = 100
BODY_PIECES = 10_000
"""Most chunks of a body."""
HEAD_S = 10.0
"""From the connection, or the first byte of its next request, to the end of the headers."""
BODY_S = 30.0
"""From there to the end of the body. ESPALIER_MAX_BODY_BYTES in this time is what a slow line has to manage."""
READ_S = 60.0
"""Longest that a client may leave what it was sent unread, once the buffers are full."""
LINGER_S, LINGER_BYTES = 2.0, 2**20
"""Time and bytes that a refused client may still send, so that it reads the answer instead of a reset."""
UNREAD_BYTES = 64 * 1024
"""Bytes of a body read after its answer, before the connection is closed."""
PIPELINE = 16
"""Most requests of one connection that wait for an answer."""
WAITING = 512
"""Most connections of which a head is awaited. One more, and the one that has waited longest is dropped."""

REFUSALS = {
    400: ("malformed_request", "This is no HTTP request that this service can read."),
    408: ("request_timeout", f"Send the headers within {HEAD_S:.0f} s, and the body within {BODY_S:.0f} s of them."),
    413: ("body_too_large", "The body is larger than this service accepts (ESPALIER_MAX_BODY_BYTES)."),
    414: ("url_too_long", f"A URL has at most {URL_BYTES} bytes."),
    431: ("headers_too_large", f"Headers have at most {HEAD_BYTES} bytes together, and there are at most {HEADERS}."),
}
log = structlog.get_logger("app.requests")
_waiting: weakref.WeakKeyDictionary[ServerState, dict[BoundedProtocol, None]] = weakref.WeakKeyDictionary()
"""By server, its connections of which a head is awaited, those that have waited longest first."""


class Refused(Exception):
    """Raised in a callback of the parser, which ends the parsing."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `uvicorn --http app.http.protocol:BoundedProtocol` makes them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._others = _waiting.setdefault(self.server_state, {})
        self._in_head = self._in_body = False
        self._count = 0
        """Bytes received since the last head or body ended."""
        self._pieces = 0
        self._body_bytes = get_settings().max_body_bytes * 5 // 4 + HEAD_BYTES  # as sent, with chunks and trailers
        self._status = 0
        """Of a refusal; 0 while all is well."""
        self._timer: TimerHandle | None = None

    # -- asyncio's calls -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._time(None)
        self._others.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), HEAD_BYTES):
            if self._status:
                return self._discard(len(data) - start)
            if self.transport.is_closing():
                return
            self._feed(data[start : start + HEAD_BYTES] if len(data) > HEAD_BYTES else data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._time(READ_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._time(BODY_S if self._in_body else HEAD_S if self._in_head else None)

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # the answer is still on its way
            self._time(READ_S)
        else:
            super().timeout_keep_alive_handler()

    # -- the parser's calls --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        if status := self._excess():
            self._refused_by_callback(status)
        super().on_headers_complete()
        self._in_head, self._in_body, self._count, self._pieces = False, True, 0, 0
        self._others.pop(self, None)
        self._in_time()
        self.headers = []  # for trailers, which nobody reads: the application has the list of before

    def on_body(self, body: bytes) -> None:
        self._pieces += 1
        if self._pieces > BODY_PIECES:
            self._refused_by_callback(413)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._count = False, 0
        self._in_time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self.cycle.body.clear()  # what nobody has read
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._time(READ_S)

    # -- bounds --------------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        self._count += len(data)
        super().data_received(data)
        if self._status or self.transport.is_closing():
            return
        if self._in_head:
            if self._count > HEAD_BYTES:
                self._refuse(414 if len(self.url) > URL_BYTES else 431)
            elif self._timer is None:
                self._wait_for_head()
        elif self._in_body:
            if self._count > (UNREAD_BYTES if self.cycle.response_complete else self._body_bytes):
                self._refuse(413)
            elif self._timer is None:
                self._time(BODY_S)

    def _excess(self) -> int:
        """The status to refuse a whole head with, or 0."""
        if len(self.pipeline) == PIPELINE:
            return 400
        if len(self.url) > URL_BYTES:
            return 414
        if len(self.headers) > HEADERS:
            return 431
        if self._count <= HEAD_BYTES:  # it cannot be longer
            return 0
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        return 431 if size > HEAD_BYTES else 0

    def _wait_for_head(self) -> None:
        self._time(HEAD_S)
        self._others[self] = None
        if len(self._others) > WAITING:
            next(iter(self._others))._drop("too_many_connections")

    def _refused_by_callback(self, status: int) -> None:
        self._status = status
        raise Refused

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when parsing fails, also by a Refused."""
        self._refuse(self._status or 400)

    def _refuse(self, status: int) -> None:
        """Answer with a problem document, unless another answer is under way or was given, and close."""
        self._status = status
        log.info("request_refused", status=status, client=self.client and self.client[0])
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started or self.pipeline:
                return self.transport.abort()
            self.cycle.disconnected = True  # the application, should it wait for the body, waits no longer
            self.cycle.message_event.set()
        if not self._in_body or not self.cycle.response_complete:
            self.transport.write(_refusal(status))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._count = 0
        self._time(LINGER_S)

    def _discard(self, size: int) -> None:
        self._count += size
        if self._count > LINGER_BYTES:
            self.transport.abort()

    def _time(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._too_late)

    def _in_time(self) -> None:
        if self._timer is not None and not self.flow.write_paused:
            self._time(None)

    def _too_late(self) -> None:
        self._timer = None
        if self._status or self.flow.write_paused:
            self._drop("unread")
        elif self.flow.read_paused:  # it is this side that does not read on
            self._time(HEAD_S)
        elif (self._in_head or self._in_body) and not self.transport.is_closing():
            self._refuse(408)
        else:
            self._drop("silent")

    def _drop(self, why: str) -> None:
        log.debug("connection_dropped", why=why, client=self.client and self.client[0])
        self._others.pop(self, None)
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()


def _refusal(status: int) -> bytes:
    """A whole HTTP answer: the problem documents of the application need a request, and there is none."""
    code, detail = REFUSALS[status]
    request_id = new_id("req")
    body = orjson.dumps(
        {
            "type": f"urn:espalier:problem:{code}",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "instance": "",
            "code": code,
            "request_id": request_id,
        }
    )
    headers = {
        "content-type": "application/problem+json",
        "content-length": len(body),
        "x-request-id": request_id,
        "connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"".join([STATUS_LINE[status], lines.encode(), b"\r\n", body])
