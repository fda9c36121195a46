"""The client against a network or service that misbehaves: a scripted server, real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_origin

import pytest

from espalier import (
    APIError,
    AsyncClient,
    Client,
    CorruptFile,
    ServiceUnwell,
    TooManyRequests,
    UnexpectedAnswer,
    Unreachable,
    UnsafePath,
    retries,
)
from espalier.aio import downloads as downloads_aio
from espalier.documents import Artifact, Document, JobDocument
from espalier.files import target
from espalier.sync import downloads

Script = Callable[[BaseHTTPRequestHandler, int], None]
"""(request, how many came before it): writes the answer."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)


@contextmanager
def scripted(script: Script) -> Iterator[tuple[Client, list[BaseHTTPRequestHandler]]]:
    seen: list[BaseHTTPRequestHandler] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.close_connection = True
            with lock:
                seen.append(self)
                number = len(seen) - 1
            script(self, number)

        do_GET = do_POST = do_DELETE = do_PATCH = answer

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}", "espk_x") as client:
            yield client, seen
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


# -- downloads ---------------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 4096


def artifact(path: str, content: bytes = CONTENT) -> Artifact:
    return Artifact(
        path=path,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        media_type="application/octet-stream",
        url="/v1/file",
    )


FILE = artifact("sub/model.safetensors")


def part(folder: Path) -> Path:
    return folder / f"sub/.model.safetensors.{FILE.sha256[:16]}.part"


