"""The short way to the endpoints asked most answers as FastAPI's own way does."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from app.jobs.endpoints import hot_routes
from tests.helpers.api import SPEC, Api

JSON = {"Content-Type": "application/json"}
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/v1/jobs", {}),
    ("GET", "/v1/jobs?limit=1&status=queued,failed&label=a:b&label=c:", {}),
    ("GET", "/v1/jobs?limit=0", {}),
    ("GET", "/v1/jobs?limit=x&verdict=maybe&created_after=today", {}),
    ("GET", "/v1/jobs?status=odd&limit=0", {}),
    ("GET", "/v1/jobs?label=a", {}),
    ("GET", "/v1/jobs?cursor=abc", {}),
    ("GET", "/v1/jobs?nope=1", {}),
    ("GET", "/v1/jobs?limit=1&limit=2", {}),
    ("GET", "/v1/jobs?limit=%zz", {}),
    ("GET", "/v1/jobs", {"headers": {"Authorization": "Bearer no"}}),
    ("HEAD", "/v1/jobs", {}),
    ("PUT", "/v1/jobs", {}),
    ("GET", "/v1/jobs/", {}),
    ("POST", "/v1/jobs", {}),
    ("POST", "/v1/jobs", {"json": {}}),
    ("POST", "/v1/jobs", {"json": []}),
    ("POST", "/v1/jobs", {"json": {"spec": {**SPEC, "seed": "one"}, "labels": {"A": "b"}, "more": 1}}),
    ("POST", "/v1/jobs", {"content": b"{", "headers": JSON}),
    ("POST", "/v1/jobs", {"content": b"null", "headers": JSON}),
    ("POST", "/v1/jobs", {"content": b"{}", "headers": {"Content-Type": "text/plain"}}),
    ("POST", "/v1/jobs", {"json": {"spec": SPEC}, "headers": {"Idempotency-Key": ""}}),
    ("POST", "/v1/jobs?dry_run=maybe", {"json": {"spec": 1}}),
    ("POST", "/v1/jobs?dry_run=true", {"json": {"spec": SPEC}}),
    ("POST", "/v1/jobs?dry_run=true", {"json": {"spec": {**SPEC, "model": {"id": "none"}}}}),
    ("POST", "/v1/jobs", {"json": {"spec": SPEC}, "headers": {"Authorization": "Bearer no"}}),
]


def answers(api: Api) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for method, path, details in REQUESTS:
        response = api.client.request(method, path, **details)
        body = response.json() if response.content else None
        if isinstance(body, dict):
            body.pop("request_id", None)
        names = ("allow", "www-authenticate", "content-type", "cache-control", "link", "retry-after")
        found.append((method, path, response.status_code, body, {name: response.headers.get(name) for name in names}))
    return found


def test_as_fastapis_own_way(api: Api, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    api.submit()
    short = answers(api)
    monkeypatch.setattr(app.router, "routes", [route for route in app.router.routes if route not in hot_routes])
    assert short == answers(api)
    assert len({status for _, _, status, _, _ in short}) >= 7
