"""GET /v1/jobs/{id}: the document, its ETag, waiting for a change, and never a stale answer."""

from __future__ import annotations

import threading
import time

import httpx2
import pytest
from fastapi import FastAPI

from app.jobs import repository
from app.jobs.schemas import JobRead
from app.keys import service as keys
from tests.helpers.api import CRASH, GATED, SPEC, Api, judged
from workers.engine.report import Verdict


class TestDocument:
    def test_of_a_job_through_its_life(self, api: Api) -> None:
        queued = api.submit()
        held = api.claim()
        api.record(held, ("checkpoint", {"block": 0}))
        running = JobRead.model_validate(api.get(queued).json())
        assert (running.status, running.stage, running.attempt, running.queue) == ("running", "prune", 1, None)
        assert running.progress is not None
        assert (running.progress.done, running.progress.total, running.progress.rate) == (1, 8, 2.0)
        assert running.durations.queued_s is not None
        assert running.durations.running_s is None
        api.succeed(held)
        done = JobRead.model_validate(api.get(queued).json())
        assert (done.status, done.attempts_left) == ("succeeded", 2)
        assert done.metrics is not None
        assert done.metrics["perplexity/a.txt"].ratio == 1.1
        assert done.finished_at is not None
        assert done.started_at is not None
        assert done.durations.running_s == pytest.approx((done.finished_at - done.started_at).total_seconds())

    def test_of_a_failed_job_says_why(self, api: Api) -> None:
        job = api.submit()
        api.fail(api.claim())
        failed = JobRead.model_validate(api.get(job).json())
        assert failed.status == "failed"
        assert failed.error is not None
        assert (failed.error.code, failed.error.hint, failed.error.attempt) == (CRASH.code, CRASH.hint, 1)

    @pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
    def test_of_a_gated_job_has_the_verdict(self, api: Api, verdict: Verdict) -> None:
        job = api.submit(GATED)
        assert job["verdict"] is None
        api.succeed(api.claim(), judged(verdict))
        assert JobRead.model_validate(api.get(job).json()).verdict == verdict
        report = api.get(job, "/report").json()
        assert (report["verdict"], report["gates"][0]["verdict"]) == (verdict, verdict)

    def test_links_lead_somewhere(self, api: Api) -> None:
        job = api.succeeded()
        for link in job["links"].values():
            assert api.client.get(link).status_code == 200

    def test_a_missing_job_is_404(self, api: Api) -> None:
        for job_id in ("job_" + "0" * 32, "job_1", "%00", "..", "job_" + "g" * 32):
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/events")):
                response = api.client.request(method, f"/v1/jobs/{job_id}{path}")
                assert (response.status_code, response.json()["code"]) == (404, "not_found"), (job_id, path)

    def test_a_foreign_job_is_exactly_a_missing_one(self, api: Api, foreign: httpx2.Headers) -> None:
        job = api.submit()
        missing = "job_" + "0" * 32
        for method, path, body in [
            ("GET", "", None),
            ("PATCH", "", {"labels": {}}),
            ("DELETE", "", None),
            ("POST", "/cancel", None),
            ("POST", "/pause", None),
            ("POST", "/resume", None),
            ("POST", "/retry", None),
            ("GET", "/events", None),
            ("GET", "/attempts", None),
            ("GET", "/logs", None),
            ("GET", "/artifacts", None),
            ("GET", "/artifacts/model.safetensors", None),
            ("GET", "/report", None),
        ]:
            seen, unseen = (
                api.client.request(method, f"/v1/jobs/{job_id}{path}", json=body, headers=foreign)
                for job_id in (job["id"], missing)
            )
            assert seen.status_code == 404, (method, path)
            differing = {k for k, v in seen.json().items() if unseen.json()[k] != v}
            assert differing == {"instance", "request_id"}
        assert api.get(job).json() == job


