"""Requests to the service: sent, sent again where that is safe, and their errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NoReturn, Self

import httpx2

from espalier import retries
from espalier.errors import APIError, Unauthenticated, UnexpectedAnswer, Unreachable, api_error
from espalier.queries import Query
from espalier.sync.runtime import sleep

LOCAL = "http://127.0.0.1:8000"
LARGEST_BYTES = 2**28
"""Of an answer, unpacked, that is held in memory; files and events are read as they come."""
OF_TRANSFER = ("content-encoding", "content-length", "transfer-encoding")
"""Headers that say nothing of a body once it is unpacked."""
STREAM_TIMEOUT_S = 60
"""The service pings an event stream every 15 s: four missed ones mean it is gone."""


class Connection:
    """A connection to a service. Every method raises EspalierError, and of network and service nothing else."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float | None = 30,
        max_retries: int = 2,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: Where the service is. Default: ESPALIER_URL, or http://127.0.0.1:8000.
            api_key: Default: ESPALIER_API_KEY.
            timeout_s: How long the service may be silent; None is for ever.
            max_retries: How often a request is sent again, where that is safe.
            transport: Another way to send requests, such as a proxy or a test's.
        """
        url = (url or os.environ.get("ESPALIER_URL") or LOCAL).rstrip("/")
        self.max_retries = max_retries
        api_key = api_key or os.environ.get("ESPALIER_API_KEY")
        headers = {"User-Agent": f"espalier-python/{version('espalier-llm')}"}
        if api_key:
            headers["Authorization"] = f"Bearer {checked_key(api_key)}"
        self._timeout_s = timeout_s
        try:
            self._base = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise Unreachable(url, error) from error
        self.url = str(self._base.copy_with(userinfo=b"")).rstrip("/")
        """Where the service is, without a password that is in the address."""
        # A proxy configured for the outside must not be asked for this machine.
        loopback = self._base.host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx2.Client(base_url=self._base, headers=headers, trust_env=not loopback, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. `with` does it by itself."""
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Query | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
        wait_s: float = 0,
    ) -> httpx2.Response:
        """The response to any request of the API: 2xx, or 304 where the headers ask for it. Others are raised.

        It is sent again as `espalier.retries` says; `repeatable` is for what that module cannot know. The service may
        be silent `wait_s` longer, for that is asked of it.
        """
        headers = dict(headers or {})
        path = self._own(path)
        timeout = httpx2.Timeout(None if self._timeout_s is None else self._timeout_s + wait_s, connect=5)
        query = httpx2.QueryParams([*(params or [])])
        safe = retries.is_repeatable(method, headers) if repeatable is None else repeatable
        failures = 0
        while True:
            try:
                sent = self._http.stream(method, path, params=query, json=json, headers=headers, timeout=timeout)
                with sent as answer:
                    response = _whole(answer)
            except httpx2.RequestError as error:
                failures += 1
                if failures > self.max_retries or not retries.after_error(error, repeatable=safe):
                    raise Unreachable(self.url, error) from error
                sleep(retries.pause_s(failures))
                continue
            gone = failures > 0 and method == "DELETE" and response.status_code == 404
            if response.is_success or response.status_code == 304 or gone:  # gone: an earlier try has deleted it
                return response
            failures += 1
            if failures > self.max_retries or not retries.after_answer(response, repeatable=safe):
                raise problem(response)
            sleep(retries.pause_s(failures, retries.retry_after_s(response)))

    def get(
        self,
        path: str,
        *,
        params: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON at a path of the API."""
        return json_of(self.request("GET", path, params=params, headers=headers))

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        params: Query | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> Any:
        """The JSON that answers a POST."""
        response = self.request("POST", path, params=params, json=body, headers=headers, repeatable=repeatable)
        return json_of(response)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """A response whose body is read as it comes. It is not sent again: only the reader knows what it has."""
        timeout = httpx2.Timeout(STREAM_TIMEOUT_S, connect=5)
        headers = {"Accept-Encoding": "identity", **headers}
        path = self._own(path)
        try:
            with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    raise problem(_whole(response))
                yield response
        except httpx2.RequestError as error:
            raise Unreachable(self.url, error) from error

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client holds connections and a key: make one in each process, and pass on a job's `id`")

    def __deepcopy__(self, memo: object) -> Self:
        return self  # of a job that is copied

    def _own(self, path: str) -> str:
        """The path. Raises UnexpectedAnswer where it leads to another server: the key goes along with each request."""
        try:
            url = httpx2.URL(path)
        except httpx2.InvalidURL as error:
            raise UnexpectedAnswer(f"{path!r} is no path of the service's: {error}") from error
        if url.scheme or url.host:
            raise UnexpectedAnswer(f"{path!r} is on another server, which is not given the key")
        return path


def checked_key(key: str) -> str:
    """The key without the space around it, as in a file it was read from. Raises Unauthenticated where it can be
    none."""
    key = key.strip()
    if key.isascii() and key.isprintable():
        return key
    detail = "A key is letters, digits and underscores: check api_key or ESPALIER_API_KEY."
    raise Unauthenticated({"status": 401, "code": "invalid_key", "title": "The key is not valid", "detail": detail})


def _whole(response: httpx2.Response) -> httpx2.Response:
    """The response with its body, which has an end."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > LARGEST_BYTES:
            raise UnexpectedAnswer(f"{_shown(response)} answered with more than {LARGEST_BYTES:,} bytes")
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in OF_TRANSFER]
    return httpx2.Response(
        response.status_code,
        headers=headers,
        content=bytes(body),
        request=response.request,
        extensions=response.extensions,
    )


def json_of(response: httpx2.Response) -> Any:
    """The JSON of an answer."""
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        kind = response.headers.get("Content-Type", "nothing said")
        raise UnexpectedAnswer(f"{_shown(response)} answered with {kind}, not with JSON") from error


def problem(response: httpx2.Response) -> APIError:
    """The exception for an answer that refuses, also where it is no problem document, as of a proxy."""
    try:
        document = response.json()
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        document = {"title": response.reason_phrase, "detail": response.text[:500]}
    document = {**document, "status": response.status_code}
    return api_error(document, retry_after_s=retries.retry_after_s(response))


def _shown(response: httpx2.Response) -> str:
    """Its address, without a password that is in it."""
    return str(response.request.url.copy_with(userinfo=b""))
