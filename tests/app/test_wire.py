"""Bytes and time that a client without a key may take on a socket: bounded, and answered with a problem."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.http import protocol
from tests.helpers.api import eventually

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
LENGTH_AND_CHUNKS = b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"


class Wire:
    """A connection that sends bytes."""

    def __init__(self, server: httpx2.Client) -> None:
        self.socket = socket.create_connection((server.base_url.host, server.base_url.port or 0), timeout=10)

    def send(self, data: bytes) -> int:
        """How many of the bytes went before the server closed."""
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < len(data):
                sent += self.socket.send(data[sent : sent + 65536])
        return sent

    def answers(self) -> list[tuple[int, dict[str, Any]]]:
        """(status, body) of all that comes until the server closes."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while piece := self.socket.recv(65536):
                received += piece
        found = []
        while received:
            head, _, rest = received.partition(b"\r\n\r\n")
            lines = head.decode().lower().split("\r\n")
            size = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length"))
            found.append((int(lines[0].split()[1]), json.loads(rest[:size])))
            received = rest[size:]
        return found


@pytest.fixture
def database_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """One kind will do: nothing here asks it."""
    return f"sqlite:///{shutil.copyfile(migrated_sqlite, tmp_path / 'espalier.db')}"


@pytest.fixture
def connect(server: httpx2.Client) -> Iterator[Callable[[], Wire]]:
    made: list[Wire] = []

    def one() -> Wire:
        made.append(Wire(server))
        return made[-1]

    yield one
    for wire in made:
        wire.socket.close()


@pytest.fixture
def wire(connect: Callable[[], Wire]) -> Wire:
    return connect()


def headers(n: int) -> bytes:
    return b"".join(b"X-%d: x\r\n" % i for i in range(n))


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        pytest.param(GET + b"X-A: " + b"x" * 20_000_000, 431, "headers_too_large", id="endless header"),
        pytest.param(GET + b"X-A: " + b"x" * 20_000 + b"\r\n\r\n", 431, "headers_too_large", id="long header"),
        pytest.param(GET + b"X" * 20_000, 431, "headers_too_large", id="endless name"),
        pytest.param(GET + headers(20_000) * 100, 431, "headers_too_large", id="endless headers"),
        pytest.param(GET + headers(100) + b"\r\n", 431, "headers_too_large", id="too many headers"),
        pytest.param(b"GET /" + b"x" * 20_000_000, 414, "url_too_long", id="endless URL"),
        pytest.param(b"GET /livez?" + b"x" * 8190 + b" HTTP/1.1\r\n\r\n", 414, "url_too_long", id="long URL"),
        pytest.param(b"BREW /livez HTTP/1.1\r\n\r\n", 400, "malformed_request", id="unknown verb"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed_request", id="TLS"),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            400,
            "malformed_request",
            id="absurd length",
        ),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "malformed_request",
            id="length and chunks",
        ),
        pytest.param(b"GET //\xff\xfe HTTP/1.1\r\n\r\n", 400, "malformed_request", id="bytes in the URL"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\n\r\n", 400, "malformed_request", id="CONNECT"),
    ],
)
def test_what_is_no_request_is_refused(wire: Wire, request_: bytes, status: int, code: str) -> None:
    """And soon: a megabyte later at most the server has stopped to listen."""
    sent = wire.send(request_)
    assert sent <= len(request_) < 2**20 or sent < 10 * 2**20  # the rest fills the buffers of the kernel
    answers = wire.answers()
    if len(request_) < 2**20 or answers:  # a client that goes on sending may find a reset instead
        [(found, problem)] = answers
        assert (found, problem["code"]) == (status, code)
        assert problem["request_id"].startswith("req_")


def test_bounds_let_pass_what_they_allow(wire: Wire) -> None:
    request = GET + headers(90) + b"X-A: " + b"x" * 14_000 + b"\r\n\r\n"
    wire.send(request * 3 + GET + b"Connection: close\r\n\r\n")
    assert [status for status, _ in wire.answers()] == [200] * 4


def test_a_body_without_end(connect: Callable[[], Wire]) -> None:
    """Its announced length, its chunks, their extensions and its trailers: all are counted, also after the answer."""
    for tail in (b"1\r\nx\r\n" * 2_000_000, b"1;" + b"x" * 12_000_000, b"0\r\n" + b"X-T: " + b"x" * 12_000_000):
        sent = connect().send(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + tail)
        assert sent < len(tail)


def test_trailers_are_no_headers(wire: Wire) -> None:
    wire.send(
        b"POST /v1/jobs/x/cancel HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\nAuthorization: Bearer x\r\n\r\n"
    )
    [(status, problem)] = wire.answers()
    assert (status, problem["code"]) == (401, "unauthenticated")


def test_too_many_requests_in_one_go(wire: Wire) -> None:
    wire.send((GET + b"\r\n") * 10_000)
    assert len(wire.answers()) < 100


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"", None),
        (b"GET /livez HT", 408),
        (GET, 408),
        (b"POST /v1/jobs/x/cancel HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", 401),
    ],
    ids=["silent", "line", "headers", "body"],
)
def test_slow_clients_are_dropped(
    connect: Callable[[], Wire], monkeypatch: pytest.MonkeyPatch, said: bytes, status: int | None
) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.2)
    monkeypatch.setattr(protocol, "BODY_S", 0.2)
    wire = connect()
    wire.send(said)
    assert [answer[0] for answer in wire.answers()] == ([] if status is None else [status])


def test_a_slow_body_is_answered_with_408(
    server: httpx2.Client, connect: Callable[[], Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "BODY_S", 0.2)
    wire = connect()
    key = server.headers["Authorization"].encode()
    wire.send(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: " + key + b"\r\nContent-Type: application/json\r\n")
    wire.send(b'Content-Length: 10\r\n\r\n{"spe')
    [(status, problem)] = wire.answers()
    assert (status, problem["code"]) == (408, "request_timeout")


def test_a_client_that_does_not_read_is_dropped(connect: Callable[[], Wire], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "READ_S", 0.2)
    monkeypatch.setattr(protocol, "PIPELINE", 1000)
    wire = connect()
    wire.socket.settimeout(0.5)
    sent, request = 0, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.suppress(TimeoutError, ConnectionError):
        for _ in range(1000):
            wire.socket.sendall(request)
            sent += 1
    eventually(lambda: _closed(wire))


def _closed(wire: Wire) -> bool:
    try:
        wire.socket.send(b"x")
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


def test_who_says_nothing_makes_place_for_others(
    server: httpx2.Client, connect: Callable[[], Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "WAITING", 3)
    silent = [connect() for _ in range(6)]
    assert server.get("/livez").status_code == 200
    for wire in silent[:3]:
        assert wire.answers() == []  # closed, though no time has passed
