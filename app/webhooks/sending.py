"""One POST to a webhook: to an address that was checked, without redirects or proxies, and not for long."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.webhooks.addresses import Network, Refused, Target, resolved, target

TIMEOUT_S = 15.0
"""Of the whole exchange, and of each step of it."""
READ_BYTES = 1024
"""Of the answer's body, which means nothing."""


class Answer(NamedTuple):
    status: int | None
    """None where there was none."""
    error: str | None
    retry_after_s: int | None
    elapsed_s: float

    @property
    def arrived(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def post(url: str, body: str, headers: Mapping[str, str], allowed: Sequence[Network]) -> Answer:
    """The receiver's answer; an error is one too."""
    began = time.monotonic()
    status = retry_after_s = error = None
    try:
        status, retry_after_s = _post(url, body.encode(), headers, allowed)
        error = None if 200 <= status < 300 else f"the receiver answered {status}"
    except Refused as refused:
        error = str(refused)
    except (OSError, ValueError, http.client.HTTPException) as broken:  # a cut connection may be either
        error = f"{type(broken).__name__}: {broken}"[:300]
    return Answer(status, error, retry_after_s, round(time.monotonic() - began, 3))


def _post(url: str, body: bytes, headers: Mapping[str, str], allowed: Sequence[Network]) -> tuple[int, int | None]:
    to = target(url)
    stream = _connected(to, resolved(to, allowed))
    if to.https:
        context = ssl.create_default_context()
        stream = context.wrap_socket(stream, server_hostname=to.host, do_handshake_on_connect=False)
    # Steps are bounded by the socket's timeout, a receiver that sends a byte now and then by this.
    end = threading.Timer(TIMEOUT_S, _cut, [stream])
    end.daemon = True
    end.start()
    try:
        with stream:
            if isinstance(stream, ssl.SSLSocket):
                stream.do_handshake()
            connection = http.client.HTTPConnection(to.host, to.port, timeout=TIMEOUT_S)
            connection.sock = stream
            if to.https:
                connection.default_port = 443  # left out of the Host header
            connection.request("POST", to.path, body, {**headers, "Connection": "close"})
            with contextlib.closing(connection.getresponse()) as response:
                response.read(READ_BYTES)
                wait = response.getheader("Retry-After", "")
                return response.status, int(wait) if re.fullmatch(r"[0-9]{1,6}", wait) else None
    finally:
        end.cancel()


def _connected(to: Target, addresses: Sequence[str]) -> socket.socket:
    """A connection to the first of the addresses that takes one, within TIMEOUT_S. Raises OSError."""
    end, refusal = time.monotonic() + TIMEOUT_S, OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, to.port), timeout=max(end - time.monotonic(), 0.1))
        except OSError as error:
            refusal = error
    raise refusal


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
