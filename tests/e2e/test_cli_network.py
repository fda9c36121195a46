"""The command line against a network or service that misbehaves: a scripted server, real sockets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.cli.client import Service
from app.cli.display import display
from app.cli.download import Corrupt, fetch, target
from app.cli.exits import Refused, Unreachable, Usage

Script = Callable[[BaseHTTPRequestHandler, int], None]
"""(request, how many came before it): writes the answer."""


@contextmanager
def scripted(script: Script) -> Iterator[tuple[Service, list[BaseHTTPRequestHandler]]]:
    seen: list[BaseHTTPRequestHandler] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.close_connection = True
            seen.append(self)
            script(self, len(seen) - 1)

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Service(f"http://127.0.0.1:{server.server_port}", "espk_x") as service:
            yield service, seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


CONTENT = bytes(range(256)) * 4096
FILE = {
    "path": "sub/model.safetensors",
    "bytes": len(CONTENT),
    "sha256": hashlib.sha256(CONTENT).hexdigest(),
    "url": "/v1/file",
}


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def script(request: BaseHTTPRequestHandler, n: int) -> None:
        if n == 0:  # a third, then the connection breaks
            reply(request, 200, CONTENT[: len(CONTENT) // 3], Content_Length=str(len(CONTENT)))
        else:
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            reply(request, 206, CONTENT[start:], Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")

    path = target(tmp_path, FILE["path"])
    with scripted(script) as (service, seen), display() as shown:
        with pytest.raises(Unreachable):
            fetch(service, FILE, path, shown)
        assert not path.exists()
        fetch(service, FILE, path, shown)
        assert path.read_bytes() == CONTENT
        assert seen[1].headers["Range"] == f"bytes={len(CONTENT) // 3}-"
        fetch(service, FILE, path, shown)  # complete: nothing is asked
        assert len(seen) == 2
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_a_server_without_ranges_sends_the_whole_again(tmp_path: Path) -> None:
    path = target(tmp_path, FILE["path"])
    path.parent.mkdir()
    path.with_name(f".{path.name}.{FILE['sha256'][:16]}.part").write_bytes(b"older")
    with scripted(lambda request, n: reply(request, 200, CONTENT)) as (service, _), display() as shown:
        fetch(service, FILE, path, shown)
    assert path.read_bytes() == CONTENT


def test_other_bytes_than_announced_never_get_the_name(tmp_path: Path) -> None:
    path = target(tmp_path, FILE["path"])
    wrong = scripted(lambda request, n: reply(request, 200, CONTENT[::-1]))
    with wrong as (service, _), display() as shown, pytest.raises(Corrupt):
        fetch(service, FILE, path, shown)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..", "", "link/x"])
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    with pytest.raises(Usage, match="outside"):
        target(out, name)


def test_events_go_on_after_a_break(tmp_path: Path) -> None:
    def event(seq: int, kind: str) -> bytes:
        data = json.dumps({"seq": seq, "type": kind, "attempt": 1, "data": {"n": seq}})
        return f"id: {seq}\nevent: {kind}\ndata: {data}\n\n".encode()

    def script(request: BaseHTTPRequestHandler, n: int) -> None:
        body = [
            event(1, "queued") + event(2, "running") + b"id: 3\nevent: st",  # cut inside an event
            b": ping\n\n",  # closed cleanly without news
            event(3, "stage") + b"event: end\ndata: {}\n\n",
        ][n]
        length = {} if n else {"Content_Length": str(len(body) + 100)}
        reply(request, 200, b"retry: 3000\n\n" + body, Content_Type="text/event-stream", **length)

    with scripted(script) as (service, seen):
        assert [(e.type, e.data["n"]) for e in service.events("job_x")] == [("queued", 1), ("running", 2), ("stage", 3)]
        assert [s.headers["Last-Event-ID"] for s in seen] == ["0", "2", "2"]


def test_a_broken_connection_is_tried_again_only_where_that_is_harmless() -> None:
    def script(request: BaseHTTPRequestHandler, n: int) -> None:
        if n != 1:
            return  # hang up without a word
        reply(request, 200, b"{}")

    with scripted(script) as (service, seen):
        assert service.get("/v1/jobs") == {}
        assert len(seen) == 2
        with pytest.raises(Unreachable):
            service.request("POST", "/v1/jobs/x/retry")
        assert len(seen) == 3


def test_answers_that_are_no_problem_documents_are_told_too() -> None:
    with scripted(lambda request, n: reply(request, [418, 502][n], b"<p>proxy</p>")) as (service, _):
        with pytest.raises(Refused, match="proxy"):
            service.request("POST", "/v1/jobs")
        with pytest.raises(Unreachable, match="proxy"):
            service.request("POST", "/v1/jobs")
