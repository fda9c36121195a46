"""Labels, cancel, retry, delete."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from app.jobs.models import Artifact, Attempt, Event, Job, JobLabel, Outbox, ReportRecord
from app.storage import StorageError
from tests.helpers.api import Api, pointers


class TestLabels:
    def test_are_merged_and_null_removes(self, api: Api) -> None:
        job = api.submit(labels={"keep": "1", "change": "1", "drop": "1"})
        changes = {"change": "2", "drop": None, "add": "3", "never-there": None}
        response = api.client.patch(f"/v1/jobs/{job['id']}", json={"labels": changes})
        assert response.json()["labels"] == {"add": "3", "change": "2", "keep": "1"}
        assert api.get(job).json() == response.json()
        assert api.get(job).headers["ETag"] == response.headers["ETag"]

    def test_a_finished_job_can_still_be_labelled(self, api: Api) -> None:
        job = api.succeeded()
        response = api.client.patch(f"/v1/jobs/{job['id']}", json={"labels": {"release": "1.0"}})
        assert (response.status_code, response.json()["status"]) == (200, "succeeded")

    def test_if_match_guards_against_a_lost_update(self, api: Api) -> None:
        job = api.submit()
        url, etag = f"/v1/jobs/{job['id']}", api.get(job).headers["ETag"]
        assert api.client.patch(url, json={"labels": {"a": "1"}}, headers={"If-Match": etag}).status_code == 200
        late = api.client.patch(url, json={"labels": {"a": "2"}}, headers={"If-Match": etag})
        assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
        assert api.get(job).json()["labels"] == {"a": "1"}

    def test_a_move_in_the_queue_is_no_lost_update(self, api: Api) -> None:
        first, second = api.submit(), api.submit()
        etag = api.get(second).headers["ETag"]
        api.post(first, "cancel")
        url = f"/v1/jobs/{second['id']}"
        assert api.client.patch(url, json={"labels": {"a": "1"}}, headers={"If-Match": etag}).status_code == 200

    def test_their_number_is_limited_over_all_patches(self, api: Api) -> None:
        job = api.submit(labels={f"k{n}": "" for n in range(50)})
        url = f"/v1/jobs/{job['id']}"
        full = api.client.patch(url, json={"labels": {"one-more": ""}})
        assert (full.status_code, pointers(full.json())) == (422, ["/labels"])
        assert len(api.get(job).json()["labels"]) == 50
        assert api.client.patch(url, json={"labels": {"one-more": "", "k0": None}}).status_code == 200


class TestCancel:
    def test_a_queued_job_is_cancelled_at_once(self, api: Api) -> None:
        job = api.submit()
        response = api.post(job, "cancel")
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        assert response.json()["finished_at"] is not None

    def test_a_running_job_is_told_to_stop(self, api: Api) -> None:
        job = api.submit()
        api.claim()
        assert [api.post(job, "cancel").json()["status"] for _ in range(2)] == ["cancelling", "cancelling"]

    def test_is_idempotent(self, api: Api) -> None:
        job = api.submit()
        first, second = api.post(job, "cancel"), api.post(job, "cancel")
        assert (second.status_code, second.json()) == (200, first.json())

    def test_a_finished_job_cannot_be_cancelled(self, api: Api) -> None:
        response = api.post(api.succeeded(), "cancel")
        problem = response.json()
        assert (response.status_code, problem["code"], problem["current"]) == (409, "invalid_transition", "succeeded")
        assert problem["allowed"] == ["delete"]


class TestRetry:
    @pytest.mark.parametrize("ending", ["failed", "cancelled"])
    def test_queues_the_job_again_with_all_its_attempts(self, api: Api, ending: str) -> None:
        job = api.submit(max_attempts=2)
        if ending == "failed":
            api.fail(api.claim())
        else:
            api.post(job, "cancel")
        response = api.post(job, "retry")
        again = response.json()
        assert (response.status_code, again["status"], again["attempts_left"]) == (200, "queued", 2)
        assert (again["error"], again["finished_at"]) == (None, None)
        assert again["queue"] == {"position": 1, "waiting_for": None}
        api.succeed(api.claim())
        assert api.get(job).json()["status"] == "succeeded"

    def test_only_what_has_ended_badly_can_be_retried(self, api: Api) -> None:
        job = api.submit()
        assert api.post(job, "retry").json()["allowed"] == ["cancel", "pause"]
        api.succeed(api.claim())
        assert api.post(job, "retry").status_code == 409


class TestDelete:
    def test_takes_rows_and_files(self, api: Api) -> None:
        job = api.submit(labels={"a": "b"})
        held = api.claim()
        api.log(held, 0, "hello\n")
        api.succeed(held)
        assert list(api.services.store.list_jobs()) == [(api.tenant_id, job["id"])]
        assert api.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert api.get(job).status_code == 404
        assert list(api.services.store.list_jobs()) == []
        with api.database.read() as session:
            for table in (Job, JobLabel, Event, Attempt, Artifact, ReportRecord, Outbox):
                assert session.execute(select(func.count()).select_from(table)).scalar_one() == 0

    def test_an_active_job_is_kept(self, api: Api) -> None:
        job = api.submit()
        response = api.client.delete(f"/v1/jobs/{job['id']}")
        assert (response.status_code, response.json()["code"]) == (409, "invalid_transition")
        assert api.get(job).status_code == 200

    def test_does_not_need_the_store(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reconciler collects files whose job is gone; the client need not wait for the storage to come back."""
        job = api.succeeded()

        def unavailable(*args: str) -> None:
            raise StorageError("no answer")

        monkeypatch.setattr(api.services.store, "delete_job", unavailable)
        assert api.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert api.get(job).status_code == 404


class TestPause:
    def test_a_queued_job_waits_until_it_is_resumed(self, api: Api) -> None:
        job = api.submit()
        paused = api.post(job, "pause").json()
        assert (paused["status"], paused["queue"], paused["finished_at"]) == ("paused", None, None)
        assert api.post(job, "retry").json()["allowed"] == ["cancel", "pause", "resume"]
        assert api.client.delete(f"/v1/jobs/{job['id']}").status_code == 409
        resumed = api.post(job, "resume").json()
        assert (resumed["status"], resumed["queue"]["position"]) == ("queued", 1)
        api.succeed(api.claim())
        for verb in ("pause", "resume"):
            assert (api.post(job, verb).status_code, api.post(job, verb).json()["allowed"]) == (409, ["delete"])
