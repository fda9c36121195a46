"""The client against a service, or something between, that means it ill or is of another version."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from espalier import (
    AsyncClient,
    Client,
    CorruptFile,
    EspalierError,
    JobCancelled,
    NotFound,
    TooManyRequests,
    Unauthenticated,
    UnexpectedAnswer,
    Unreachable,
    UnsafePath,
    retries,
)
from espalier.documents import Artifact
from espalier.files import targets
from espalier.sync import connection

Answer = Callable[[httpx2.Request], httpx2.Response]
KEY = "espk_secret"
JOB = {
    **dict.fromkeys(("created_at", "updated_at"), "2026-11-27T12:00:00Z"),
    **dict.fromkeys(("attempt", "priority", "max_attempts", "attempts_left", "deadline_s", "stored_bytes"), 1),
    "id": "job_x",
    "status": "queued",
    "labels": {},
    "spec": {},
    "spec_digest": "sha256:0",
    "durations": {"device_s": 0},
    "retention": {"keep": "all", "days": 0, "pinned": False},
}


def client(answer: Answer, url: str = "http://service.example") -> Client:
    return Client(url, KEY, max_retries=0, transport=httpx2.MockTransport(answer))


def artifact(path: str = "file", size: int = 3, url: str = "/v1/file") -> Artifact:
    return Artifact(path=path, bytes=size, sha256="0" * 64, media_type="text/plain", url=url)


def job(**more: Any) -> httpx2.Response:
    return httpx2.Response(200, json={**JOB, **more})


# -- where the key goes, and what it is seen in ------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["https://other.example/x", "//other.example/x", "http://service.example:81/x"])
def test_the_key_goes_to_no_other_server(tmp_path: Path, url: str) -> None:
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(404, json={})

    with pytest.raises(UnexpectedAnswer, match="another server"):
        client(answer).job_ref("job_x").download(tmp_path, files=[artifact(url=url)])
    assert not asked


def test_no_name_is_a_path() -> None:
    asked: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.raw_path)
        return httpx2.Response(404, json={})

    for ask in (Client.model, Client.job, Client.sweep, Client.webhook):
        with pytest.raises(NotFound):
            ask(client(answer), "../x?y")
    assert [path.rpartition(b"/")[2] for path in asked] == [b"%2E%2E%2Fx%3Fy"] * 4


def test_a_redirect_is_not_followed() -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.host)
        return httpx2.Response(307, headers={"Location": "http://other.example/"})

    with pytest.raises(EspalierError):
        client(answer).me()
    assert asked == ["service.example"]


@pytest.mark.parametrize("job_id", ["..", "../keys", "a/b", "a?x=1", "a#b", "a\nb", "//other.example/x"])
def test_an_id_is_one_part_of_a_path(job_id: str) -> None:
    asked: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.raw_path)
        return httpx2.Response(404, json={})

    with pytest.raises(NotFound):
        client(answer).job_ref(job_id).delete()
    head, slash, rest = asked[0].rpartition(b"/")
    assert (head + slash, rest.isascii()) == (b"/v1/jobs/", True)
    assert not set(rest) & set(b".?#\n")


def test_no_error_shows_the_password_of_an_address() -> None:
    address = "http://someone:hidden@127.0.0.1:1"
    with pytest.raises(Unreachable) as refused:
        Client(address, KEY, max_retries=0).me()
    with pytest.raises(UnexpectedAnswer) as odd:
        client(lambda request: httpx2.Response(200, text="hi"), address).me()
    assert "hidden" not in f"{refused.value} {refused.value.url} {odd.value}"


@pytest.mark.parametrize("key", ["espk_é", "espk_a\nX-Other: 1", "espk_\x00"])
def test_what_can_be_no_key_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        Client("http://service.example", key)
    assert "espk_" not in str(refused.value)


def test_the_space_around_a_key_is_not_part_of_it() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(404, json={"detail": request.headers["Authorization"]})

    with (
        Client("http://service.example", f"{KEY}\n", transport=httpx2.MockTransport(answer)) as made,
        pytest.raises(NotFound) as refused,
    ):
        made.me()
    assert refused.value.detail == f"Bearer {KEY}"


# -- bodies and pauses without an end ----------------------------------------------------------------------------------


def endless(bound: int) -> Iterator[bytes]:
    for _ in range(bound // 2**10 + 2):
        yield bytes(2**10)
    raise AssertionError("it is read without an end")


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_has_an_end(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LARGEST_BYTES", 2**20)
    with pytest.raises(UnexpectedAnswer, match="more than"):
        client(lambda request: httpx2.Response(status, content=endless(2**20))).me()


def test_no_file_grows_beyond_what_was_announced(tmp_path: Path) -> None:
    made = client(lambda request: httpx2.Response(200, content=endless(2**20)))
    with pytest.raises(CorruptFile, match="more than"):
        made.job_ref("job_x").download(tmp_path, files=[artifact(size=2**20)])
    assert not list(tmp_path.iterdir())


def test_a_long_pause_is_left_to_the_caller_whatever_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "pause_s", lambda *_: pytest.fail("it waits"))
    ref = client(lambda request: httpx2.Response(429, json={}, headers={"Retry-After": "9999999"})).job_ref("job_x")
    with pytest.raises(TooManyRequests):
        list(ref.events())
    with pytest.raises(TooManyRequests):
        ref.download(tmp_path, files=[artifact()])


def test_a_stream_that_says_nothing_is_asked_for_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr("espalier.sync.events.sleep", sleep)
    silent = client(lambda request: httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=b""))
    with pytest.raises(KeyboardInterrupt):
        list(silent.job_ref("job_x").events())
    assert pauses[-1] > 5


def test_no_event_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"seq": 1, "type": "queued", "attempt": 1, "data": {}, "at": "2026-11-27T12:00:00Z"}
    body = f"data: {json.dumps(event)}\n\n" * 2 + "event: end\ndata: {}\n\n"
    made = client(lambda request: httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, text=body))
    assert [each.seq for each in made.job_ref("job_x").events()] == [1]


def test_a_wait_is_not_cut_short_by_the_timeout_and_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something in between answers at once, as a cache does, the client pauses between two questions."""
    timeouts: list[float] = []
    pauses: list[float] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        timeouts.append(request.extensions["timeout"]["read"])
        if len(timeouts) < 3:
            return httpx2.Response(304 if len(timeouts) == 2 else 200, json=JOB, headers={"ETag": '"1"'})
        return job(status="succeeded")

    monkeypatch.setattr("espalier.sync.jobs.sleep", pauses.append)
    made = Client("http://service.example", KEY, timeout_s=2, transport=httpx2.MockTransport(answer))
    assert made.job_ref("job_x").wait().status == "succeeded"
    assert timeouts == [2, 22, 22]
    assert pauses == [1]


