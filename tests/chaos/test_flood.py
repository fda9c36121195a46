"""Clients without a key that send without end, or never finish: the others' polls do not notice.

Everything is on loopback and bounded. The figures are printed: `make chaos` shows them with `-rP`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from app.http.protocol import BoundedProtocol
from tests.helpers.cluster import MAGNITUDE, Cluster, eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

MIB = 2**20
SLOW = 500
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
ENDLESS = [
    ("one header", GET + b"X-A: ", b"x" * 65536),
    ("many headers", GET, b"X-A: x\r\n" * 8192),
    ("URL", b"GET /", b"x" * 65536),
    ("chunks", b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 8192),
    ("announced body", b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 157286400\r\n\r\n", b"x" * 65536),
    ("trailer", b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: ", b"x" * 65536),
    ("pipeline", b"", (GET + b"\r\n") * 2048),
]
"""(what, how it begins, what follows)"""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("flood"), log_level="warning")
    try:
        cluster.start("api")
        eventually(cluster.ready, 30, "the API is ready")
        yield cluster
    finally:
        cluster.stop()


class Poller(threading.Thread):
    """One client that polls a job over one connection as fast as it is answered."""

    def __init__(self, api: Cluster, path: str) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", api.config.port, timeout=30)
        self._headers, self._path = {"Authorization": f"Bearer {api.key}"}, path
        self.took_ms: list[float] = []
        self.stop = False

    def run(self) -> None:
        while not self.stop:
            began = time.perf_counter()
            self._connection.request("GET", self._path, headers=self._headers)
            response = self._connection.getresponse()
            response.read()
            assert response.status == 200
            self.took_ms.append((time.perf_counter() - began) * 1000)
            time.sleep(0.002)
        self._connection.close()


def while_polling(api: Cluster, what: str, attack: Callable[[], None]) -> None:
    """Run the attack beside a poller, and hold the API to its bounds."""
    poller = Poller(api, f"/v1/jobs/{api.submit(MAGNITUDE)}")
    poller.start()
    time.sleep(2)
    quiet = len(poller.took_ms)
    process = psutil.Process(api.processes["api"].pid)
    before, peak, done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        attack()
    finally:
        done.set()
        watcher.join()
        poller.stop = True
        poller.join()
    took_ms, usual_ms = poller.took_ms[quiet:], _p99(poller.took_ms[:quiet])
    p99, longest, grew = _p99(took_ms), max(took_ms), (peak - before) / MIB
    _say(
        f"{what}: {len(took_ms)} polls, p99 {p99:.1f} ms ({usual_ms:.1f} ms before), longest {longest:.0f} ms, "
        f"memory +{grew:.1f} MiB"
    )
    assert p99 < 100 + usual_ms  # what the rest of the machine does to it
    assert longest < 1000
    assert grew < 20


def _p99(took_ms: list[float]) -> float:
    return statistics.quantiles(took_ms, n=100)[98]


def connect(api: Cluster) -> socket.socket:
    return socket.create_connection(("127.0.0.1", api.config.port), timeout=30)


def flood(api: Cluster, start: bytes, piece: bytes, size: int) -> int:
    """Bytes that went before the server closed."""
    sent = 0
    with connect(api) as s, contextlib.suppress(ConnectionError):
        s.sendall(start)
        while sent < size:
            sent += s.send(piece)
    return sent


@pytest.mark.parametrize(("what", "start", "piece"), ENDLESS, ids=[what for what, _, _ in ENDLESS])
def test_150_mib(api: Cluster, what: str, start: bytes, piece: bytes) -> None:
    sent = []

    def attack() -> None:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            sent.append(flood(api, start, piece, 150 * MIB))
            time.sleep(0.05)

    while_polling(api, f"150 MiB of {what}", attack)
    _say(f"   {len(sent)} times; the server closed after {max(sent) / MIB:.1f} MiB at most")
    assert max(sent) < 16 * MIB  # the kernel's buffers, on both sides, are in it


@pytest.mark.parametrize(
    ("what", "start"),
    [
        ("silent", b""),
        ("in a header", GET + b"X-A: " + b"x" * 15_000),
        ("in a body", b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b"x" * 60_000),
    ],
    ids=["silent", "header", "body"],
)
def test_500_slow_connections(api: Cluster, what: str, start: bytes) -> None:
    """Each sends a byte every half second. All are dropped in the time the service gives them."""
    took_s = 0.0

    def attack() -> None:
        nonlocal took_s
        began = time.monotonic()
        alive = []
        for _ in range(SLOW):
            alive.append(connect(api))
            alive[-1].settimeout(0.0)
            with contextlib.suppress(OSError):
                alive[-1].send(start)
        while alive:
            assert time.monotonic() - began < 60
            time.sleep(0.5)
            alive = [s for s in alive if _says(s, b"x" if start else b"")]
        took_s = time.monotonic() - began

    while_polling(api, f"{SLOW} slow connections, {what}", attack)
    _say(f"   the last was dropped after {took_s:.0f} s")


def _says(s: socket.socket, data: bytes) -> bool:
    """Whether the server still listens."""
    try:
        s.send(data)
        if s.recv(65536):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    s.close()
    return False


def test_connections_without_number(api: Cluster, tmp_path: Path) -> None:
    """Silent connections, opened as fast as the others are dropped."""

    def attack() -> None:
        end = time.monotonic() + 5
        open_: list[socket.socket] = []
        while time.monotonic() < end:
            open_.append(connect(api))
            if len(open_) > 800:
                open_.pop(0).close()
        for s in open_:
            s.close()

    while_polling(api, "5 s of silent connections", attack)


class _Sink(asyncio.Transport):
    """Takes answers, and remembers being closed."""

    closed = False

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = write_eof = pause_reading = resume_reading = lambda self: None

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0


@pytest.mark.parametrize(("what", "start", "piece"), ENDLESS, ids=[what for what, _, _ in ENDLESS])
def test_one_read_keeps_the_loop_for_milliseconds(what: str, start: bytes, piece: bytes) -> None:
    """Of processor time, so that whatever else the machine does changes nothing: 256 KiB at once, as uvloop reads."""

    async def nobody(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> float:
        config = Config(nobody, http=BoundedProtocol, ws="none", access_log=False, log_config=None, lifespan="off")
        config.load()
        protocol, sink = BoundedProtocol(config=config, server_state=ServerState(), app_state={}), _Sink()
        protocol.connection_made(sink)
        data, longest = start + piece * (MIB // 4 // len(piece)), 0.0
        for _ in range(8):
            began = time.process_time()
            protocol.data_received(data)
            longest = max(longest, time.process_time() - began)
            await asyncio.sleep(0)
            data = piece * (MIB // 4 // len(piece))
        protocol.connection_lost(ConnectionResetError())
        return longest * 1000

    longest_ms = asyncio.run(run())
    _say(f"{what}: {longest_ms:.1f} ms of processor time")
    assert longest_ms < 50


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
