"""A database that somebody else has locked: probes answer, and every other request gets a 503 in its time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, text

from app.http import route
from app.jobs import repository, status_reader
from app.services import Services
from tests.helpers.api import SPEC

AT_ONCE = 60
WITHIN_S = 5


@contextmanager
def locked(database_url: str) -> Iterator[None]:
    """SQLite: nobody can write. PostgreSQL: nobody can read either."""
    sqlite = database_url.startswith("sqlite")
    engine = create_engine(database_url)
    with engine.connect() as connection:
        if sqlite:
            connection.connection.driver_connection.isolation_level = None  # type: ignore[union-attr]
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
        else:
            connection.execute(text("lock table jobs, api_keys, outbox in access exclusive mode"))
        yield
        connection.rollback()
    engine.dispose()


def ask(server: httpx2.Client, *requests: tuple[str, str]) -> list[httpx2.Response]:
    """The answers to all of them at once, each within its time, with the probes answering meanwhile."""

    async def run() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=server.base_url, headers=server.headers, timeout=WITHIN_S, limits=limits, trust_env=False
        ) as client:
            asked = [
                asyncio.create_task(client.request(method, path, json={"spec": SPEC} if method == "POST" else None))
                for method, path in requests
            ]
            await asyncio.sleep(0.3)
            assert (await client.get("/livez")).status_code == 200
            ready = await client.get("/readyz")
            assert ready.status_code == 200 or ready.json()["code"] == "database_unreachable"
            return list(await asyncio.gather(*asked))

    return asyncio.run(run())


def refused(answers: list[httpx2.Response]) -> None:
    for response in answers:
        problem: dict[str, Any] = response.json()
        assert (response.status_code, problem["retryable"]) == (503, True), problem
        assert int(response.headers["Retry-After"]) > 0


def test_requests_are_refused_in_time_and_probes_answer(server: httpx2.Client, database_url: str) -> None:
    job = server.post("/v1/jobs", json={"spec": SPEC}).json()["id"]
    writes = [("POST", "/v1/jobs"), ("POST", f"/v1/jobs/{job}/cancel"), ("DELETE", f"/v1/jobs/{job}")]
    reads = [("GET", "/v1/jobs"), ("GET", f"/v1/jobs/{job}"), ("GET", "/v1/sweeps"), ("GET", f"/v1/jobs/{job}/events")]
    with locked(database_url):
        refused(ask(server, *writes * (AT_ONCE // 3)))
        answers = ask(server, *reads * (AT_ONCE // 4))
        if database_url.startswith("sqlite"):
            assert {response.status_code for response in answers} == {200}
        else:
            refused(answers)
    assert server.get("/readyz").status_code == 200
    assert server.post("/v1/jobs", json={"spec": SPEC}).status_code == 202


def test_a_frozen_database(server: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes questions and says nothing, not even no."""
    monkeypatch.setattr(status_reader, "LONGEST_LOOK_S", 0.3)
    thawed = threading.Event()
    ask_it = repository.keys_and_jobs

    def frozen(*args: Any) -> Any:
        thawed.wait()
        return ask_it(*args)

    monkeypatch.setattr(repository, "keys_and_jobs", frozen)
    try:
        refused(ask(server, *[("GET", "/v1/jobs")] * AT_ONCE))
    finally:
        thawed.set()
    assert server.get("/v1/jobs").status_code == 200


def test_what_cannot_begin_soon_is_refused(
    server: httpx2.Client, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More work than slots."""
    monkeypatch.setattr(route, "SLOT_WAIT_S", 0.1)
    has: Services = app.state.services
    object.__setattr__(has, "slots", asyncio.Semaphore(0))
    refused([server.get("/v1/jobs")])
    assert server.get("/readyz").status_code == 200
    assert server.get("/metrics").status_code == 200