# -- answers that are odd, or of another version -----------------------------------------------------------------------

DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "answer",
    [
        *(
            httpx2.Response(200, content=body)
            for body in (DEEP, b"[]", b"{}", b'{"data": null}', b"3", b'{"data": [3]}')
        ),
        *(httpx2.Response(400, content=body) for body in (DEEP, b"3", b'{"errors": ["x"]}', b'{"errors": 3}')),
        httpx2.Response(400, json={"errors": [{"pointer": None, "allowed": 3}], "code": [], "status": "x"}),
        httpx2.Response(204),
    ],
)
def test_whatever_is_answered_only_errors_of_the_client_are_raised(answer: httpx2.Response) -> None:
    made = client(lambda request: answer)
    for ask in (
        made.workers,
        lambda: list(made.jobs()),
        made.job_ref("job_x").refresh,
        made.job_ref("job_x").artifacts,
    ):
        with pytest.raises(EspalierError):
            ask()


def test_what_cannot_be_unpacked_is_an_error_of_the_client() -> None:
    headers = {"Content-Encoding": "gzip"}
    with pytest.raises(EspalierError):
        client(lambda request: httpx2.Response(200, stream=httpx2.ByteStream(b"no gzip"), headers=headers)).me()


@pytest.mark.parametrize("data", [b"{bad", b"3", DEEP], ids=["cut", "number", "deep"])
def test_an_event_that_is_none_is_an_error_of_the_client(data: bytes) -> None:
    body = b"data: " + data + b"\n\n"
    made = client(lambda request: httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=body))
    with pytest.raises(UnexpectedAnswer):
        list(made.job_ref("job_x").events())


