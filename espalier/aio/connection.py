"""Requests to the service: sent, sent again where that is safe, and their errors."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Self

import httpx2

from espalier import retries
from espalier.aio.runtime import sleep
from espalier.errors import APIError, UnexpectedAnswer, Unreachable, api_error
from espalier.queries import Query

LOCAL = "http://127.0.0.1:8000"
STREAM_TIMEOUT_S = 60
"""The service pings an event stream every 15 s: four missed ones mean it is gone."""


class AsyncConnection:
    """A connection to a service. Every method raises EspalierError, and of network and service nothing else."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 30,
        max_retries: int = 2,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Args:
            url: Where the service is. Default: ESPALIER_URL, or http://127.0.0.1:8000.
            api_key: Default: ESPALIER_API_KEY.
            timeout_s: How long an answer may take.
            max_retries: How often a request is sent again, where that is safe.
            transport: Another way to send requests, such as a proxy or a test's.
        """
        self.url = (url or os.environ.get("ESPALIER_URL") or LOCAL).rstrip("/")
        self.max_retries = max_retries
        api_key = api_key or os.environ.get("ESPALIER_API_KEY")
        headers = {"User-Agent": f"espalier-python/{version('espalier-llm')}"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = httpx2.Timeout(timeout_s, connect=5)
        # A proxy configured for the outside must not be asked for this machine.
        try:
            loopback = httpx2.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        except httpx2.InvalidURL as error:
            raise Unreachable(self.url, error) from error
        self._http = httpx2.AsyncClient(
            base_url=self.url, headers=headers, timeout=self._timeout, trust_env=not loopback, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. `with` does it by itself."""
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Query | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> httpx2.Response:
        """The response to any request of the API: 2xx, or 304 where the headers ask for it. Others are raised.

        It is sent again as `espalier.retries` says; `repeatable` is for what that module cannot know.
        """
        headers = dict(headers or {})
        query = httpx2.QueryParams([*(params or [])])
        safe = retries.is_repeatable(method, headers) if repeatable is None else repeatable
        failures = 0
        while True:
            try:
                response = await self._http.request(method, path, params=query, json=json, headers=headers)
            except httpx2.TransportError as error:
                failures += 1
                if failures > self.max_retries or not retries.after_error(error, repeatable=safe):
                    raise Unreachable(self.url, error) from error
                await sleep(retries.pause_s(failures))
                continue
            gone = failures > 0 and method == "DELETE" and response.status_code == 404
            if response.is_success or response.status_code == 304 or gone:  # gone: an earlier try has deleted it
                return response
            failures += 1
            if failures > self.max_retries or not retries.after_answer(response, repeatable=safe):
                raise problem(response)
            await sleep(retries.pause_s(failures, retries.retry_after_s(response)))

    async def get(
        self,
        path: str,
        *,
        params: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON at a path of the API."""
        return json_of(await self.request("GET", path, params=params, headers=headers))

    async def post(
        self,
        path: str,
        body: Any = None,
        *,
        params: Query | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> Any:
        """The JSON that answers a POST."""
        response = await self.request("POST", path, params=params, json=body, headers=headers, repeatable=repeatable)
        return json_of(response)

    @asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """A response whose body is read as it comes. It is not sent again: only the reader knows what it has."""
        timeout = httpx2.Timeout(STREAM_TIMEOUT_S, connect=5)
        headers = {"Accept-Encoding": "identity", **headers}
        try:
            async with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                    raise problem(response)
                yield response
        except httpx2.TransportError as error:
            raise Unreachable(self.url, error) from error


def json_of(response: httpx2.Response) -> Any:
    """The JSON of an answer."""
    try:
        return response.json()
    except ValueError as error:
        kind = response.headers.get("Content-Type", "nothing said")
        raise UnexpectedAnswer(f"{response.url} answered with {kind}, not with JSON") from error


def problem(response: httpx2.Response) -> APIError:
    """The exception for an answer that refuses, also where it is no problem document, as of a proxy."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"title": response.reason_phrase, "detail": response.text[:500]}
    document = {**document, "status": response.status_code}
    return api_error(document, retry_after_s=retries.retry_after_s(response))
