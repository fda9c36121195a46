"""The HTTP client of the command line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx2

from app.cli.exits import Refused, Unreachable

TIMEOUT = httpx2.Timeout(30, connect=5)
STREAM_TIMEOUT = httpx2.Timeout(60, connect=5)
"""The service pings an event stream every 15 s: four missed ones mean it is gone."""
RECONNECTS = 8
"""Failed attempts in a row to follow a stream, about a minute, before it counts as gone."""


@dataclass(frozen=True)
class JobEvent:
    type: str
    attempt: int
    data: dict[str, Any]


class Service:
    """A connection to the service: every method raises Refused or Unreachable, nothing else."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        headers = {"User-Agent": "espalier-cli"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        loopback = httpx2.URL(url).host in ("127.0.0.1", "localhost", "::1")
        # A proxy configured for the outside must not be asked for this machine.
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=not loopback)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        params: dict[str, Any] | list[tuple[str, Any]] | None = None,
        json: Any = None,
        timeout: httpx2.Timeout = TIMEOUT,
    ) -> httpx2.Response:
        """The response, if its status is below 400. A request that is safe to repeat is sent again if the connection
        breaks."""
        repeatable = method in ("GET", "DELETE") or "Idempotency-Key" in (headers or {})
        for last in (False, True) if repeatable else (True,):
            try:
                response = self._http.request(method, path, headers=headers, params=params, json=json, timeout=timeout)
            except httpx2.TransportError as error:
                if last:
                    raise self._unreachable(error) from error
                time.sleep(0.5)
            else:
                return _checked(response)
        raise AssertionError("unreachable")

    def get(self, path: str, **kwargs: Any) -> Any:
        """The JSON at `path`."""
        return self.request("GET", path, **kwargs).json()

    @contextmanager
    def stream(self, path: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """A response whose body is streamed."""
        try:
            headers = {"Accept-Encoding": "identity", **headers}
            with self._http.stream("GET", path, headers=headers, timeout=STREAM_TIMEOUT) as response:
                if response.is_error:
                    response.read()
                yield _checked(response)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def events(self, job_id: str) -> Iterator[JobEvent]:
        """The job's events from its first to its last. A broken stream is taken up where it broke (Last-Event-ID)."""
        last_id, failures = "0", 0
        while True:
            try:
                with self.stream(
                    f"/v1/jobs/{job_id}/events", {"Accept": "text/event-stream", "Last-Event-ID": last_id}
                ) as response:
                    for message in httpx2.EventSource(response):
                        failures = 0
                        if not message.data:  # only a `retry:`
                            continue
                        if message.event == "end":
                            return
                        last_id = message.id
                        body: Any = message.json()
                        yield JobEvent(message.event, body["attempt"], body["data"])
            except Unreachable:
                failures += 1
                if failures == RECONNECTS:
                    raise
            # Also after a clean end: the service closes long-lived streams so that it can be redeployed.
            time.sleep(min(0.2 * 2**failures, 15))

    def _unreachable(self, error: httpx2.TransportError) -> Unreachable:
        return Unreachable(
            f"{self.url}: {error or type(error).__name__}\n"
            "Is the service running (`espalier serve`)? Another address is given by --url or ESPALIER_URL."
        )


def _checked(response: httpx2.Response) -> httpx2.Response:
    if response.is_success or response.status_code == 304:
        return response
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"title": response.reason_phrase, "status": response.status_code, "detail": response.text[:500]}
    refused = Refused(problem)
    if response.status_code >= 500:
        raise Unreachable(str(refused))
    raise refused