@pytest.mark.parametrize("name", ["logs", "wait", "raw", "ended", "_connection", "__class__", "take", "read"])
def test_what_a_newer_service_adds_replaces_no_method(name: str) -> None:
    added: dict[str, Any] = {name: {"a": 1}}
    found = client(lambda request: job(**added)).job("job_x")
    found.refresh().refresh()
    assert callable(found.logs)
    assert callable(found.wait)
    assert found.ended is False
    assert found.raw[name] == {"a": 1}


def test_a_field_that_is_gone_is_not_kept_from_before() -> None:
    answers = iter([job(place=1), job()])
    found = client(lambda request: next(answers)).job("job_x")
    assert found.place == 1  # type: ignore[attr-defined]
    assert not hasattr(found.refresh(), "place")


def test_a_job_that_failed_without_a_reason() -> None:
    with pytest.raises(UnexpectedAnswer):
        client(lambda request: job(status="failed")).job("job_x").raise_unless_succeeded()


def test_a_timeout_of_none_is_for_ever() -> None:
    timeouts: list[object] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        timeouts.append(request.extensions["timeout"]["read"])
        return job(status="succeeded")

    made = Client("http://service.example", KEY, timeout_s=None, transport=httpx2.MockTransport(answer))
    assert made.job_ref("job_x").wait().status == "succeeded"
    assert timeouts == [None]


@pytest.mark.parametrize("at_once", [0, -1])
def test_to_fetch_no_file_at_a_time_is_an_error_and_no_wait_for_ever(tmp_path: Path, at_once: int) -> None:
    async def fetch() -> None:
        async with AsyncClient("http://service.example", KEY) as made:
            await made.job_ref("job_x").download(tmp_path, files=[artifact()], at_once=at_once)

    with pytest.raises(ValueError, match="at least one"):
        asyncio.run(asyncio.wait_for(fetch(), 10))


# -- names of files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a\0b", "\x1b[2Ja", "a\nb", "..\\x", "C:x", "C:\\x", "\u202egpj.exe", "\ud800"])
def test_names_that_do_something_to_a_terminal_or_another_system_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafePath) as refused:
        targets(tmp_path, [artifact(name)])
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("sub/ä", "sub/a\u0308"), ("a/b", "a//b"), ("a", "./a")])
def test_two_names_of_one_file_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(UnsafePath, match="one file"):
        targets(tmp_path, [artifact(name) for name in names])


# -- other processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda: client(lambda request: httpx2.Response(429, json={"code": "x"}, headers={"Retry-After": "30"})).me(),
        lambda: Client("http://127.0.0.1:1", max_retries=0).me(),
        lambda: client(lambda request: job(status="cancelled")).job("job_x").raise_unless_succeeded(),
        lambda: (
            client(
                lambda request: job(
                    status="failed", error={"code": "c", "message": "m", "hint": "h", "retryable": False, "attempt": 1}
                )
            )
            .job("job_x")
            .raise_unless_succeeded()
        ),
    ],
)
def test_errors_come_out_of_another_process_as_they_are(ask: Callable[[], object]) -> None:
    with pytest.raises(EspalierError) as raised:
        ask()
    again = pickle.loads(pickle.dumps(raised.value))
    assert type(again) is type(raised.value)
    assert str(again) == str(raised.value)
    assert vars(again).keys() == vars(raised.value).keys()
    assert again.remedy == raised.value.remedy


def test_a_key_is_not_pickled_and_a_job_is_copied() -> None:
    found = client(lambda request: job()).job("job_x")
    with pytest.raises(TypeError, match="pass on"):
        pickle.dumps(found)
    assert copy.deepcopy(found).refresh().id == "job_x"
    assert isinstance(JobCancelled("job_x"), EspalierError)
