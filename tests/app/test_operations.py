"""Probes, metrics, request ids, log lines, and bugs: what an operator meets."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
import structlog
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError, OperationalError
from starlette.testclient import TestClient

from app.db import clock, now_ms
from app.http import middleware
from app.jobs import fleet, preflight, repository
from app.jobs.models import Job, Outbox
from app.main import create_app
from app.settings import Settings
from app.storage import StorageError
from tests.helpers.api import SPEC, W1, Api, make_key
from tests.helpers.job_life import worker


def metrics(api: Api) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    response = api.client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


class TestProbes:
    def test_livez_asks_no_database(self, api: Api) -> None:
        api.database.dispose()
        object.__setattr__(api.services, "database", None)
        assert api.client.get("/livez").json() == {"status": "ok"}

    def test_readyz(self, api: Api) -> None:
        response = api.client.get("/readyz")
        assert (response.status_code, response.json()["status"], response.json()["broker"]) == (200, "ok", "ok")

    def test_readyz_wants_the_schema_of_this_version(self, api: Api) -> None:
        with api.database.write() as session:
            session.execute(text("update alembic_version set version_num = '0001'"))
        response = api.client.get("/readyz")
        assert (response.status_code, response.json()["code"]) == (503, "schema_mismatch")
        assert "espalier db upgrade" in response.json()["detail"]

    def test_readyz_wants_a_database(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        def unreachable(database: object) -> str:
            raise OperationalError("select", {}, Exception("refused"))

        monkeypatch.setattr("app.migrate.current", unreachable)
        response = api.client.get("/readyz")
        assert (response.status_code, response.json()["code"]) == (503, "database_unreachable")

    def test_a_dead_broker_shows_and_fails_nothing(self, settings: Settings) -> None:
        """Redis that refuses connections: jobs are accepted, readiness says so, the message waits."""
        dead = settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"})
        app = create_app(dead)
        with TestClient(app) as client:
            key, _, _ = make_key(app.state.services, "ours")
            response = client.post("/v1/jobs", json={"spec": SPEC}, headers={"Authorization": f"Bearer {key}"})
            assert response.status_code == 202
            with app.state.services.database.write() as session:
                session.execute(update(Outbox).values(due_at=now_ms() - 60_000))
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["broker"]) == (200, "unreachable")


class TestMetrics:
    def test_count_the_jobs_by_status(self, api: Api) -> None:
        api.submit()
        api.submit()
        api.fail(api.claim())
        found = metrics(api)
        assert found["espalier_jobs", (("status", "queued"),)] == 1
        assert found["espalier_jobs", (("status", "failed"),)] == 1
        assert found["espalier_jobs", (("status", "running"),)] == 0
        assert found["espalier_job_failures_total", (("code", "runner_died"),)] == 1

    def test_count_the_devices_of_live_workers(self, api: Api) -> None:
        with api.database.write() as session:
            fleet.make_known(session, worker("g", "gpu", 4), ttl_s=60)
            fleet.make_known(session, worker("dead", "gpu", 8), ttl_s=-1)
        api.submit(SPEC | {"compute": {"devices": 3}})
        api.claim()
        found = metrics(api)
        assert found["espalier_devices", (("kind", "cpu"),)] == len(W1.devices)
        assert found["espalier_devices", (("kind", "gpu"),)] == 4
        assert found["espalier_devices_held", ()] == 3

    def test_tell_what_waits_too_long(self, api: Api) -> None:
        api.submit()
        api.submit()
        held = api.claim()
        with api.database.write() as session:
            session.execute(update(Job).where(Job.id == held.job_id).values(lease_expires_at=now_ms() - 1000))
            session.execute(update(Job).where(Job.id != held.job_id).values(queued_at=now_ms() - 90_000))
            session.add(Outbox(job_id=held.job_id, queue="any", due_at=clock(session) + 3_600_000))
        found = metrics(api)
        assert found["espalier_lease_expired", ()] == 1
        assert found["espalier_queue_oldest_seconds", ()] == pytest.approx(90, abs=5)
        assert found["espalier_outbox_pending", ()] >= 1
        assert found["espalier_outbox_oldest_seconds", ()] < 5

    def test_time_requests_by_route_not_by_path(self, api: Api) -> None:
        job = api.submit()
        api.get(job)
        api.client.get("/v1/jobs/job_0")
        api.client.get("/some/where/else")
        api.client.request("BREW", "/v1/jobs")
        found = metrics(api)
        name = "espalier_http_request_duration_seconds_count"
        for method, route, status in (
            ("GET", "/v1/jobs/{job_id}", "200"),
            ("GET", "/v1/jobs/{job_id}", "404"),
            ("GET", "unmatched", "404"),
            ("other", "/v1/jobs", "405"),
        ):
            assert found[name, (("method", method), ("route", route), ("status", status))] == 1

    def test_name_no_tenant_and_no_job(self, api: Api) -> None:
        job = api.submit()
        page = api.client.get("/metrics").text
        assert job["id"] not in page
        assert api.tenant_id not in page


class TestRequestIds:
    def test_are_taken_over_if_they_are_sane(self, api: Api) -> None:
        assert api.client.get("/livez", headers={"X-Request-ID": "a-1"}).headers["X-Request-ID"] == "a-1"
        for bad in ("", "a b", "x" * 129, 'a"b', "é".encode()):
            given = api.client.get("/livez", headers={"X-Request-ID": bad}).headers["X-Request-ID"]
            assert given.startswith("req_")

    def test_stand_in_every_problem(self, api: Api) -> None:
        response = api.client.get("/nowhere", headers={"X-Request-ID": "a-1"})
        assert response.json()["request_id"] == "a-1"


class TestLogLines:
    @pytest.fixture
    def lines(self, settings: Settings, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
        def run(level: str, *requests: tuple[str, str]) -> list[dict[str, Any]]:
            # A logger keeps the level of its first use, and this process has had other apps.
            monkeypatch.setattr(middleware, "log", structlog.get_logger("app.requests"))
            app = create_app(settings.model_copy(update={"log_level": level}))
            with TestClient(app) as client:
                key, _, _ = make_key(app.state.services, "ours")
                capfd.readouterr()
                for method, path in requests:
                    client.request(method, path, headers={"Authorization": f"Bearer {key}"}, json={"spec": SPEC})
                written = capfd.readouterr().err
            assert key not in written
            return [line for line in map(json.loads, written.splitlines()) if line["event"] == "request"]

        return run

    def test_one_for_each_request_but_successful_polls(self, lines: Any) -> None:
        found = lines("info", ("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("GET", "/v1/jobs/job_0"))
        assert [(line["method"], line["route"], line["status"]) for line in found] == [
            ("POST", "/v1/jobs", 202),
            ("GET", "/v1/jobs/{job_id}", 404),
        ]
        assert all(line["elapsed_s"] > 0 and line["request_id"].startswith("req_") for line in found)

    def test_of_polls_at_debug(self, lines: Any) -> None:
        assert [line["path"] for line in lines("debug", ("GET", "/v1/jobs"))] == ["/v1/jobs"]


class TestBugs:
    def test_tell_the_client_nothing_but_where_to_look(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        app: FastAPI = create_app(settings)

        def bug(*args: object) -> None:
            raise RuntimeError("the secret plan")

        monkeypatch.setattr(preflight, "check", bug)
        with TestClient(app) as client:
            key, _, _ = make_key(app.state.services, "ours")
            response = client.post("/v1/jobs", json={"spec": SPEC}, headers={"Authorization": f"Bearer {key}"})
        assert (response.status_code, response.json()["code"]) == (500, "internal")
        assert response.headers["Content-Type"] == "application/problem+json"
        assert "secret plan" not in response.text
        [line] = [
            line for line in map(json.loads, capfd.readouterr().err.splitlines()) if line["event"] == "request_failed"
        ]
        assert line["request_id"] == response.json()["request_id"] == response.headers["X-Request-ID"]
        assert "the secret plan" in line["exception"]

    def test_a_backend_that_is_away_is_503_and_says_to_come_back(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = api.succeeded()
        database = OperationalError("select", {}, Exception("refused"))
        for owner, name, error, path in (
            (repository, "page", database, "/v1/jobs"),
            (api.services.store, "open_range", StorageError("no answer"), f"/v1/jobs/{job['id']}/artifacts/README.md"),
            (api.services.store, "_sizes", StorageError("no answer"), f"/v1/jobs/{job['id']}/logs"),
            (repository, "keys_and_jobs", database, "/v1/jobs"),
        ):

            def away(*args: object, error: Exception = error, **kw: object) -> None:
                raise error

            monkeypatch.setattr(owner, name, away)
            response = api.client.get(path)
            problem = response.json()
            assert (response.status_code, problem["code"], problem["retryable"]) == (503, "not_ready", True), name
            assert int(response.headers["Retry-After"]) > 0

    @pytest.mark.parametrize(
        ("error", "status", "says"),
        [
            (psycopg.errors.ReadOnlySqlTransaction(), 503, "try again"),  # while another server takes over
            (psycopg.InterfaceError("the connection is closed"), 503, "try again"),
            (psycopg.errors.QueryCanceled(), 503, "ask for less"),  # a statement that takes longer than a request may
            (psycopg.errors.UndefinedColumn(), 500, "a bug"),
        ],
    )
    def test_what_the_database_refuses_is_told_from_a_bug(
        self, api: Api, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, says: str
    ) -> None:
        def refuse(*args: object, **kw: object) -> None:
            raise DBAPIError.instance("select", {}, error, psycopg.Error)

        monkeypatch.setattr(repository, "page", refuse)
        response = api.client.get("/v1/jobs")
        assert (response.status_code, says in response.json()["detail"]) == (status, True), response.json()
