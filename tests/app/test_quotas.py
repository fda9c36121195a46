"""Quotas at their edges, who may set them, and what is counted."""

from __future__ import annotations

import threading
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select, text

from app.errors import TooManyRequests
from app.jobs import attempts, upkeep, usage
from app.jobs.models import Job
from app.keys.models import Tenant
from app.rates import Rates
from tests.helpers.api import FILES, SPEC, Api, make_key, others
from tests.helpers.job_life import worker

RESULT_BYTES = sum(map(len, FILES.values()))


def bound(api: Api, **quotas: int | None) -> None:
    answer = api.client.patch(f"/v1/tenants/{api.tenant_id}", json={"quotas": quotas})
    assert answer.status_code == 200, answer.text
    assert {name: answer.json()["quotas"][name] for name in quotas} == quotas


def refused(answer: httpx2.Response, status: int, code: str, quota: str, limit: int) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert (problem["quota"], problem["limit"]) == (quota, limit)
    return problem


def used(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api.client.get("/v1/me").json()["usage"]
    return found


class TestQueued:
    def test_one_more_is_refused_until_there_is_room(self, api: Api) -> None:
        bound(api, queued=2)
        first, _ = api.submit(), api.submit()
        api.post(first, "pause")  # it still waits
        answer = api.client.post("/v1/jobs", json={"spec": SPEC})
        problem = refused(answer, 429, "quota_reached", "queued", 2)
        assert (answer.headers["Retry-After"], problem["used"], problem["retryable"]) == ("30", 3, True)
        assert used(api)["queued"] == 2
        api.claim()
        api.submit()

    def test_a_sweep_counts_with_all_its_children(self, api: Api) -> None:
        bound(api, queued=2)
        body = {"spec": SPEC, "grid": {"/seed": [1, 2, 3]}}
        refused(api.client.post("/v1/sweeps", json=body), 429, "quota_reached", "queued", 2)
        assert api.client.get("/v1/jobs").json()["data"] == api.client.get("/v1/sweeps").json()["data"] == []
        body["grid"] = {"/seed": [1, 2]}
        assert api.client.post("/v1/sweeps", json=body).status_code == 202

    def test_a_retry_counts_and_a_resume_does_not(self, api: Api) -> None:
        failed, paused = api.submit(), api.submit()
        api.fail(api.claim())
        api.post(paused, "pause")
        bound(api, queued=1)
        refused(api.post(failed, "retry"), 429, "quota_reached", "queued", 1)
        assert api.get(failed).json()["status"] == "failed"
        assert api.post(paused, "resume").status_code == 200

    def test_a_repetition_with_the_same_key_is_no_new_job(self, api: Api) -> None:
        bound(api, queued=1)
        headers = {"Idempotency-Key": "k"}
        first, again = (api.client.post("/v1/jobs", json={"spec": SPEC}, headers=headers) for _ in range(2))
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json()["id"] == again.json()["id"]

    def test_of_many_at_once_no_more_pass_than_may(self, api: Api) -> None:
        bound(api, queued=3)
        statuses: list[int] = []

        def send() -> None:
            statuses.append(api.client.post("/v1/jobs", json={"spec": SPEC}).status_code)

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [202] * 3 + [429] * 5

    def test_another_tenants_jobs_do_not_count(self, api: Api, foreign: httpx2.Headers) -> None:
        bound(api, queued=1)
        api.submit()
        for _ in range(2):
            assert api.client.post("/v1/jobs", json={"spec": SPEC}, headers=foreign).status_code == 202


class TestRunning:
    def test_others_wait_and_are_next_when_one_has_ended(self, api: Api) -> None:
        bound(api, running=1)
        first, second = api.submit(), api.submit()
        held = api.claim()
        assert held.job_id == first["id"]
        with api.database.write() as session:
            assert attempts.claim(session, worker("w2"), ttl_s=60, overtaking_ms=0) is None
        assert used(api)["running"] == 1
        api.succeed(held)
        assert api.claim().job_id == second["id"]

    def test_of_many_workers_at_once_no_more_start_than_may(self, api: Api) -> None:
        bound(api, running=2)
        for _ in range(6):
            api.submit()
        held: list[object] = []

        def look(name: str) -> None:
            mine = worker(name, devices=1)
            found = api.database.transact(lambda session: attempts.claim(session, mine, ttl_s=60, overtaking_ms=0))
            held.append(found)

        threads = [threading.Thread(target=look, args=[f"w{n}"]) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(each is not None for each in held) == 2


class TestStored:
    def test_is_counted_with_results_and_given_back_with_their_jobs(self, api: Api) -> None:
        job = api.succeeded()
        assert used(api)["stored_bytes"] == RESULT_BYTES
        bound(api, stored_bytes=RESULT_BYTES)
        refused(api.client.post("/v1/jobs", json={"spec": SPEC}), 403, "quota_exceeded", "stored_bytes", RESULT_BYTES)
        bound(api, stored_bytes=RESULT_BYTES + 1)
        other = others()
        api.succeed((api.submit(), api.claim())[1], files=other)
        assert used(api)["stored_bytes"] == RESULT_BYTES + sum(map(len, other.values()))
        for each in api.client.get("/v1/jobs").json()["data"]:
            api.client.delete(f"/v1/jobs/{each['id']}")
        assert used(api)["stored_bytes"] == 0
        assert api.get(job).status_code == 404

    def test_an_attempt_that_is_lost_stores_nothing(self, api: Api) -> None:
        api.submit()
        api.fail(api.claim())
        assert used(api)["stored_bytes"] == 0


class TestDeviceSeconds:
    def take(self, api: Api, seconds: int) -> dict[str, Any]:
        """A job whose attempt took so long."""
        job = api.submit()
        held = api.claim()
        with api.database.write() as session:
            session.execute(text("update attempts set started_at = started_at - :ms"), {"ms": seconds * 1000})
        api.succeed(held)
        return job

    def test_are_those_of_every_attempt_and_outlive_their_job(self, api: Api) -> None:
        job = self.take(api, 10)
        shown = api.get(job).json()["durations"]["device_s"]
        assert 10 <= shown < 20
        assert used(api)["device_seconds"] == pytest.approx(shown)
        api.client.delete(f"/v1/jobs/{job['id']}")
        assert used(api)["device_seconds"] == pytest.approx(shown)

    def test_those_of_running_and_lost_attempts_count(self, api: Api) -> None:
        api.submit()
        held = api.claim()
        with api.database.write() as session:
            session.execute(text("update attempts set started_at = started_at - 10000"))
        assert used(api)["device_seconds"] >= 10
        with api.database.write() as session:
            session.execute(text("update jobs set lease_expires_at = 1"))
        with api.database.write() as session:
            upkeep.reap(session, backoff_s=0)
            assert session.get_one(Job, held.job_id).device_ms >= 10_000
        assert used(api)["device_seconds"] >= 10

    def test_once_they_are_used_up_nothing_is_made_nor_begun(self, api: Api) -> None:
        waiting = api.submit(priority=-1)
        self.take(api, 10)
        bound(api, device_seconds=10)
        problem = refused(api.client.post("/v1/jobs", json={"spec": SPEC}), 403, "quota_exceeded", "device_seconds", 10)
        assert problem["resets_at"] == used(api)["resets_at"].replace(".000Z", "Z")
        with api.database.write() as session:
            assert attempts.claim(session, worker("w2"), ttl_s=60, overtaking_ms=0) is None
            session.execute(text("update device_times set at = at - 2678400000"))  # it was last month
        assert used(api)["device_seconds"] == 0
        assert api.claim().job_id == waiting["id"]

    def test_months_begin_at_their_first_day(self) -> None:
        december = 1_798_718_400_000  # 2026-12-31T12:00:00Z
        begin, end = usage._month(december)
        assert (begin, end) == (1_796_083_200_000, 1_798_761_600_000)
        assert usage._month(end) == (end, 1_801_440_000_000)
        assert usage._month(end - 1) == (begin, end)


class TestRequests:
    def test_so_many_a_minute_and_no_more(self, api: Api, foreign: httpx2.Headers) -> None:
        with api.database.write() as session:
            session.get_one(Tenant, api.tenant_id).max_requests = 3
        for _ in range(3):
            assert api.client.get("/v1/jobs").status_code == 200
        answer = api.client.get("/v1/jobs")
        refused(answer, 429, "rate_limited", "requests", 3)
        assert 1 <= int(answer.headers["Retry-After"]) <= 20
        assert api.client.get("/v1/jobs", headers=foreign).status_code == 200
        assert api.client.get("/livez").status_code == 200

    def test_tokens_come_back_with_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        monkeypatch.setattr("app.rates.time.monotonic", lambda: now)
        rates = Rates()
        for second in range(0, 120, 2):  # 30 a minute for two minutes
            now = float(second)
            rates.count("t", 30)
        for _ in range(29):
            rates.count("t", 30)
        with pytest.raises(TooManyRequests):
            rates.count("t", 30)
        now += 2
        rates.count("t", 30)


class TestAdmin:
    def test_only_admins_see_and_change_tenants(self, api: Api) -> None:
        text_, _, tenant_id = make_key(api.services, "theirs", ("jobs:read", "jobs:write"))
        theirs = {"Authorization": f"Bearer {text_}"}
        for method, path, body in (
            ("GET", "/v1/tenants", None),
            ("GET", f"/v1/tenants/{tenant_id}", None),
            ("PATCH", f"/v1/tenants/{tenant_id}", {"weight": 9}),
        ):
            assert api.client.request(method, path, json=body, headers=theirs).status_code == 403
        found = {tenant["name"]: tenant for tenant in api.client.get("/v1/tenants").json()["data"]}
        assert [*found] == ["ours", "theirs"]
        assert found["theirs"] == api.client.get(f"/v1/tenants/{tenant_id}").json()
        assert (found["theirs"]["weight"], set(found["theirs"]["quotas"].values())) == (1, {None})
        changed = api.client.patch(f"/v1/tenants/{tenant_id}", json={"weight": 3, "quotas": {"running": 2}}).json()
        assert (changed["weight"], changed["quotas"]["running"], changed["quotas"]["queued"]) == (3, 2, None)
        again = api.client.patch(f"/v1/tenants/{tenant_id}", json={"quotas": {"running": None}}).json()
        assert (again["weight"], again["quotas"]["running"]) == (3, None)
        assert api.client.get("/v1/me", headers=theirs).json()["quotas"] == again["quotas"]

    def test_no_such_tenant(self, api: Api) -> None:
        for tenant_id in ("ten_" + "0" * 32, "x", "%00"):
            assert api.client.get(f"/v1/tenants/{tenant_id}").status_code == 404
            assert api.client.patch(f"/v1/tenants/{tenant_id}", json={}).status_code == 404

    @pytest.mark.parametrize("body", [{"weight": 0}, {"quotas": {"queued": -1}}, {"quotas": {"requests": 0}}, {"w": 1}])
    def test_nonsense_is_refused(self, api: Api, body: dict[str, Any]) -> None:
        assert api.client.patch(f"/v1/tenants/{api.tenant_id}", json=body).status_code == 422


def test_the_counters_are_what_the_rows_say(api: Api) -> None:
    """After jobs of every ending, a retry and a deletion."""
    jobs = [api.succeeded(others()) for _ in range(2)]
    failed = api.submit()
    api.fail(api.claim())
    api.post(failed, "retry")
    api.succeed(api.claim())
    api.client.delete(f"/v1/jobs/{jobs[0]['id']}")
    with api.database.read() as session:
        tenant = session.get_one(Tenant, api.tenant_id)
        artifacts = session.execute(text("select coalesce(sum(bytes), 0) from artifacts")).scalar_one()
        by_jobs = session.execute(select(func.sum(Job.stored_bytes))).scalar_one()
        assert tenant.stored_bytes == by_jobs == artifacts > 2 * RESULT_BYTES
        times = session.execute(text("select count(*) from device_times")).scalar_one()
        assert times == 4