def fetch(client: Client, folder: Path) -> None:
    client.job_ref("job_x").download(folder, files=[FILE])


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    third = len(CONTENT) // 3

    def script(request: BaseHTTPRequestHandler, n: int) -> None:
        if n == 0:  # a third, then the connection breaks
            reply(request, 200, CONTENT[:third], Content_Length=str(len(CONTENT)))
        elif n > 1:  # one try hears nothing at all
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            reply(request, 206, CONTENT[start:], Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")

    with scripted(script) as (client, seen):
        fetch(client, tmp_path)
        assert (tmp_path / FILE.path).read_bytes() == CONTENT
        assert [request.headers["Range"] for request in seen] == [None, f"bytes={third}-", f"bytes={third}-"]
        fetch(client, tmp_path)  # complete: nothing is asked
        assert len(seen) == 3
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["model.safetensors"]


def test_a_download_that_is_given_up_is_gone_on_with_by_the_next(tmp_path: Path) -> None:
    third = len(CONTENT) // 3

    def script(request: BaseHTTPRequestHandler, n: int) -> None:
        if n == 0:
            reply(request, 200, CONTENT[:third], Content_Length=str(len(CONTENT)))
        elif n >= downloads.RECONNECTS:
            reply(request, 206, CONTENT[third:])

    with scripted(script) as (client, seen):
        with pytest.raises(Unreachable):
            fetch(client, tmp_path)
        assert len(seen) == downloads.RECONNECTS
        assert part(tmp_path).read_bytes() == CONTENT[:third]
        fetch(client, tmp_path)
    assert (tmp_path / FILE.path).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_the_whole_again(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    part(tmp_path).write_bytes(b"older")
    with scripted(lambda request, n: reply(request, 200, CONTENT)) as (client, seen):
        fetch(client, tmp_path)
        assert seen[0].headers["Range"] == "bytes=5-"
    assert (tmp_path / FILE.path).read_bytes() == CONTENT


def test_a_part_that_is_whole_only_gets_its_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    part(tmp_path).write_bytes(CONTENT)
    with scripted(lambda request, n: reply(request, 500, b"")) as (client, seen):
        fetch(client, tmp_path)
        assert seen == []
    assert (tmp_path / FILE.path).read_bytes() == CONTENT


def test_an_empty_file_is_made(tmp_path: Path) -> None:
    with scripted(lambda request, n: reply(request, 200, b"")) as (client, _):
        client.job_ref("job_x").download(tmp_path, files=[artifact("empty.txt", b"")])
    assert [p.name for p in tmp_path.iterdir()] == ["empty.txt"]


def test_other_bytes_than_announced_never_get_the_name(tmp_path: Path) -> None:
    for wrong in (CONTENT[::-1], CONTENT[:-1], CONTENT + b"x"):
        with scripted(lambda request, n, wrong=wrong: reply(request, 200, wrong)) as (client, _):
            with pytest.raises(CorruptFile):
                fetch(client, tmp_path)
            assert list((tmp_path / "sub").iterdir()) == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_files_come_at_once_and_one_refusal_ends_all(tmp_path: Path, kind: str) -> None:
    """Four are asked for before the first has answered; once one is refused, the rest is not asked for."""
    together = threading.Barrier(4, timeout=30)

    def script(request: BaseHTTPRequestHandler, n: int) -> None:
        together.wait()
        if n == 3:
            reply(request, 404, b'{"status": 404, "code": "not_found", "detail": "gone"}')
        else:
            with suppress(BrokenPipeError, ConnectionResetError):
                reply(request, 200, b"", Content_Length=str(10**12))
                while True:
                    request.wfile.write(b"x")
                    time.sleep(0.001)

    files = [artifact(f"{number}.bin").model_copy(update={"bytes": 10**12}) for number in range(40)]
    with scripted(script) as (client, seen):
        fetch = {
            "sync": lambda: client.job_ref("job_x").download(tmp_path, files=files),
            "async": lambda: asyncio.run(_download(client.url, tmp_path, files)),
        }[kind]
        with pytest.raises(APIError, match="gone"):
            fetch()
        assert len(seen) == 4
    assert not list(tmp_path.glob("*.bin"))


async def _download(url: str, folder: Path, files: list[Artifact]) -> None:
    async with AsyncClient(url) as client:
        await client.job_ref("job_x").download(folder, files=files)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..", "", "link/x"])
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="outside"):
        target(out, name)


# -- events ------------------------------------------------------------------------------------------------------------


def event(seq: int, kind: str) -> bytes:
    data = {"seq": seq, "type": kind, "attempt": 1, "data": {"n": seq}, "at": "2026-11-27T12:00:00.000Z"}
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def broken_stream(request: BaseHTTPRequestHandler, n: int) -> None:
    if n == 1:
        reply(request, 503, b"{}", Retry_After="0")
        return
    body = {
        0: event(1, "queued") + event(2, "running") + b"id: 3\nevent: st",  # cut inside an event
        2: b": ping\n\n",  # closed cleanly without news
        3: event(3, "stage") + b"event: end\ndata: {}\n\n",
    }[n]
    length = {} if n else {"Content_Length": str(len(body) + 100)}
    reply(request, 200, b"retry: 3000\n\n" + body, Content_Type="text/event-stream", **length)


EXPECTED = [("queued", 1), ("running", 2), ("stage", 3)]


def test_events_go_on_after_a_break() -> None:
    with scripted(broken_stream) as (client, seen):
        assert [(e.type, e.data["n"]) for e in client.job_ref("job_x").events()] == EXPECTED
        assert [s.headers["Last-Event-ID"] for s in seen] == ["0", "2", "2", "2"]


def test_events_go_on_after_a_break_for_the_other_client_too() -> None:
    async def follow(url: str) -> list[tuple[str, int]]:
        async with AsyncClient(url) as client:
            return [(e.type, e.data["n"]) async for e in client.job_ref("job_x").events()]

    with scripted(broken_stream) as (client, seen):
        assert asyncio.run(follow(client.url)) == EXPECTED
        assert [s.headers["Last-Event-ID"] for s in seen] == ["0", "2", "2", "2"]


# -- what is sent again ------------------------------------------------------------------------------------------------


def test_a_broken_connection_is_tried_again_only_where_that_is_harmless() -> None:
    def script(request: BaseHTTPRequestHandler, n: int) -> None:
        if n != 1:
            return  # hang up without a word
        reply(request, 200, b"{}")

    with scripted(script) as (client, seen):
        assert client.get("/v1/jobs") == {}
        assert len(seen) == 2
        with pytest.raises(Unreachable):
            client.job_ref("job_x").retry()
        assert len(seen) == 3


def filled(kind: type[Document]) -> dict[str, object]:
    """The smallest document that the client reads as one of these."""
    return {name: _value(field.annotation) for name, field in kind.model_fields.items() if field.is_required()}


def _value(kind: Any) -> object:
    if issubclass(get_origin(kind) or kind, Document):
        return filled(kind)
    return "2026-11-27T12:00:00.000Z" if kind is datetime else (get_origin(kind) or kind)()


def test_a_submission_is_repeated_under_one_key() -> None:
    def script(request: BaseHTTPRequestHandler, n: int) -> None:
        if n == 1:
            reply(request, 502, b"<p>proxy</p>")
        elif n > 1:
            reply(request, 202, json.dumps(filled(JobDocument)).encode())

    with scripted(script) as (client, seen):
        first = client.submit({})
        assert (first.status, len(seen)) == ("", 3)
        keys = {request.headers["Idempotency-Key"] for request in seen}
        client.submit({})
        client.submit({}, idempotency_key="mine")
    assert len(keys) == 1
    assert seen[3].headers["Idempotency-Key"] not in keys
    assert seen[4].headers["Idempotency-Key"] == "mine"


@pytest.mark.parametrize(
    ("status", "retry_after", "requests"),
    [
        *[(429, "0", 3), (503, "0", 3), (502, None, 3), (504, None, 3)],
        *[(429, "30", 1), (503, "30", 1), (500, None, 1), (422, None, 1), (404, "0", 1)],
    ],
)
def test_a_read_is_repeated_where_a_later_one_may_do_better(
    status: int, retry_after: str | None, requests: int
) -> None:
    headers = {} if retry_after is None else {"Retry_After": retry_after}
    with scripted(lambda request, n: reply(request, status, b"{}", **headers)) as (client, seen):
        with pytest.raises(APIError) as raised:
            client.me()
        assert len(seen) == requests
    assert raised.value.retry_after_s == (None if retry_after is None else float(retry_after))


def test_what_changes_something_is_repeated_only_where_nothing_was_done() -> None:
    """A 429 has done nothing; of a 503 and of a broken connection that is not known."""
    answers = [429, 503, 429, 429, 429]
    with scripted(lambda request, n: reply(request, answers[n], b"{}", Retry_After="0")) as (client, seen):
        with pytest.raises(ServiceUnwell):
            client.create_webhook("https://example.org")
        assert len(seen) == 2
        with pytest.raises(TooManyRequests):
            client.create_webhook("https://example.org")
        assert len(seen) == 5


def test_a_repeated_delete_that_finds_nothing_has_deleted_it() -> None:
    def script(request: BaseHTTPRequestHandler, n: int) -> None:
        if n:
            reply(request, 404, b'{"status": 404}')

    with scripted(script) as (client, seen):
        client.job_ref("job_x").delete()
        assert len(seen) == 2
        with pytest.raises(APIError):
            client.job_ref("job_x").delete()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None), ("", None), ("-1", None), ("1e3", None)],
)
def test_retry_after_is_a_number_or_a_date(text: str, seconds: float | None) -> None:
    refuses = scripted(lambda request, n: reply(request, 404, b"{}", Retry_After=text))
    with refuses as (client, _), pytest.raises(APIError) as raised:
        client.me()
    assert raised.value.retry_after_s == seconds


# -- answers of others -------------------------------------------------------------------------------------------------


def test_answers_that_are_no_problem_documents_are_told_too() -> None:
    with scripted(lambda request, n: reply(request, [418, 502][n], b"<p>proxy</p>")) as (client, _):
        with pytest.raises(APIError, match="proxy"):
            client.post("/v1/webhooks")
        with pytest.raises(ServiceUnwell, match="proxy"):
            client.post("/v1/webhooks")


@pytest.mark.parametrize("body", [b"<p>Welcome</p>", b"[]", b"{}", b"\xff"])
def test_another_server_is_told_from_this_service(body: bytes) -> None:
    with scripted(lambda request, n: reply(request, 200, body)) as (client, _), pytest.raises(UnexpectedAnswer):
        client.me()


def test_both_clients_give_up_after_the_same_number_of_tries() -> None:
    assert downloads.RECONNECTS == downloads_aio.RECONNECTS