class TestETag:
    def test_a_poll_without_news_is_an_empty_304(self, api: Api) -> None:
        job = api.submit()
        etag = api.get(job).headers["ETag"]
        again = api.get(job, If_None_Match=etag)
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
        assert again.headers["Cache-Control"] == "private, no-cache"

    def test_changes_with_every_visible_change(self, api: Api) -> None:
        job = api.submit()
        seen = [api.get(job).headers["ETag"]]
        held = api.claim()
        seen.append(api.get(job).headers["ETag"])
        api.record(held)
        seen.append(api.get(job).headers["ETag"])
        api.client.patch(f"/v1/jobs/{job['id']}", json={"labels": {"a": "b"}})
        seen.append(api.get(job).headers["ETag"])
        api.succeed(held)
        seen.append(api.get(job).headers["ETag"])
        assert len(set(seen)) == 5
        assert all(etag.startswith('"') for etag in seen), "strong"

    def test_changes_with_the_place_in_the_queue(self, api: Api) -> None:
        first, second = api.submit(), api.submit()
        etag = api.get(second).headers["ETag"]
        assert api.get(second).json()["queue"] == {"position": 2, "waiting_for": None}
        api.post(first, "cancel")
        moved = api.get(second, If_None_Match=etag)
        assert (moved.status_code, moved.json()["queue"]) == (200, {"position": 1, "waiting_for": None})

    def test_names_the_body_exactly(self, api: Api) -> None:
        job = api.submit(labels={"z": "1", "a": "2", "m": "3"})
        bodies = {(r.headers["ETag"], r.content) for r in (api.get(job) for _ in range(5))}
        assert len(bodies) == 1

    def test_is_never_stale(self, server: httpx2.Client) -> None:
        """Under concurrent polls, an answer to a request sent after a change has the change."""
        job = server.post("/v1/jobs", json={"spec": SPEC}).json()
        url, stop = f"/v1/jobs/{job['id']}", threading.Event()

        def poll() -> None:
            while not stop.is_set():
                server.get(url)

        pollers = [threading.Thread(target=poll) for _ in range(6)]
        for poller in pollers:
            poller.start()
        try:
            for n in range(40):
                server.patch(url, json={"labels": {"n": str(n)}})
                assert server.get(url).json()["labels"] == {"n": str(n)}
        finally:
            stop.set()
            for poller in pollers:
                poller.join()


class TestQueuePosition:
    def test_is_the_order_of_claims(self, api: Api) -> None:
        low, high, later = api.submit(priority=-5), api.submit(priority=5), api.submit(priority=5)
        positions = [api.get(job).json()["queue"]["position"] for job in (low, high, later)]
        assert positions == [3, 1, 2]
        assert [api.claim().job_id for _ in range(3)] == [high["id"], later["id"], low["id"]]

    def test_beyond_the_depth_it_is_null(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repository, "QUEUE_DEPTH", 2)
        jobs = [api.submit() for _ in range(3)]
        assert [api.get(job).json()["queue"]["position"] for job in jobs] == [1, 2, None]


class TestWait:
    def wait(self, server: httpx2.Client, url: str, seconds: int, **headers: str) -> tuple[httpx2.Response, float]:
        began = time.monotonic()
        response = server.get(url, headers={"Prefer": f"wait={seconds}", **headers})
        return response, time.monotonic() - began

    def test_ends_soon_after_a_change(self, server: httpx2.Client) -> None:
        job = server.post("/v1/jobs", json={"spec": SPEC}).json()
        url = f"/v1/jobs/{job['id']}"
        etag = server.get(url).headers["ETag"]
        change = threading.Timer(0.5, lambda: server.post(f"{url}/cancel"))
        change.start()
        response, elapsed_s = self.wait(server, url, 20, **{"If-None-Match": etag})
        change.join()
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        assert response.headers["Preference-Applied"] == "wait=20"
        assert 0.4 < elapsed_s < 3

    def test_without_a_change_it_ends_at_its_bound(self, server: httpx2.Client) -> None:
        job = server.post("/v1/jobs", json={"spec": SPEC}).json()
        url = f"/v1/jobs/{job['id']}"
        response, elapsed_s = self.wait(server, url, 1, **{"If-None-Match": server.get(url).headers["ETag"]})
        assert response.status_code == 304
        assert 0.9 < elapsed_s < 3

    def test_a_finished_job_is_answered_at_once(self, server: httpx2.Client) -> None:
        job = server.post("/v1/jobs", json={"spec": SPEC}).json()
        url = f"/v1/jobs/{job['id']}"
        server.post(f"{url}/cancel")
        response, elapsed_s = self.wait(server, url, 20)
        assert response.json()["status"] == "cancelled"
        assert elapsed_s < 3

    def test_an_old_etag_is_answered_at_once(self, server: httpx2.Client) -> None:
        job = server.post("/v1/jobs", json={"spec": SPEC}).json()
        response, elapsed_s = self.wait(server, f"/v1/jobs/{job['id']}", 20, **{"If-None-Match": '"0"'})
        assert response.status_code == 200
        assert elapsed_s < 3

    def test_a_key_revoked_meanwhile_ends_it(self, server: httpx2.Client, app: FastAPI) -> None:
        job = server.post("/v1/jobs", json={"spec": SPEC}).json()
        has = app.state.services

        def revoke() -> None:
            with has.database.write() as session:
                for key, _ in keys.list_keys(session):
                    keys.revoke_key(session, key.id)

        timer = threading.Timer(0.3, revoke)
        timer.start()
        response, elapsed_s = self.wait(server, f"/v1/jobs/{job['id']}", 20)
        timer.join()
        assert (response.status_code, response.json()["code"]) == (401, "revoked_key")
        assert elapsed_s < 3
